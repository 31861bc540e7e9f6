"""The encoder-decoder: what each side sees, what padding may not change, what is refused, and how it is decoded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import LabError
from models import load
from models.beam_search import beam_search
from models.encoder_decoder import EncoderDecoder
from models.encoder_decoder_config import EncoderDecoderConfig
from models.relative_positions import RelativePositionBias, distance_buckets
from models.tokenizers import characters
from tests.strategies import SEEDS, padding_masks

D_VOCAB, N_CTX = 11, 10
EXACT: dict[str, Any] = {"atol": 1e-10, "rtol": 0.0}  # float64: sums of a few dozen numbers of order one


@st.composite
def models(draw: st.DrawFn, **fixed: Any) -> EncoderDecoder:
    """A random small model in float64: norms first or on the stream, every kind of position, its two sides unequal."""
    positions = draw(st.sampled_from(["sinusoidal", "learned", "rotary", "relative"]))
    relative = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}
    sizes: dict[str, Any] = {
        "n_layers": draw(st.integers(1, 2)),
        "n_decoder_layers": draw(st.integers(1, 3)),
        "n_heads": 4,
        "n_decoder_heads": draw(st.sampled_from([2, 4])),
        "d_model": 12,
        "d_head": 4,
        "d_mlp": 16,
        "d_mlp_decoder": draw(st.sampled_from([8, 16])),
        "d_vocab": D_VOCAB,
        "n_ctx": N_CTX,
        "act_fn": "relu",
        "gated_mlp": draw(st.booleans()),
        "norm_places": draw(st.sampled_from(["pre", "stream"])),
        "normalization_type": draw(st.sampled_from(["LN", "RMS"])),
        "final_norm": draw(st.booleans()),
        "embed_norm": draw(st.booleans()),
        "positional_embedding_type": "none" if positions == "relative" else positions,
        "tie_embeddings": draw(st.booleans()),
        "unembed_scale": draw(st.sampled_from([None, 0.3])),
        "default_prepend_bos": False,
        "init_range": 0.5,
        "seed": draw(SEEDS),
    }
    return EncoderDecoder(EncoderDecoderConfig(**{**sizes, **(relative if positions == "relative" else {}), **fixed}),
                          dtype=torch.float64)  # fmt: skip


@st.composite
def tokens(draw: st.DrawFn, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(draw(SEEDS))
    return torch.randint(D_VOCAB, (batch, draw(st.integers(2, 7))), generator=generator)


@torch.no_grad()
@given(model=models(), source=tokens(), target=tokens(), seed=SEEDS)
def test_changing_a_later_token_of_the_target_changes_no_earlier_output(
    model: EncoderDecoder, source: Tensor, target: Tensor, seed: int
) -> None:
    place = seed % target.shape[1]
    changed = target.clone()
    changed[:, place] = (changed[:, place] + 1) % D_VOCAB
    torch.testing.assert_close(model(source, changed)[:, :place], model(source, target)[:, :place], **EXACT)


@torch.no_grad()
@given(model=models(), source=tokens(), target=tokens())
def test_changing_a_token_of_the_source_changes_every_output(
    model: EncoderDecoder, source: Tensor, target: Tensor
) -> None:
    changed = source.clone()
    changed[:, -1] = (changed[:, -1] + 1) % D_VOCAB
    assert ((model(source, target) - model(changed, target)).abs().amax(-1) > 1e-12).all()


@torch.no_grad()
@given(model=models(), source=tokens(3), target=tokens(3), data=st.data())
def test_padding_on_either_side_of_either_sequence_changes_nothing(
    model: EncoderDecoder, source: Tensor, target: Tensor, data: st.DataObject
) -> None:
    real = data.draw(padding_masks(3, source.shape[1])), data.draw(padding_masks(3, target.shape[1]))
    together = model(source, target, attention_mask=real[0], decoder_attention_mask=real[1])
    for row in range(3):
        alone = model(source[row, real[0][row]][None], target[row, real[1][row]][None])
        torch.testing.assert_close(together[row, real[1][row]], alone[0], **EXACT)


@torch.no_grad()
@given(model=models(), source=tokens(), target=tokens())
def test_one_token_at_a_time_with_a_cache_gives_the_logits_of_the_whole_target(
    model: EncoderDecoder, source: Tensor, target: Tensor
) -> None:
    from models.encoder_decoder import DecoderCache

    memory, cache = model.encode(source), DecoderCache()
    steps = [model.logits_of(model.decode(each, memory, cache=cache)) for each in target.split(1, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), model(source, target), **EXACT)


@torch.no_grad()
@given(model=models(), source=tokens(), target=tokens())
def test_hooking_every_point_changes_nothing(model: EncoderDecoder, source: Tensor, target: Tensor) -> None:
    logits, cache = model.run_with_cache(source, target, names_filter=lambda name: True)
    torch.testing.assert_close(logits, model(source, target), **EXACT)
    assert set(cache) == set(model.hook_dict)  # every point fires


@torch.no_grad()
@given(model=models(), source=tokens(), target=tokens())
def test_cross_attention_is_its_formula(model: EncoderDecoder, source: Tensor, target: Tensor) -> None:
    """softmax(q kᵀ / sqrt(d_head)) v W_O + b_O, head by head, with keys and values of the encoder's last states."""
    _, cache = model.run_with_cache(source, target)
    attn, states = model.decoder[0].cross_attn, model.encode(source).states
    read = cache["decoder.0.hook_resid_mid"]
    on_stream = model.cfg.norm_places == "stream"
    read = model.decoder[0].ln1(read) if on_stream else model.decoder[0].ln2(read)
    written = attn.b_O.clone().expand(*target.shape, -1)
    for head in range(attn.cfg.n_heads):
        q = read @ attn.W_Q[head] + attn.b_Q[head]
        k, v = states @ attn.W_K[head] + attn.b_K[head], states @ attn.W_V[head] + attn.b_V[head]
        pattern = (q @ k.mT / attn.cfg.head_size**0.5).softmax(-1)
        torch.testing.assert_close(cache["decoder.0.cross_attn.hook_pattern"][:, head], pattern, **EXACT)
        written = written + pattern @ v @ attn.W_O[head]
    torch.testing.assert_close(cache["decoder.0.hook_cross_attn_out"], written, **EXACT)


