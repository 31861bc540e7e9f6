"""T5 and BART checkpoints, and torch's own `nn.Transformer`, compute the same here as where they come from.

The models are random and tiny. Tolerances: float64 1e-10, against transformers with its float32 parts widened
(`tests.parity.wide`); float32 1e-4, as in `test_huggingface`: what rounding leaves of sums taken in another order.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config

from models import load
from models.encoder_decoder import EncoderDecoder
from models.encoder_decoder_config import EncoderDecoderConfig
from tests.parity.wide import in_float64

D_VOCAB, N_SOURCE, N_TARGET = 29, 21, 17
DTYPES = pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
SEEDS = range(3)


def t5(seed: int) -> Any:
    """Version 1.0: the embedding unembeds, scaled."""
    return _t5(seed, "relu", tie_word_embeddings=True)


def t5_v1_1(seed: int) -> Any:
    return _t5(seed, Random(seed).choice(["gated-gelu", "gated-silu"]), tie_word_embeddings=False)


def _t5(seed: int, mlp: str, **ties: bool) -> Any:
    random = Random(f"t5 {seed}")
    return T5Config(
        vocab_size=D_VOCAB,
        d_model=16,
        d_kv=6,
        d_ff=20,
        num_layers=2,
        num_decoder_layers=random.choice([1, 2, 3]),
        num_heads=4,
        relative_attention_num_buckets=random.choice([8, 12]),
        relative_attention_max_distance=15,
        layer_norm_epsilon=random.choice([1e-6, 1e-2]),
        feed_forward_proj=mlp,
        decoder_start_token_id=0,
        **ties,
    )


def bart(seed: int) -> Any:
    random = Random(f"bart {seed}")
    return BartConfig(
        vocab_size=D_VOCAB,
        d_model=16,
        encoder_layers=2,
        decoder_layers=random.choice([1, 3]),
        encoder_attention_heads=4,
        decoder_attention_heads=random.choice([2, 4]),
        encoder_ffn_dim=20,
        decoder_ffn_dim=random.choice([12, 20]),
        max_position_embeddings=24,
        activation_function=random.choice(["gelu", "relu"]),
        scale_embedding=bool(seed % 2),
        forced_eos_token_id=None,
    )


FAMILIES = pytest.mark.parametrize("family", [t5, t5_v1_1, bart])


def made(config: Any, seed: int, dtype: torch.dtype) -> Any:
    """A random model with gains, biases and attention far from their defaults."""
    with in_float64() if dtype == torch.float64 else nullcontext():
        model = AutoModelForSeq2SeqLM.from_config(config).to(dtype).eval()
    if getattr(config, "scale_decoder_outputs", True) is False or not config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))  # version 1.1 has its own
    randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Wider matrices would amplify float32's rounding beyond its tolerance: T5 does not scale its scores."""
    generator = torch.Generator().manual_seed(seed)
    constants = [(name, buffer) for name, buffer in model.named_buffers() if name == "final_logits_bias"]
    for name, parameter in [*model.named_parameters(), *constants]:
        is_gain = name.endswith("weight") and parameter.ndim == 1
        parameter.copy_(float(is_gain) + 0.25 * torch.randn(parameter.shape, generator=generator))


def loaded(theirs: Any, **saving: Any) -> EncoderDecoder:
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory, **saving)
        return load(directory)


def prompts(seed: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(D_VOCAB, (batch, N_SOURCE), generator=generator)
    return source, torch.randint(D_VOCAB, (batch, N_TARGET), generator=generator)


def padded(shape: torch.Size, lengths: tuple[int, ...], side: str) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, slice(-length, None) if side == "left" else slice(length)] = True
    return mask


@contextmanager
def recorded(layers: nn.ModuleList) -> Iterator[list[Tensor]]:
    """The stream at the input of the first layer and after every layer."""
    stream: list[Tensor] = []
    keep = lambda module, args, out: stream.append(out if isinstance(out, Tensor) else out[0])  # noqa: E731
    handles = [layers[0].register_forward_pre_hook(lambda module, args: stream.append(args[0]))]
    handles += [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield stream
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def their_run(theirs: Any, source: Tensor, target: Tensor, **masks: Tensor) -> list[Tensor]:
    """Logits, the encoder's stream and last states, the decoder's stream."""
    sides = [theirs.get_encoder(), theirs.get_decoder()]
    encoder, decoder = (side.block if hasattr(side, "block") else side.layers for side in sides)
    wide = in_float64() if theirs.dtype == torch.float64 else nullcontext()
    with wide, recorded(encoder) as read, recorded(decoder) as written:
        out = theirs(source, decoder_input_ids=target, use_cache=False, **masks)
    return [out.logits, *read, out.encoder_last_hidden_state, *written]


def stream_names(model: EncoderDecoder, side: str) -> list[str]:
    last = len(getattr(model, side)) - 1
    end = "hook_normalized_resid_post" if model.cfg.norm_places == "stream" else "hook_resid_post"
    return [*(f"{side}.{layer}.hook_resid_pre" for layer in range(last + 1)), f"{side}.{last}.{end}"]


def fused(model: EncoderDecoder, source: Tensor, target: Tensor, **masks: Tensor) -> list[Tensor]:
    """Nothing is hooked but the stream, so attention is the fused kernel."""
    names = [*stream_names(model, "encoder"), *stream_names(model, "decoder")]
    return _run(model, source, target, masks, names)


def explicit(model: EncoderDecoder, source: Tensor, target: Tensor, **masks: Tensor) -> list[Tensor]:
    """Every point is hooked, so attention is the explicit softmax."""
    return _run(model, source, target, masks, None)


def _run(
    model: EncoderDecoder, source: Tensor, target: Tensor, masks: dict[str, Tensor], names: list[str] | None
) -> list[Tensor]:
    with torch.no_grad():
        logits, cache = model.run_with_cache(source, target, names_filter=names, **masks)
        states = model.encode(source, masks.get("attention_mask")).states
    read, written = ([cache[name] for name in stream_names(model, side)] for side in ("encoder", "decoder"))
    return [logits, *read, states, *written]


PATHS = pytest.mark.parametrize("run", [fused, explicit])
Run = Callable[..., list[Tensor]]


def assert_same(ours: list[Tensor], theirs: list[Tensor], atol: float) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=atol, rtol=0.0)


