"""A comparison finds where a copy of a model goes wrong: at the first hook point that sees the planted error."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses import compare
from analyses.comparison import ComparisonResult
from interp import LabError
from models import GPT, TransformerConfig
from tests.analyses.tiny_models import save_town, tokenizer
from tests.strategies import SEEDS, configs, models, padding_masks, random_model, token_batches

ROWS = token_batches(min_pos=2)
SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 16}
TOKENS = torch.tensor([[1, 2, 3, 1, 2, 5, 7], [4, 4, 6, 1, 0, 2, 10]])


def somewhere(model: GPT, data: st.DataObject) -> int:
    return data.draw(st.integers(0, model.cfg.n_layers - 1), label="layer")


class TestWhereAPortGoesWrong:
    @given(models(), ROWS)
    def test_a_model_and_its_copy_do_not_differ(self, model: GPT, tokens: torch.Tensor) -> None:
        found = compare(model, deepcopy(model), tokens)
        assert found.first_difference() is None
        assert found.first_difference(0.0) is None
        assert not found.difference.any()
        assert found.agreement == 1.0
        assert not found.kl.any()

    @given(models(), ROWS, st.data())
    def test_one_heads_value_weights_show_first_at_its_layers_values(
        self, model: GPT, tokens: torch.Tensor, data: st.DataObject
    ) -> None:
        other, layer = deepcopy(model), somewhere(model, data)
        head = data.draw(st.integers(0, model.cfg.n_kv_heads - 1), label="head")
        with torch.no_grad():
            other.blocks[layer].attn.W_V[head] *= data.draw(st.sampled_from([1.01, 1.5, -1.0]), label="factor")
        assert compare(model, other, tokens).first_difference() == f"blocks.{layer}.attn.hook_v"

    @given(st.sampled_from(["LN", "RMS"]).flatmap(lambda kind: models(normalization_type=kind)), ROWS, st.data())
    def test_one_norms_epsilon_shows_first_at_its_scale(
        self, model: GPT, tokens: torch.Tensor, data: st.DataObject
    ) -> None:
        other = deepcopy(model)
        norms = [name for name, part in other.named_modules() if name + ".hook_scale" in model.hook_dict]
        name = data.draw(st.sampled_from([n for n in norms if hasattr(other.get_submodule(n), "eps")]), label="norm")
        other.get_submodule(name).eps = data.draw(st.sampled_from([1e-3, 0.5]), label="epsilon")
        assert compare(model, other, tokens).first_difference() == f"{name}.hook_scale"

    @given(configs(positional_embedding_type="rotary", rotary_dim=None, rotary_base_local=None), SEEDS, ROWS, st.data())
    def test_a_wrong_rotary_base_shows_first_at_the_rotated_queries(
        self, cfg: TransformerConfig, seed: int, tokens: torch.Tensor, data: st.DataObject
    ) -> None:
        base = data.draw(st.sampled_from([500.0, 9000.0, 1e6]), label="base")
        wrong = random_model(replace(cfg, rotary_base=base), seed)
        assert compare(random_model(cfg, seed), wrong, tokens).first_difference() == "blocks.0.attn.hook_rot_q"

    @given(configs(), SEEDS, ROWS)
    def test_a_wrong_scale_of_attention_shows_first_at_its_scores(
        self, cfg: TransformerConfig, seed: int, tokens: torch.Tensor
    ) -> None:
        """Though masked scores are so large that every difference is nothing beside them."""
        right = random_model(replace(cfg, attn_scale=2.0), seed)
        wrong = random_model(replace(cfg, attn_scale=2.1), seed)
        assert compare(right, wrong, tokens).first_difference() == "blocks.0.attn.hook_attn_scores"

    @given(models(), models(), ROWS)
    def test_the_numbers_are_those_of_the_two_caches(self, a: GPT, b: GPT, tokens: torch.Tensor) -> None:
        """Of random models of other sizes and kinds there may be no hook points to compare, which is said."""
        found = compare(a, b, tokens)
        sizes = ("n_layers", "n_heads", "d_model", "d_head")
        if any(getattr(a.cfg, size) != getattr(b.cfg, size) for size in sizes):
            assert "hook points do not correspond" in found.left_out["hooks"]
            return
        caches = [model.run_with_cache(tokens)[1] for model in (a, b)]
        for name, relative, largest in zip(found.labels["hook"], found.relative, found.difference, strict=True):
            x, y = (cache[str(name)].detach() for cache in caches)
            if name.endswith("attn_scores"):
                causal = torch.ones(x.shape[-2:], dtype=torch.bool).tril()
                x, y = (torch.where(causal & (s > -1e300), s, 0.0) for s in (x, y))
            # float64 sums in another order
            assert largest == pytest.approx(float((x - y).abs().max()), rel=1e-12)
            if float(x.norm()) > 0:
                assert relative == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-9)

    def test_a_number_that_is_none_is_where_they_part_and_leaves_a_page(self, tmp_path: Path) -> None:
        model = random_model(TransformerConfig(**SIZES))
        broken = deepcopy(model)
        with torch.no_grad():
            broken.blocks[0].attn.W_V[1, 0, 0] = torch.nan
        found = compare(model, broken, TOKENS)
        assert found.first_difference() == "blocks.0.attn.hook_v"
        assert np.isnan(found.kl).all()
        assert "first difference: blocks.0.attn.hook_v" in found.to_html()
        found.save(tmp_path / "found.safetensors")
        assert ComparisonResult.load(tmp_path / "found.safetensors") == found
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["predictions"]["kl"][0] is None

    def test_rounding_of_the_coarser_dtype_is_no_difference(self) -> None:
        wide = random_model(TransformerConfig(**SIZES), dtype=torch.float32)
        coarse = deepcopy(wide).to(torch.bfloat16)
        found = compare(wide, coarse, TOKENS)
        assert found.first_difference() is None
        assert found.first_difference(1e-6) == "hook_embed"
        assert found.relative.dtype == np.float64


@pytest.fixture(scope="module")
def found() -> ComparisonResult:
    return compare(random_model(TransformerConfig(**SIZES)), random_model(TransformerConfig(**SIZES), 1), TOKENS)


@pytest.mark.gpu
def test_models_on_different_devices_are_compared() -> None:
    model = random_model(TransformerConfig(**SIZES), dtype=torch.float32)
    there = deepcopy(model).to("cuda")
    for a, b in ((model, there), (there, model), (there, deepcopy(there))):
        found = compare(a, b, TOKENS)
        assert found.first_difference() is None
        assert set(found.parts) == {"layers", "heads", "lens", "predictions", "losses"}


class TestTheWhole:
    def test_it_is_saved_and_read_with_all_its_parts(self, found: ComparisonResult, tmp_path: Path) -> None:
        found.save(tmp_path / "found.safetensors")
        back = ComparisonResult.load(tmp_path / "found.safetensors")
        assert back == found
        assert back.heads == found.heads
        assert set(back.parts) == {"layers", "heads", "lens", "predictions", "losses"}

    def test_it_knows_both_models(self, found: ComparisonResult) -> None:
        other = found.provenance.settings["compared with"]
        assert {len(str(weights)) for weights in (found.provenance.weights, other["weights"])} == {64}
        assert found.provenance.weights != other["weights"]
        assert found.provenance.prompts["text"] == TOKENS.tolist()

    def test_its_page_shows_every_part(self, found: ComparisonResult) -> None:
        page = found.to_html()
        assert all(part.title in page for part in found.parts.values())
        titles = [part.title for part in found.parts.values()]
        assert [section.title for section in found.sections()] == [found.title, *titles]

    def test_the_picture_marks_the_first_difference_on_a_logarithmic_axis(self, found: ComparisonResult) -> None:
        figure = found.plot()
        assert figure.layout.yaxis.type == "log"
        assert f"first difference: {found.first_difference()}" in [note.text for note in figure.layout.annotations]
        drawn = {trace.name: len(trace.x) for trace in figure.data if trace.mode == "markers"}
        assert sum(drawn.values()) == len(found.relative)
        assert drawn["residual stream"] == 6  # before, between and after, in two layers
        assert found.to_dataframe()["hook_label"].tolist() == list(found.labels["hook"])

    @settings(max_examples=6)  # each is five comparisons
    @given(models(), models(), st.data())
    def test_padding_changes_no_number(self, a: GPT, b: GPT, data: st.DataObject) -> None:
        tokens = data.draw(token_batches(min_pos=3))
        mask = data.draw(padding_masks(*tokens.shape))
        rows = [row[real] for row, real in zip(tokens, mask, strict=True)]
        padded, single = compare(a, b, tokens, mask), compare(a, b, rows)
        other = compare(a, b, torch.where(mask, tokens, 0), mask)
        assert padded == single == other
        if len(rows) > 1:
            alone = [compare(a, b, row) for row in rows]
            together = np.concatenate([found.kl for found in alone])
            # the batch is another order of sums, and a KL near zero is a difference of numbers near one
            np.testing.assert_allclose(padded.kl, together, rtol=1e-9, atol=1e-12)
            relative = np.array([found.difference for found in alone]).max(0)
            np.testing.assert_allclose(padded.difference, relative, rtol=1e-9, atol=1e-12)


class TestModelsThatDiffer:
    def test_other_sizes_leave_out_the_hook_points_alone(self) -> None:
        deep = random_model(TransformerConfig(**SIZES | {"n_layers": 3, "d_model": 12}))
        found = compare(random_model(TransformerConfig(**SIZES)), deep, TOKENS)
        assert list(found.left_out) == ["hooks"]
        assert "n_layers 2 and 3, d_model 8 and 12" in found.left_out["hooks"]
        assert found.layers is not None
        assert found.layers.values.shape == (3, 4)
        assert found.plot().data[0].type == "heatmap"
        assert list(found.to_dataframe()) == ["layer_a", "layer_a_label", "layer_b", "layer_b_label", "values"]
        with pytest.raises(LabError, match="no hook point was compared"):
            found.first_difference()

    def test_other_vocabularies_that_read_a_text_alike_leave_out_the_predictions_alone(self, tmp_path: Path) -> None:
        from models import load

        a = load(save_town(tmp_path / "a"))
        b = GPT(replace(a.cfg, d_vocab=len(tokenizer()) + 8), tokenizer())
        found = compare(a, b, "When Mary and John went to the store, John gave a drink to")
        assert list(found.left_out) == ["predictions"]
        assert "different vocabularies" in found.left_out["predictions"]
        with pytest.raises(LabError, match=r"the predictions were not compared: .*different vocabularies"):
            found.agreement  # noqa: B018 (a property that raises)
        assert found.losses is not None
        assert np.isfinite(found.losses.b).all()

    def test_one_token_leaves_what_one_token_gives(self) -> None:
        found = compare(
            random_model(TransformerConfig(**SIZES)), random_model(TransformerConfig(**SIZES), 1), TOKENS[0, :1]
        )
        assert set(found.parts) == {"predictions"}
        assert found.first_difference() == "hook_embed"
        assert set(found.left_out) == {"layers", "heads", "lens", "losses"}
        found.to_html()

    def test_token_ids_need_one_vocabulary(self) -> None:
        a, b = (random_model(TransformerConfig(**SIZES | {"d_vocab": size})) for size in (11, 12))
        with pytest.raises(LabError, match="vocabularies of 11 and 12 tokens"):
            compare(a, b, torch.tensor([1, 2]))