@torch.no_grad()
@given(model=models(), source=tokens(), target=tokens(), seed=SEEDS)
def test_an_edited_value_of_the_source_is_what_the_decoder_reads(
    model: EncoderDecoder, source: Tensor, target: Tensor, seed: int
) -> None:
    """Values of another source, at every layer, with its keys: the other source's logits."""
    other = torch.randint(D_VOCAB, source.shape, generator=torch.Generator().manual_seed(seed))
    names = [name for name in model.hook_dict if name.endswith(("cross_attn.hook_k", "cross_attn.hook_v"))]
    _, cache = model.run_with_cache(other, target, names_filter=names)
    hooks = [(name, lambda value, hook, name=name: cache[name]) for name in names]
    patched = model.run_with_hooks(source, target, fwd_hooks=hooks)
    torch.testing.assert_close(patched, model(other, target), **EXACT)


@given(model=models())
def test_a_saved_model_comes_back_to_the_last_bit(model: EncoderDecoder, tmp_path_factory: Any) -> None:
    back = load(model.save(tmp_path_factory.mktemp("saved") / "model"))
    assert type(back) is EncoderDecoder
    assert back.cfg == model.cfg
    theirs = dict(back.named_parameters())
    assert all(torch.equal(theirs.pop(name), parameter) for name, parameter in model.named_parameters())
    assert not theirs


@torch.no_grad()
@given(model=models(), source=tokens(), target=tokens())
def test_the_loss_is_the_mean_surprise_of_the_targets_tokens(
    model: EncoderDecoder, source: Tensor, target: Tensor
) -> None:
    log_probs = model(source, target).log_softmax(-1)
    rows, places = torch.arange(len(target))[:, None], torch.arange(target.shape[1] - 1)
    surprise = -log_probs[rows, places, target[:, 1:]]
    torch.testing.assert_close(model(source, target, return_type="loss"), surprise.mean(), **EXACT)


BLOCK = (
    *("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"),
    *("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in"),
    *(f"{norm}.{point}" for norm in ("ln1", "ln2") for point in ("hook_scale", "hook_normalized")),
    *("mlp.hook_pre", "mlp.hook_post"),
)
ATTENTION = ("hook_q", "hook_k", "hook_v", "hook_attn_scores", "hook_pattern", "hook_z", "hook_result")
CROSS = (
    *("hook_cross_attn_in", "hook_cross_attn_out", "hook_resid_mid_cross", "ln3.hook_scale", "ln3.hook_normalized"),
    *(f"cross_attn.{point}" for point in ATTENTION),
)


def test_hook_points_have_the_names_of_hooked_encoder_decoder() -> None:
    """All points of transformer-lens 3.9's T5 but `rel_pos_hook`, which nothing passes there."""
    names = {"hook_embed", "unembed.hook_in", "unembed.hook_out"}
    for side in ("encoder", "decoder"):
        points = (*BLOCK, *(f"attn.{point}" for point in ATTENTION), *(CROSS if side == "decoder" else ()))
        names |= {f"{side}.0.{point}" for point in points}
        names |= {f"{side}_final_ln.hook_scale", f"{side}_final_ln.hook_normalized"}
    relative = {"positional_embedding_type": "none", "relative_attention_num_buckets": 8}
    own = set(EncoderDecoder(small(normalization_type="RMS", **relative)).hook_dict) - names
    assert names <= set(EncoderDecoder(small(normalization_type="RMS", **relative)).hook_dict)
    assert own == {
        "hook_decoder_embed",
        *(f"{side}_positions.rel_pos_bias.hook_bias" for side in ("encoder", "decoder")),
    }