@PATHS
@FAMILIES
@DTYPES
@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_all_hidden_states_are_those_of_transformers(
    run: Run, family: Callable[[int], Any], seed: int, dtype: torch.dtype, atol: float
) -> None:
    theirs, (source, target) = made(family(seed), seed, dtype), prompts(seed)
    ours = loaded(theirs)
    assert ours.dtype == dtype
    assert_same(run(ours, source, target), their_run(theirs, source, target), atol)


@PATHS
@FAMILIES
@DTYPES
def test_with_padding_masks_real_positions_are_those_of_transformers(
    run: Run, family: Callable[[int], Any], dtype: torch.dtype, atol: float
) -> None:
    theirs, (source, target) = made(family(0), 0, dtype), prompts(0)
    real = padded(source.shape, (N_SOURCE, 9, 1), "right"), padded(target.shape, (6, N_TARGET, 3), "right")
    masks = {"attention_mask": real[0], "decoder_attention_mask": real[1]}
    ours, others = run(loaded(theirs), source, target, **masks), their_run(theirs, source, target, **masks)
    for our, their in zip(ours, others, strict=True):
        where = real[0] if our.shape[1] == N_SOURCE else real[1]
        torch.testing.assert_close(our[where], their[where], atol=atol, rtol=0.0)


@PATHS
@FAMILIES
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_each_prompt_what_transformers_gives_it_alone(
    run: Run, family: Callable[[int], Any], side: str
) -> None:
    theirs, (source, target) = made(family(1), 1, torch.float64), prompts(1)
    real = padded(source.shape, (N_SOURCE, 9, 1), side), padded(target.shape, (6, N_TARGET, 3), side)
    ours = run(loaded(theirs), source, target, attention_mask=real[0], decoder_attention_mask=real[1])
    for row in range(3):
        alone = their_run(theirs, source[row, real[0][row]][None], target[row, real[1][row]][None])
        for our, their in zip(ours, alone, strict=True):
            where = real[0][row] if our.shape[1] == N_SOURCE else real[1][row]
            torch.testing.assert_close(our[row, where], their[0], atol=1e-10, rtol=0.0)


@FAMILIES
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beams", [1, 4])
def test_generated_tokens_are_those_of_transformers(family: Callable[[int], Any], seed: int, beams: int) -> None:
    """Greedy, and the best of four beams with length_penalty 1; the end token is likely enough to come."""
    theirs, (source, _) = made(family(seed), seed, torch.float32), prompts(seed, batch=6)
    end = theirs.config.eos_token_id
    mask = padded(source.shape, (N_SOURCE, 9, 1, 4, 20, 13), "right")
    # Their cache fails where the decoder has more layers than the encoder.
    settings = {"use_cache": False, "max_new_tokens": 12, "num_beams": beams, "do_sample": False, "length_penalty": 1.0}
    expected = theirs.generate(source, attention_mask=mask.long(), **settings)
    found = loaded(theirs).generate(source, 12, attention_mask=mask, num_beams=beams, length_penalty=1.0)
    assert [until(row, end) for row in found.tolist()] == [until(row, end) for row in expected.tolist()]


def until(row: list[int], end: int) -> list[int]:
    """A row of tokens up to its end token; what fills it up afterwards is a habit. The first is the start token."""
    stop = next((i for i, token in enumerate(row) if token == end and i > 0), len(row))
    return row[: stop + 1]


@FAMILIES
@torch.no_grad()
def test_a_sharded_checkpoint_is_the_same_model(family: Callable[[int], Any]) -> None:
    theirs = made(family(0), 0, torch.float32)
    sharded, whole = loaded(theirs, max_shard_size="4KB"), loaded(theirs)
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in sharded.state_dict().items())


