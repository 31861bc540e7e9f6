"""Ways of sampling, measured: against plain loops, on models that cannot write by themselves, and on the town.

Float64 models of order one: 1e-9 is thousands of roundings.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses import sampling_effects
from analyses.sampling import MEASURES, distinct_share
from interp import LabError
from interp.results import Result
from interp.sampling import Sampling
from models import GPT, TransformerConfig, load
from models.encoder_decoder import EncoderDecoder
from models.encoder_decoder_config import EncoderDecoderConfig
from models.hooked_transformer import HookedTransformer
from tests.analyses.tiny_models import interp
from tests.strategies import N_CTX, SEEDS, models, random_model

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 5, "d_vocab": 11, "n_ctx": 24}
MODEL = random_model(TransformerConfig(**SIZES), seed=7)
PROMPT = torch.tensor([3, 1, 4])
WAYS = (Sampling(0), Sampling(0.5), Sampling(2), Sampling(top_k=3), Sampling(top_p=0.6))


def probabilities(logits: list[float], temperature: float = 1.0) -> list[float]:
    """softmax(logits / temperature), plainly."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


@settings(max_examples=6)
@given(models(), SEEDS, st.floats(0.2, 3))
def test_entropy_and_log_probability_are_a_plain_loops(model: GPT, seed: int, temperature: float) -> None:
    found = sampling_effects(model, PROMPT, [Sampling(temperature)], n=2, max_new_tokens=N_CTX - 2, seed=seed)
    for sample, new in enumerate(found.tokens[0].tolist()):
        for i, token in enumerate(new):
            logits = model(torch.tensor([PROMPT.tolist() + new[:i]]))[0, -1].tolist()
            drawn_from = probabilities(logits, temperature)
            entropy = -sum(p * math.log(p) for p in drawn_from if p > 0)
            assert found.entropy[0, sample, i] == pytest.approx(entropy, abs=1e-9)
            assert found.log_prob[0, sample, i] == pytest.approx(math.log(probabilities(logits)[token]), abs=1e-9)


@given(st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=3), st.integers(1, 6))
def test_the_share_of_distinct_n_grams_is_counted_by_hand(texts: list[list[int]], n: int) -> None:
    seen: list[str] = []
    for text in texts:
        for start in range(5):
            if start + n <= 5:
                seen.append("".join(map(str, text[start : start + n])))
    share = distinct_share(np.array(texts), n)
    assert math.isnan(share) if n > 5 else share == len(dict.fromkeys(seen)) / len(seen)


def test_a_text_that_goes_round_in_circles_repeats() -> None:
    """Of 8 tokens a b a b a b a b: 2 of 7 2-grams are different."""
    assert distinct_share(np.array([[0, 1] * 4]), 2) == 2 / 7
    assert distinct_share(np.arange(8)[None], 2) == 1


def test_what_is_measured_is_what_the_model_writes() -> None:
    found = sampling_effects(MODEL, PROMPT, WAYS, n=3, max_new_tokens=9, seed=5)
    for i, way in enumerate(WAYS):
        settings = (way.temperature, way.top_k, way.top_p)
        written = MODEL.generate(PROMPT.repeat(3, 1), 9, *settings, stop_tokens=(), seed=5)
        assert written[:, 3:].tolist() == found.tokens[i].tolist()


def test_a_model_that_cannot_resume_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = sampling_effects(MODEL, PROMPT, WAYS, n=3, max_new_tokens=9, seed=5)
    lengths: list[int] = []
    monkeypatch.setattr("analyses.sampling.ResumableModel", ())  # nothing is one
    with MODEL.hooks([("hook_embed", lambda embed, hook: lengths.append(embed.shape[1]))]):
        found = sampling_effects(MODEL, PROMPT, WAYS, n=3, max_new_tokens=9, seed=5)
    assert lengths == len(WAYS) * list(range(3, 12))
    assert np.array_equal(found.tokens, ours.tokens)
    np.testing.assert_allclose(found.entropy, ours.entropy, atol=1e-9)


def test_the_layer_of_hookedtransformers_habits_writes_the_same() -> None:
    hooked = HookedTransformer.of(MODEL)
    asked = {"n": 2, "max_new_tokens": 5, "seed": 5}
    assert np.array_equal(
        sampling_effects(hooked, PROMPT, WAYS, **asked).tokens, sampling_effects(MODEL, PROMPT, WAYS, **asked).tokens
    )


def test_greedy_texts_are_free_of_choice_and_alike() -> None:
    found = sampling_effects(MODEL, PROMPT, [Sampling(0), Sampling(1)], n=4, max_new_tokens=12)
    assert not found.entropy[0].any()
    assert (found.tokens[0] == found.tokens[0, 0]).all()
    assert (found.tokens[1] != found.tokens[1, 0]).any()
    assert found.distinct[0, 0] <= 12 / (4 * 12)


def test_the_limits_hold_for_every_token() -> None:
    """At most log k nats among k tokens; top-k 1 and limits that cut nothing are greedy and plain sampling."""
    ways = [Sampling(top_k=3), Sampling(top_k=1), Sampling(0), Sampling(top_k=11), Sampling(top_p=1), Sampling(1)]
    found = sampling_effects(MODEL, PROMPT, ways, n=3, max_new_tokens=9)
    assert (found.entropy[0] <= math.log(3) + 1e-9).all()
    for same, plain in ((1, 2), (3, 5), (4, 5)):
        assert np.array_equal(found.tokens[same], found.tokens[plain])
        assert np.array_equal(found.entropy[same], found.entropy[plain])


