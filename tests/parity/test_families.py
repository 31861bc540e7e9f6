"""Every family of Hugging Face checkpoints, loaded here, computes what transformers computes.

The models are random and tiny, saved by transformers, and the prompts longer than their windows and first contexts.

Tolerances. float64: 1e-10, against transformers with its float32 parts widened (`tests.parity.wide`).
float32: 1e-4, as in `test_huggingface`. bfloat16 and float16: the mean distance from float64, over all logits of the
seeds, is at most 1.02 times that of transformers' own in the same dtype. Where both round in the same places the two
are equal; the slack is for sums that another machine takes in another order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from interp.kv_cache import KeyValueCache
from models import load
from models.pretrained.huggingface import FAMILIES
from tests.parity.family_models import D_VOCAB, MAKERS, N_CTX
from tests.parity.test_huggingface import FLOAT32, PATHS, Run, assert_same, hugging_face_model, loaded
from tests.parity.wide import in_float64

FLOAT64 = 1e-10
HALF_SLACK = 1.02
HALVES = (torch.bfloat16, torch.float16)
SEEDS = range(4)
EVERY_FAMILY = pytest.mark.parametrize("family", MAKERS)
EVERY_SEED = pytest.mark.parametrize("seed", SEEDS)


def made(family: str, seed: int, dtype: torch.dtype) -> Any:
    with in_float64() if dtype == torch.float64 else nullcontext():
        return hugging_face_model(MAKERS[family](seed), seed, dtype)


def prompts(seed: int, batch: int = 3) -> Tensor:
    return torch.randint(D_VOCAB, (batch, N_CTX), generator=torch.Generator().manual_seed(seed))


def layers_of(theirs: Any) -> nn.ModuleList:
    return next(module for module in theirs.modules() if isinstance(module, nn.ModuleList))


@contextmanager
def recorded_stream(theirs: Any) -> Iterator[list[Tensor]]:
    """The stream at the input of the first block and after every block."""
    stream: list[Tensor] = []
    layers = layers_of(theirs)
    handles = [layers[0].register_forward_pre_hook(lambda module, args: stream.append(args[0]))]
    for layer in layers:
        keep = lambda module, args, out: stream.append(out if isinstance(out, Tensor) else out[0])  # noqa: E731
        handles.append(layer.register_forward_hook(keep))
    try:
        yield stream
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def their_run(theirs: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and the stream, in float64 throughout where the model is."""
    with in_float64() if theirs.dtype == torch.float64 else nullcontext(), recorded_stream(theirs) as stream:
        return theirs(tokens, use_cache=False).logits, stream


@PATHS
@EVERY_FAMILY
@EVERY_SEED
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@torch.no_grad()
def test_logits_and_every_residual_are_those_of_transformers(
    run: Run, family: str, seed: int, dtype: torch.dtype, atol: float
) -> None:
    theirs, tokens = made(family, seed, dtype), prompts(seed)
    ours = loaded(theirs)
    assert ours.dtype == dtype
    assert_same(run(ours, tokens), their_run(theirs, tokens), atol)


@PATHS
@EVERY_FAMILY
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_gives_each_prompt_what_transformers_gives_it_alone(run: Run, family: str, side: str) -> None:
    theirs, tokens = made(family, 0, torch.float64), prompts(0)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, length in enumerate((N_CTX, 15, 1)):
        mask[row, slice(-length, None) if side == "left" else slice(length)] = True
    logits, residuals = run(loaded(theirs), tokens, attention_mask=mask)
    for row, real in enumerate(mask):
        ours = (logits[row, real], [residual[row, real] for residual in residuals])
        alone, residuals_alone = their_run(theirs, tokens[row, real][None])
        assert_same(ours, (alone[0], [residual[0] for residual in residuals_alone]), FLOAT64)


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_in_16_bits_we_are_no_further_from_float64_than_transformers(family: str, dtype: torch.dtype) -> None:
    ours, theirs = zip(*(half_errors(family, seed, dtype) for seed in SEEDS), strict=True)
    assert torch.cat(ours).mean() <= HALF_SLACK * torch.cat(theirs).mean()


def half_errors(family: str, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Distances of our and their logits in a dtype of 16 bits from float64's, with the same weights."""
    exact, tokens = made(family, seed, torch.float64), prompts(seed, batch=8)
    for parameter in exact.parameters():
        parameter.copy_(parameter.to(dtype))
    reference, _ = their_run(exact, tokens)
    with tempfile.TemporaryDirectory() as directory:
        exact.save_pretrained(directory)
        # Not `.to(dtype)`, which would round the rotary frequencies too.
        theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        ours = load(directory, dtype=dtype)
    assert ours.dtype == theirs.dtype == dtype
    errors = [(logits.double() - reference).abs().flatten() for logits in (ours(tokens), theirs(tokens).logits)]
    return errors[0], errors[1]


@EVERY_FAMILY
@torch.no_grad()
def test_a_sharded_checkpoint_is_the_same_model(family: str) -> None:
    theirs = made(family, 0, torch.float32)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory, max_shard_size="4KB")
        assert len(list(Path(directory).glob("model-*.safetensors"))) > 1
        sharded = load(directory)
    whole = loaded(theirs).state_dict()
    assert all(torch.equal(weight, whole[name]) for name, weight in sharded.state_dict().items())


@EVERY_FAMILY
@torch.no_grad()
def test_saved_by_us_the_model_is_the_same(family: str) -> None:
    ours, tokens = loaded(made(family, 0, torch.float32)), prompts(0)
    with tempfile.TemporaryDirectory() as directory:
        ours.save(Path(directory) / "saved")
        assert torch.equal(load(Path(directory) / "saved")(tokens), ours(tokens))


@EVERY_FAMILY
@torch.no_grad()
def test_one_token_at_a_time_gives_the_logits_of_the_whole_prompt(family: str) -> None:
    ours, tokens = loaded(made(family, 0, torch.float64)), prompts(0)
    past = KeyValueCache()
    steps = [ours(tokens[:, [position]], past_kv_cache=past) for position in range(N_CTX)]
    torch.testing.assert_close(torch.cat(steps, 1), ours(tokens), atol=FLOAT64, rtol=0.0)


def test_every_family_is_tested() -> None:
    makers = {MAKERS[name](0).model_type for name in MAKERS}
    decoders = [family for family in FAMILIES if family.kind == "gpt"]  # of others: test_encoder_decoder
    assert {family.model_types[0] for family in decoders} <= makers