# -- decoding --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@given(model=models(), source=tokens(3))
def test_greedy_is_the_likeliest_token_again_and_again(model: EncoderDecoder, source: Tensor) -> None:
    row = torch.zeros(3, 1, dtype=torch.long)
    for _ in range(5):
        row = torch.cat([row, model(source, row)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(source, 5, stop_tokens=()), row)


@torch.no_grad()
@given(model=models(), source=tokens(2))
def test_beams_as_wide_as_all_continuations_find_the_likeliest_of_all(model: EncoderDecoder, source: Tensor) -> None:
    """Every target of three tokens, scored one by one."""
    every = torch.tensor(list(itertools.product(range(D_VOCAB), repeat=3)))
    found = model.generate(source, 3, num_beams=D_VOCAB**2, stop_tokens=())
    for row in range(2):
        target = torch.cat([torch.zeros(len(every), 1, dtype=torch.long), every], 1)
        log_probs = model(source[row].expand(len(every), -1), target).log_softmax(-1)
        scores = log_probs[:, :-1].gather(-1, every[..., None]).sum((1, 2))
        assert torch.equal(found[row, 1:], every[scores.argmax()])


def test_a_beam_that_ends_early_wins_by_its_score_for_length() -> None:
    """Two tokens, one of which ends: the short continuation has probability 0.5, the long ones 0.5 · 0.9 · 0.9 ..."""
    probabilities = torch.tensor([0.9, 0.1])  # after token 0; at the start both have one half

    def step(newest: Tensor, parents: Tensor) -> Tensor:
        return torch.where((newest == 2)[:, None], torch.tensor([0.5, 0.5]).log(), 0.0).where(
            (newest == 2)[:, None], probabilities.log()
        )

    start = torch.tensor([2])
    short = beam_search(step, start, 2, 4, [1], padding=9, length_penalty=0.0)
    long = beam_search(step, start, 2, 4, [1], padding=9, length_penalty=2.0)
    assert short.tolist() == [[2, 1]]
    assert long.tolist() == [[2, 0, 0, 0, 0]]


def test_generation_stops_at_the_end_token_and_fills_up() -> None:
    model = EncoderDecoder(small(eos_token_id=4, pad_token_id=7, unembed_bias=True))
    with torch.no_grad():
        model.unembed.bias[4] = 1e4
    assert model.generate(torch.tensor([[1, 2]]), 6).tolist() == [[0, 4]]
    sampled = model.generate(torch.tensor([[1, 2], [3, 4]]), 6, temperature=1.0, seed=0)
    assert sampled.tolist() == [[0, 4], [0, 4]]


def test_the_same_seed_draws_the_same_targets() -> None:
    model = EncoderDecoder(small())
    source = torch.tensor([[1, 2, 3]]).expand(8, -1)
    drawn = [model.generate(source, 6, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# -- relative positions ----------------------------------------------------------------------------------------------


@given(half=st.sampled_from([2, 4, 8]), far=st.integers(20, 200), bidirectional=st.booleans())
def test_near_distances_have_their_own_bucket_and_far_ones_share(half: int, far: int, bidirectional: bool) -> None:
    n_buckets = 2 * half * (2 if bidirectional else 1)
    earlier = distance_buckets(-torch.arange(4 * far), n_buckets, far, bidirectional)
    assert earlier[:half].tolist() == list(range(half))
    assert (earlier.diff() >= 0).all()
    assert (earlier[far:] == 2 * half - 1).all()
    later = distance_buckets(torch.arange(1, 4 * far), n_buckets, far, bidirectional)
    assert torch.equal(later, earlier[1:] + 2 * half if bidirectional else torch.zeros_like(later))


def test_the_bias_depends_on_distance_alone() -> None:
    bias = RelativePositionBias(8, 10, 3, bidirectional=True)
    with torch.no_grad():
        bias.weight.normal_()
    whole = bias(6, 6)
    for offset in range(-5, 6):
        diagonal = whole.diagonal(offset, 2, 3)
        assert torch.equal(diagonal, diagonal[..., :1].expand_as(diagonal))
    assert torch.equal(bias(2, 6), whole[:, :, 4:])


# -- what is refused -------------------------------------------------------------------------------------------------


def small(**changes: Any) -> EncoderDecoderConfig:
    sizes: dict[str, Any] = {"n_layers": 1, "n_heads": 2, "d_model": 8, "d_vocab": D_VOCAB, "n_ctx": N_CTX, "seed": 0}
    return EncoderDecoderConfig(**sizes | {"init_range": 0.5} | changes)


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
LONG = torch.zeros(2, N_CTX + 1, dtype=torch.long)
NOTHING = torch.tensor([[True, True, True], [False, False, False]])
REFUSED = {
    "no target": (lambda m: m(IDS), "the decoder has no target; expected decoder_input="),
    "a source longer than the window": (lambda m: m(LONG, IDS), "11 positions do not fit the context window of 10"),
    "a target longer than the window": (lambda m: m(IDS, LONG), "11 positions do not fit the context window of 10"),
    "a mask that hides a source": (lambda m: m(IDS, IDS, attention_mask=NOTHING), "hides all tokens of row 1"),
    "a mask that hides a target": (lambda m: m(IDS, IDS, decoder_attention_mask=NOTHING), "hides all tokens of row 1"),
    "a mask of another shape": (lambda m: m(IDS, IDS[:, :2], decoder_attention_mask=IDS > 0), "expected the input's"),
    "fewer targets": (lambda m: m(IDS, IDS[:1]), "2 sources and 1 targets"),
    "ids out of range": (lambda m: m(IDS, IDS + D_VOCAB), "expected 0 to 10"),
    "vectors": (lambda m: m(IDS.float(), IDS), "token ids"),
    "text without a tokenizer": (lambda m: m("one", "two"), "has no tokenizer"),
    "a return_type": (lambda m: m(IDS, IDS, return_type="logit"), "expected 'logits', 'loss', 'both' or None"),
    "too many new tokens": (lambda m: m.generate(IDS, N_CTX + 1), "max_new_tokens=11"),
    "no beams": (lambda m: m.generate(IDS, 2, num_beams=0), "num_beams=0"),
    "beams and sampling": (lambda m: m.generate(IDS, 2, num_beams=2, temperature=1.0), "temperature=0 with beams"),
    "a temperature": (lambda m: m.generate(IDS, 2, temperature=-1.0), "temperature=-1.0"),
    "two sources for one decoder": (lambda m: m.decoder_given(IDS), "2 sources; expected one"),
    "two targets for one encoder": (lambda m: m.encoder_given(IDS), "2 targets; expected one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_words(case: str, unchecked: None) -> None:
    run, words = REFUSED[case]
    with pytest.raises(LabError, match=words.replace("(", r"\(").replace(")", r"\)")):
        run(EncoderDecoder(small()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_dir": "causal"}, "expected 'bidirectional'"),
        ({"attn_only": True}, "no parallel or attention-only blocks"),
        ({"norm_places": "both"}, "expected 'pre' or 'stream'"),
        ({"relative_attention_num_buckets": 6}, "expected a multiple of 4"),
        ({"relative_attention_num_buckets": 8, "relative_attention_max_distance": 4}, "expected more than 4"),
        ({"decoder_start_token_id": D_VOCAB}, "decoder_start_token_id=11"),
        ({"n_decoder_layers": 0}, "n_decoder_layers=0"),
        ({"n_decoder_heads": 3}, "n_decoder_heads=3"),
    ],
)
def test_contradictory_sizes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError, match=words):
        small(**changes)


def test_texts_are_padded_by_themselves() -> None:
    model = EncoderDecoder(small(d_vocab=7, decoder_start_token_id=6, default_prepend_bos=False), characters("abcdef"))
    together = model(["abc", "a"], ["fe", "d"])
    assert torch.equal(model.target_tokens("fe")[0], torch.tensor([[6, 5, 4]]))
    torch.testing.assert_close(together[1, :2], model("a", "d")[0], atol=1e-5, rtol=0.0)
    assert model("abc").shape == (1, 1, 7)  # the start token alone


def test_text_comes_out_without_start_and_end() -> None:
    model = EncoderDecoder(small(d_vocab=7, decoder_start_token_id=6, default_prepend_bos=False), characters("abcdef"))
    with torch.no_grad():
        model.unembed.weight.zero_()
    assert model.generate("abc", 3) == "aaa"  # of equals the first
    searched = model.generate(["abc", "b"], 2, num_beams=2)
    assert [len(text) for text in searched] == [2, 2]
    assert set("".join(searched)) <= set("abcdef")


def test_a_damaged_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    EncoderDecoder(small()).save(tmp_path / "model")
    text = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(text.replace('"n_decoder_layers": 1', '"n_decoder_layers": 2'))
    with pytest.raises(LabError, match=r"missing 'decoder\.1"):
        load(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(text.replace('"encoder-decoder"', '"encoder-decodr"', 1))
    with pytest.raises(LabError, match="closest: 'encoder-decoder'"):
        load(tmp_path / "model")