def test_texts_shorter_than_an_n_gram_have_no_repetition_to_tell() -> None:
    found = sampling_effects(MODEL, PROMPT, [Sampling()], n=1, max_new_tokens=2)
    assert np.isnan(found.repetition[0, 0]).tolist() == [False, False, True, True]


def test_in_the_town_greedy_goes_round_in_circles_and_heat_says_the_unlikely() -> None:
    ways = [Sampling(0), Sampling(1), Sampling(2)]
    prompt = "When Mary and John went to the store,"
    found = sampling_effects(load("town"), prompt, ways, n=4, max_new_tokens=40)
    greedy, plain, hot = ({name: values[i].mean() for name, values in found.by_sample().items()} for i in range(3))
    repeats = MEASURES[2]
    assert greedy[repeats] > 0.4 > 0.1 > plain[repeats] >= hot[repeats]
    assert hot["log probability"] < plain["log probability"] - 0.5
    assert greedy["entropy"] == 0 < plain["entropy"] < hot["entropy"]


def test_a_result_is_kept_drawn_and_tabled(tmp_path: Path) -> None:
    found = sampling_effects(MODEL, PROMPT, WAYS, n=2, max_new_tokens=5)
    found.save(tmp_path / "found.safetensors")
    assert Result.load(tmp_path / "found.safetensors") == found
    assert len(found.plot().data) == 2 * len(MEASURES)
    page = found.to_html(tmp_path / "found.html")
    assert "greedy" in page
    assert len(found.to_dataframe()) == found.tokens.size
    assert len(found.rows()) == len(WAYS)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ways": []}, "0 ways"),
        ({"n": 0}, "n=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 23}, "3 tokens and 23 new ones .* window of 24; try max_new_tokens=22"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_start(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        sampling_effects(MODEL, PROMPT, **asked)


def test_an_encoder_asked_to_write_says_why_not() -> None:
    encoder = random_model(TransformerConfig(**SIZES, attention_dir="bidirectional"), seed=1)
    with pytest.raises(LabError, match="its attention is bidirectional"):
        sampling_effects(encoder, PROMPT)
    both = encoder_decoder()
    for reader in (both, both.encoder_given(PROMPT[None])):
        with pytest.raises(LabError, match="does not predict each token from those before it"):
            sampling_effects(reader, PROMPT)


def test_a_decoder_writes_given_a_source() -> None:
    """Its own greedy text begins with its start token."""
    both, source = encoder_decoder(), torch.tensor([[5, 6, 7]])
    own = both.generate(source, 6, stop_tokens=())[0]
    found = sampling_effects(both.decoder_given(source), own[:1], [Sampling(0)], n=1, max_new_tokens=6)
    assert found.tokens[0, 0].tolist() == own[1:].tolist()


def encoder_decoder() -> EncoderDecoder:
    cfg = EncoderDecoderConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=16, seed=0, init_range=0.5)
    return EncoderDecoder(cfg, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_widened_before_they_are_measured(dtype: torch.dtype) -> None:
    found = sampling_effects(GPT(MODEL.cfg, dtype=dtype), PROMPT, WAYS, n=2, max_new_tokens=5)
    assert found.entropy.dtype == found.log_prob.dtype == np.float32
    assert np.isfinite(found.entropy).all()


@pytest.mark.gpu
def test_it_runs_on_a_gpu() -> None:
    """Draws of another device are others; greedy text is the same in float64."""
    ours, there = (sampling_effects(model, PROMPT, WAYS, n=2, max_new_tokens=5) for model in (MODEL, gpu_twin(MODEL)))
    assert np.array_equal(ours.tokens[0], there.tokens[0])
    np.testing.assert_allclose(ours.log_prob[0], there.log_prob[0], atol=1e-9)


def gpu_twin(model: GPT) -> GPT:
    twin = GPT(model.cfg, device="cuda", dtype=torch.float64)
    twin.load_state_dict(model.state_dict())
    return twin


def test_on_the_command_line_each_option_is_a_way(town: Path) -> None:
    asked = ("--temperature", 0, "--temperature", 2, "--top-k", 3, "--top-p", 0.5, "-n", 2, "--max-new-tokens", 6)
    arguments = ("sampling", "--model", town, "--prompt", "When Mary and John", "--seed", 3, *asked)
    told = json.loads(interp(*arguments, "--json").stdout)
    ways = [Sampling(0), Sampling(2), Sampling(top_k=3), Sampling(top_p=0.5)]
    found = sampling_effects(load(town), "When Mary and John", ways, n=2, max_new_tokens=6, seed=3)
    assert told["labels"]["way"] == ["greedy", "temperature 2", "top-k 3", "top-p 0.5"]
    assert told["tokens"] == found.tokens.tolist()
    shown = interp(*arguments).stdout
    assert "repeated 3-grams" in shown
    assert "top-p 0.5" in shown


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--temperature", -1), 2, "temperature"),
        (("--top-p", 0), 2, "top-p"),
        (("--max-new-tokens", 100), 1, "do not fit into the context window"),
    ],
)
def test_bad_options_are_refused_with_a_reason(town: Path, options: tuple[Any, ...], code: int, message: str) -> None:
    result = interp("sampling", "--model", town, "--prompt", "When Mary", *options)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