@FAMILIES
@torch.no_grad()
def test_saved_by_us_the_model_is_the_same(family: Callable[[int], Any], tmp_path: Path) -> None:
    ours, (source, target) = loaded(made(family(0), 0, torch.float32)), prompts(0)
    back = load(ours.save(tmp_path / "saved"))
    assert back.cfg == ours.cfg
    assert torch.equal(back(source, target), ours(source, target))


def test_a_bare_base_model_loads(tmp_path: Path) -> None:
    """facebook/bart-base is saved so: no prefix, no constant on the logits."""
    theirs, (source, target) = made(bart(1), 1, torch.float32), prompts(1)
    theirs.final_logits_bias.zero_()
    theirs.model.save_pretrained(tmp_path / "base")
    expected = their_run(theirs, source, target)[0]
    torch.testing.assert_close(load(tmp_path / "base")(source, target), expected, atol=1e-4, rtol=0.0)


@PATHS
@DTYPES
@pytest.mark.parametrize("norm_first", [False, True], ids=["norms on the stream", "norms first"])
@torch.no_grad()
def test_the_architecture_of_2017_is_torchs_own(run: Run, norm_first: bool, dtype: torch.dtype, atol: float) -> None:
    """`nn.Transformer` with copied weights between an embedding and an unembedding that are written out here."""
    theirs = nn.Transformer(16, 4, 2, 3, 20, 0.0, batch_first=True, norm_first=norm_first).to(dtype)
    randomise(theirs, seed=0)
    ours = as_ours(theirs, dtype)
    source, target = prompts(0)
    real = padded(source.shape, (N_SOURCE, 9, 1), "right"), padded(target.shape, (6, N_TARGET, 3), "right")
    vectors = [ours.W_E[tokens] * 4.0 + waves(tokens.shape[1], 16, dtype) for tokens in (source, target)]
    with recorded(theirs.encoder.layers) as read, recorded(theirs.decoder.layers) as written:
        final = theirs(
            *vectors,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(N_TARGET, dtype=dtype),
            src_key_padding_mask=~real[0],
            tgt_key_padding_mask=zero_where(real[1], dtype),
            memory_key_padding_mask=~real[0],
        )
    logits, states = final @ ours.W_E.T, theirs.encoder.norm(read[-1])
    found = run(ours, source, target, attention_mask=real[0], decoder_attention_mask=real[1])
    for our, their in zip(found, [logits, *read, states, *written], strict=True):
        where = real[0] if our.shape[1] == N_SOURCE else real[1]
        torch.testing.assert_close(our[where], their[where], atol=atol, rtol=0.0)


def zero_where(real: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 for real keys and -inf for padding."""
    return torch.zeros(real.shape, dtype=dtype).masked_fill(~real, -torch.inf)


def waves(length: int, width: int, dtype: torch.dtype) -> Tensor:
    """The paper's sinusoids, number by number (§3.5)."""
    rows = []
    for pos in range(length):
        angles = [pos / 10000 ** (2 * (i // 2) / width) for i in range(width)]
        rows.append([math.cos(angle) if i % 2 else math.sin(angle) for i, angle in enumerate(angles)])
    return torch.tensor(rows, dtype=dtype)


def as_ours(theirs: nn.Transformer, dtype: torch.dtype) -> EncoderDecoder:
    """The lab's model with the weights of torch's, embeddings that also unembed, scaled by sqrt(d_model) as in §3.4."""
    cfg = EncoderDecoderConfig(
        n_layers=2,
        n_decoder_layers=3,
        n_heads=4,
        d_model=16,
        d_mlp=20,
        d_vocab=D_VOCAB,
        n_ctx=24,
        act_fn="relu",
        norm_places="pre" if theirs.encoder.layers[0].norm_first else "stream",
        embed_scale=4.0,
        tie_embeddings=True,
        init_range=0.25,
        seed=0,
    )
    ours = EncoderDecoder(cfg, dtype=dtype)
    for side in ("encoder", "decoder"):
        for theirs_layer, block in zip(getattr(theirs, side).layers, getattr(ours, side), strict=True):
            copy_layer(theirs_layer, block)
        copy_norm(getattr(theirs, side).norm, getattr(ours, f"{side}_final_ln"))
    return ours


def copy_layer(theirs: Any, block: Any) -> None:
    parts = [(theirs.self_attn, block.attn)]
    if hasattr(block, "cross_attn"):
        parts.append((theirs.multihead_attn, block.cross_attn))
        copy_norm(theirs.norm3, block.ln3)
    for attention, ours in parts:
        fused = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        for linear, (weight, bias) in zip((ours.q, ours.k, ours.v), fused, strict=True):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        copy_linear(attention.out_proj, ours.o)
    copy_linear(theirs.linear1, block.mlp.in_)
    copy_linear(theirs.linear2, block.mlp.out)
    copy_norm(theirs.norm1, block.ln1)
    copy_norm(theirs.norm2, block.ln2)


def copy_linear(theirs: Any, ours: Any) -> None:
    ours.weight.copy_(theirs.weight)
    ours.bias.copy_(theirs.bias)


def copy_norm(theirs: Any, ours: Any) -> None:
    ours.w.copy_(theirs.weight)
    ours.b.copy_(theirs.bias)
