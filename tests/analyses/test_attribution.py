"""Direct logit attribution by its formula, prompt by prompt and answer by answer; its sums are in test_identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import head_attribution, neuron_attribution, source_attribution
from interp import LabError, PromptPairs
from interp.results import Result
from models import GPT, TransformerConfig
from tests.pairs import alone, pairs, random_pairs
from tests.strategies import ADDITIVE, models, random_model

TOLERANCE = 1e-9  # float64

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "d_model": 12, "d_mlp": 10, "d_vocab": 11, "n_ctx": 8}
CONFIGS = {
    "layer-norm": TransformerConfig(**SIZES, unembed_bias=True),
    "shared-keys-rms": TransformerConfig(
        **SIZES, n_key_value_heads=2, normalization_type="RMS", positional_embedding_type="none", gated_mlp=True
    ),
    "no-norm": TransformerConfig(**SIZES, normalization_type=None, positional_embedding_type="sinusoidal"),
}


def share(model: GPT, cache: Any, vector: torch.Tensor, pairs: PromptPairs, prompt: int) -> float:
    """(centre(c) · gain / scale) · (mean of the right W_U - mean of the wrong W_U), at the end of the prompt."""
    if model.cfg.normalization_type == "LN":
        vector = vector - vector.mean()
    if model.cfg.normalization_type is not None:
        vector = vector / cache["ln_final.hook_scale"][0, -1] * model.ln_final.w
    logits = vector @ model.W_U
    right, wrong = (ids[prompt][ids[prompt] >= 0] for ids in (pairs.right, pairs.wrong))
    return float(logits[right].mean() - logits[wrong].mean())


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(CONFIGS[request.param], seed=11)


@pytest.fixture(params=["left", "right"], scope="module")
def prompts(request: pytest.FixtureRequest) -> PromptPairs:
    return random_pairs(2, (5, 3), request.param)


def runs(model: GPT, pairs: PromptPairs) -> list[Any]:
    """The cache of each clean prompt, run alone."""
    return [model.run_with_cache(alone(pairs, i)[0], names_filter=lambda name: True)[1] for i in range(len(pairs))]


@torch.no_grad()
def test_heads_and_mlps_have_the_share_that_the_formula_gives(model: GPT, prompts: PromptPairs) -> None:
    result = head_attribution(model, prompts)
    for prompt, cache in enumerate(runs(model, prompts)):
        for layer, head in np.ndindex(2, 4):
            expected = share(model, cache, cache["result", layer][0, -1, head], prompts, prompt)
            assert result.by_prompt[layer, head, prompt] == pytest.approx(expected, abs=TOLERANCE)
    for layer in range(2):
        shares = [share(model, c, c["mlp_out", layer][0, -1], prompts, i) for i, c in enumerate(runs(model, prompts))]
        assert result.mlp[layer] == pytest.approx(np.mean(shares), abs=TOLERANCE)


@torch.no_grad()
def test_embeddings_and_biases_are_parts_of_their_own(model: GPT, prompts: PromptPairs) -> None:
    result = head_attribution(model, prompts)
    parts = dict(zip(result.labels["part"], result.other.tolist(), strict=True))
    expected: dict[str, list[float]] = {name: [] for name in parts}
    for prompt, cache in enumerate(runs(model, prompts)):
        vectors = {"embed": cache["hook_embed"][0, -1], "b_O": sum(block.attn.b_O for block in model.blocks)}
        if "pos_embed" in parts:
            vectors["pos_embed"] = cache["hook_pos_embed"][0, -1]
        for name, vector in vectors.items():
            expected[name].append(share(model, cache, vector, prompts, prompt))
        right, wrong = (ids[prompt][ids[prompt] >= 0] for ids in (prompts.right, prompts.wrong))
        for name, logits in {"b_U": model.b_U, "ln_final.b": final_bias_logits(model)}.items():
            if name in parts:
                expected[name].append(float(logits[right].mean() - logits[wrong].mean()))
    has_positions = model.cfg.positional_embedding_type != "none"
    assert ("pos_embed" in parts, "ln_final.b" in parts) == (has_positions, model.cfg.normalization_type == "LN")
    for name, value in parts.items():
        assert value == pytest.approx(np.mean(expected[name]), abs=TOLERANCE), name


def final_bias_logits(model: GPT) -> torch.Tensor:
    return getattr(model.ln_final, "b", torch.zeros(model.cfg.d_model, dtype=torch.float64)) @ model.W_U


@torch.no_grad()
def test_neurons_have_the_share_of_what_they_write(model: GPT, prompts: PromptPairs) -> None:
    values = neuron_attribution(model, prompts).values
    assert values.shape == (2, 10)
    caches = runs(model, prompts)
    for layer, neuron in np.ndindex(2, 10):
        shares = [
            share(model, c, c["mlp_post", layer][0, -1, neuron] * model.W_out[layer, neuron], prompts, i)
            for i, c in enumerate(caches)
        ]
        assert values[layer, neuron] == pytest.approx(np.mean(shares), abs=TOLERANCE)


@torch.no_grad()
def test_a_source_has_the_share_of_the_value_that_was_read_there(model: GPT, prompts: PromptPairs) -> None:
    values = source_attribution(model, prompts).values
    expected = np.zeros_like(values)
    for prompt, cache in enumerate(runs(model, prompts)):
        first = alone(prompts, prompt)[2]
        for layer, head, pos in np.ndindex(2, 4, cache["resid_pre", 0].shape[1]):
            kv_head = head // (4 // model.cfg.n_kv_heads)
            value = cache["v", layer][0, pos, kv_head] * cache["pattern", layer][0, head, -1, pos]
            written = value @ model.W_O[layer, head]
            expected[layer, head, first + pos] += share(model, cache, written, prompts, prompt) / len(prompts)
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)


@given(models(**ADDITIVE), pairs(), st.randoms(use_true_random=False))
def test_prompts_do_not_notice_each_other(model: GPT, pairs: PromptPairs, random: Any) -> None:
    order = random.sample(range(len(pairs)), len(pairs))
    together = head_attribution(model, pairs).by_prompt
    shuffled = head_attribution(model, pairs.take(torch.tensor(order))).by_prompt
    scale = max(1.0, float(np.abs(together).max()))
    np.testing.assert_allclose(together[..., order], shuffled, atol=TOLERANCE * scale)
    single = head_attribution(model, pairs[0]).by_prompt[..., 0]
    np.testing.assert_allclose(together[..., 0], single, atol=TOLERANCE * scale)


def test_a_model_without_mlps_has_shares_of_zero_for_them_and_no_neurons() -> None:
    model = random_model(TransformerConfig(**SIZES, attn_only=True), seed=1)
    np.testing.assert_array_equal(head_attribution(model, random_pairs(1)).mlp, np.zeros(2))
    with pytest.raises(LabError, match="has no MLPs"):
        neuron_attribution(model, random_pairs(1))


@pytest.mark.parametrize("analyse", [head_attribution, neuron_attribution, source_attribution])
def test_prompts_that_the_model_cannot_take_are_refused(analyse: Any) -> None:
    model = random_model(CONFIGS["layer-norm"], seed=1)
    with pytest.raises(LabError, match="the model's context is 8"):
        analyse(model, random_pairs(1, (9,)))
    with pytest.raises(LabError, match="the model's ids are 0 to 10"):
        analyse(model, random_pairs(1, (4,), d_vocab=100))


@pytest.mark.parametrize("analyse", [head_attribution, neuron_attribution, source_attribution])
def test_the_result_survives_a_file_and_is_a_table(analyse: Any, tmp_path: Path) -> None:
    result = analyse(random_model(CONFIGS["layer-norm"], seed=1), random_pairs(1))
    result.save(tmp_path / "shares.safetensors")
    loaded = Result.load(tmp_path / "shares.safetensors")
    assert loaded == result
    assert loaded.provenance.metric == "logit_diff"
    assert len(result.to_dataframe()) == result.values.size
    assert abs(result.top(1)[0].value) == np.abs(result.values).max()


def test_the_result_is_a_page() -> None:
    page = head_attribution(random_model(CONFIGS["layer-norm"], seed=1), random_pairs(1)).to_html()
    assert "Head attribution" in page


@pytest.mark.parametrize(
    ("feature", "said"),
    [({"output_logits_soft_cap": 5.0}, "Try logit_lens, which caps them too")],
)
@pytest.mark.parametrize("analysis", [head_attribution, neuron_attribution, source_attribution])
def test_where_shares_do_not_add_up_there_are_none(analysis: Any, feature: dict[str, Any], said: str) -> None:
    model = random_model(TransformerConfig(**SIZES, **feature), seed=1)
    with pytest.raises(LabError, match=said):
        analysis(model, random_pairs(1))


@pytest.mark.parametrize("places", ["post", "both"])
@given(data=st.data())
def test_with_norms_after_attention_and_mlps_parts_sum_to_the_logit_difference(places: str, data: Any) -> None:
    """1e-10 of the largest share, in float64; heads also by source, and MLPs without their biases by neuron."""
    model = data.draw(models(norm_places=places, normalization_type=data.draw(NORMS), **ADDITIVE))
    prompts = data.draw(pairs())
    found = head_attribution(model, prompts)
    largest = max(1.0, *(float(np.abs(part).max(initial=0)) for part in (found.by_prompt, found.mlp, found.other)))
    assert abs(found.total() - found.logit_diff.mean()) <= 1e-10 * largest
    sources = source_attribution(model, prompts).values
    assert np.abs(sources.sum(-1) - found.values).max() <= 1e-10 * max(largest, float(np.abs(sources).max()))


NORMS = st.sampled_from(["LN", "RMS"])
