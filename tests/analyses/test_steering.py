"""Steering against plain hooks, the identities of its edits, and what it does to the shipped model's answers.

Float64 models of order one: 1e-9 relative to the largest number is thousands of roundings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import (
    ablate_direction,
    add_direction,
    direction_ablation,
    generate_with,
    steering_effect,
    steering_vectors,
)
from interp import LabError, PromptPairs, edits, tasks
from interp.results import Result
from interp.sites import Site
from models import GPT, TransformerConfig, load
from models.loss import next_token_loss
from tests.analyses.tiny_models import interp
from tests.pairs import alone, random_pairs
from tests.strategies import SEEDS, models, random_model

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 5, "d_vocab": 11, "n_ctx": 8}
MODEL = random_model(TransformerConfig(**SIZES), seed=7)
PAIRS = random_pairs(3, (5, 4), "left")
UNIT = torch.eye(8, dtype=torch.float64)[2]
FRANCE = [f"The {kind} capital of France is" for kind in ("famous", "modern")]
JAPAN = [f"The {kind} capital of Japan is" for kind in ("famous", "modern")]
ASKED = "Today the capital of Japan is"


def assert_close(found: Any, expected: Any) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * scale)


def vector_of(seed: int, width: int = 12) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=6)
@given(models(), SEEDS, st.sampled_from(["left", "right"]))
def test_the_mean_difference_is_taken_at_the_last_real_tokens(model: GPT, seed: int, side: str) -> None:
    pairs = random_pairs(seed, (5, 2, 4), side)
    found = steering_vectors(model, pairs)
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.hook_resid_post"
        ends: list[list[Tensor]] = [[], []]
        for prompt in range(3):
            for end, tokens in zip(ends, alone(pairs, prompt)[:2], strict=True):
                end.append(model.run_with_cache(tokens)[1][name][0, -1].detach())
        clean, corrupted = (torch.stack(end) for end in ends)
        difference = clean.mean(0) - corrupted.mean(0)
        assert_close(found.vector(layer).numpy(), difference.numpy())
        length = difference.norm() / (clean.norm(dim=1).mean() + corrupted.norm(dim=1).mean()) * 2
        assert found.length[layer] == pytest.approx(float(length), rel=1e-9)


def test_sets_may_be_ids_of_any_lengths_and_the_other_way_round_is_the_opposite() -> None:
    toward, away = [[1, 2, 3], [4]], torch.tensor([[5, 6], [7, 8]])
    there, back = steering_vectors(MODEL, toward, away), steering_vectors(MODEL, away, toward)
    assert_close(there.values, -back.values)
    np.testing.assert_allclose(steering_vectors(MODEL, away, away).values, 0, atol=1e-12)


@given(models(), SEEDS, st.sampled_from([None, -1]))
def test_the_effect_equals_a_loop_with_hooks(model: GPT, seed: int, pos: int | None) -> None:
    pairs, vector, layer = random_pairs(seed, (4, 3)), vector_of(seed), model.cfg.n_layers - 1
    found = steering_effect(model, pairs, vector, layer, (-1.5, 0.0, 2.0), pos=pos)
    name = f"blocks.{layer}.hook_resid_post"
    for row, strength in enumerate((-1.5, 0.0, 2.0)):
        losses = []
        for prompt in range(2):
            tokens, _, _ = alone(pairs, prompt)

            def steer(old: Tensor, hook: Any = None, strength: float = strength) -> Tensor:
                new = old.clone()
                new[:, slice(None) if pos is None else pos] += strength * vector
                return new

            with torch.no_grad():
                logits = model.run_with_hooks(tokens, fwd_hooks=[(name, steer)])
            right, wrong = ([i for i in ids[prompt].tolist() if i >= 0] for ids in (pairs.right, pairs.wrong))
            difference = float(logits[0, -1, right].mean() - logits[0, -1, wrong].mean())
            assert_close(found.raw[row, prompt], difference)
            losses.append(float(next_token_loss(logits, tokens)))
        assert_close(found.loss[row], np.mean(losses))
    assert found.values[1] == 0
    assert found.loss[1] == pytest.approx(found.base_loss)
    assert found.length[0] == pytest.approx(1.5 / 2 * found.length[2])


@given(models(norm_places="pre"), SEEDS)
def test_an_ablated_direction_is_nowhere_in_the_stream_that_is_read(model: GPT, seed: int) -> None:
    vector = vector_of(seed)
    kinds = ["hook_resid_pre", "hook_resid_mid"]
    names = [name for name in model.hook_dict if name.split(".")[-1] in kinds]
    with torch.no_grad(), model.hooks([edit.as_hook() for edit in ablate_direction(model, vector)]):
        _, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]), names_filter=[*names, "unembed.hook_in"])
        last = model(torch.tensor([[1, 2, 3]]), stop_at_layer=model.cfg.n_layers)
    for stream in [last, *(cache[name] for name in names)]:
        assert (stream @ vector).abs().max() < 1e-9 * max(1.0, float(stream.abs().max())) * float(vector.norm())


@settings(max_examples=4)
@given(SEEDS)
def test_ablation_minds_neither_length_nor_sign(seed: int) -> None:
    vector = vector_of(seed, 8)
    found = direction_ablation(MODEL, PAIRS, torch.stack([vector, -3 * vector]))
    assert_close(found.values[0], found.values[1])
    assert_close(found.loss[0], found.loss[1])


def test_ablating_what_the_stream_lacks_changes_nothing() -> None:
    """With every writer's part along a coordinate at zero, that coordinate can go."""
    model = random_model(TransformerConfig(**SIZES), seed=7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("embed", "pos_embed")):
                weight[:, 2] = 0
            elif ".attn.o." in name or ".mlp.out." in name:
                weight[2] = 0
    assert np.abs(direction_ablation(model, PAIRS, UNIT[None]).values).max() < 1e-9


class TestGeneration:
    def test_without_edits_it_is_generation(self) -> None:
        prompt = torch.tensor([[1, 2, 3]])
        plain = MODEL.generate(prompt, max_new_tokens=4, temperature=0.0)
        for changes in ([], add_direction(UNIT, 0, 0.0)):
            assert torch.equal(generate_with(MODEL, changes, prompt, 4, 0.0), plain)

    def test_every_new_token_is_written_with_the_edit(self) -> None:
        """Greedy tokens equal those of edited whole runs, one after the other, which keep no keys and values."""
        changes = [*add_direction(3 * UNIT, 0), edits.project_out(Site("resid_post", 1), UNIT + 1)]
        row = torch.tensor([[1, 2, 3]])
        written = generate_with(MODEL, changes, row, 4, 0.0)
        for _ in range(4):
            with torch.no_grad(), model_with(changes):
                row = torch.cat([row, MODEL(row)[:, -1:].argmax(-1)], 1)
        assert torch.equal(written, row)

    def test_no_hook_is_left_behind(self) -> None:
        generate_with(MODEL, add_direction(UNIT, 0), torch.tensor([1]), 1)
        assert not any(point.has_hooks() for point in MODEL.hook_dict.values())

    @pytest.mark.parametrize(
        "change",
        [
            lambda: add_direction(UNIT, 0, pos=1),
            lambda: [edits.add(Site("resid_post", 0), torch.ones(1, 3, 8, dtype=torch.float64))],
        ],
    )
    def test_an_edit_of_certain_positions_is_refused(self, change: Any) -> None:
        with pytest.raises(LabError, match="belongs to certain positions"):
            generate_with(MODEL, change(), torch.tensor([1, 2, 3]), 2)


def model_with(changes: list[Any]) -> Any:
    return MODEL.hooks([edit.as_hook() for edit in changes])


class TestTown:
    """The capital of one country is moved to the place of another's, in words that made no part of the direction."""

    @pytest.fixture(scope="class", name="town_model")
    @staticmethod
    def _town_model() -> GPT:
        return load("town")

    def test_steering_changes_the_fact(self, town_model: GPT) -> None:
        vector = steering_vectors(town_model, FRANCE, JAPAN).vector(2)
        before, after = (generate_with(town_model, c, ASKED, 2, 0.0) for c in ([], add_direction(vector, 2)))
        assert (before, after) == (f"{ASKED} Tokyo.", f"{ASKED} Paris.")

    def test_more_strength_more_paris_and_the_other_sign_more_tokyo(self, town_model: GPT) -> None:
        vector = steering_vectors(town_model, FRANCE, JAPAN).vector(2)
        pairs = PromptPairs.from_text(town_model, [ASKED], [FRANCE[0]], [" Paris"], [" Tokyo"])
        found = steering_effect(town_model, pairs, vector, 2, (-1, 0, 0.5, 1), pos=-1)
        assert (np.diff(found.raw[:, 0]) > 0).all()
        assert found.raw[1, 0] < 0 < found.raw[3, 0]

    def test_ablating_what_tells_the_countries_apart_loses_the_fact_and_a_random_direction_does_not(
        self, town_model: GPT
    ) -> None:
        vector = steering_vectors(town_model, JAPAN, FRANCE).vector(2)
        pairs = PromptPairs.from_text(town_model, [ASKED], [FRANCE[0]], [" Tokyo"], [" Paris"])
        other = tasks.agreement(town_model, n=8)
        random = vector_of(0, 128).float()
        found = direction_ablation(town_model, pairs, torch.stack([vector, random]), others=other)
        assert found.raw[0, 0] < 0 < found.raw[1, 0]
        assert abs(found.values[1]) < 0.2 * abs(found.values[0])
        assert found.loss[0] < found.base_loss + 0.1  # other text is read as before


def test_results_survive_a_file_and_are_pages(tmp_path: Path) -> None:
    vectors = steering_vectors(MODEL, PAIRS)
    for i, found in enumerate(
        (vectors, steering_effect(MODEL, PAIRS, UNIT, 1), direction_ablation(MODEL, PAIRS, UNIT[None]))
    ):
        found.save(tmp_path / f"{i}.safetensors")
        assert Result.load(tmp_path / f"{i}.safetensors") == found
        assert found.title in found.to_html()
        assert len(found.to_dataframe())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda: steering_vectors(MODEL, [[1]]), ["give away="]),
        (lambda: steering_vectors(MODEL, [[1]], []), ["no prompts"]),
        (lambda: steering_vectors(MODEL, [[1]], [[]]), ["reference of shape"]),
        (lambda: steering_vectors(MODEL, [[1]], [[12]]), ["ids from 0 to 10"]),
        (lambda: steering_vectors(MODEL, PAIRS, site="z"), ["unknown site 'z'"]),
        (lambda: steering_effect(MODEL, PAIRS, UNIT, 2), ["layer from 0 to 1"]),
        (lambda: steering_effect(MODEL, PAIRS, UNIT, 0, ()), ["at least one"]),
        (lambda: steering_effect(MODEL, PAIRS, UNIT[:4], 0), ["d_model=8"]),
        (lambda: direction_ablation(MODEL, PAIRS, torch.zeros(1, 8)), ["direction is zero"]),
        (lambda: direction_ablation(MODEL, PAIRS, UNIT), ["d_model=8"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(call: Any, fragments: list[str]) -> None:
    with pytest.raises(LabError) as caught:
        call()
    for fragment in fragments:
        assert fragment in str(caught.value)


def steered(*arguments: object) -> dict:
    result = interp("steer", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_command_writes_with_and_without_the_direction() -> None:
    sets = ["--toward", FRANCE[0], "--toward", FRANCE[1], "--away", JAPAN[0], "--away", JAPAN[1]]
    found = steered("--prompt", ASKED, *sets, "--strength", "1", "--max-new-tokens", 2)
    assert found["written"] == {"unedited": f"{ASKED} Tokyo.", "1": f"{ASKED} Paris."}
    assert "ablated" in steered("--prompt", ASKED, *sets, "--ablate", "--max-new-tokens", 2)["written"]


def test_the_command_takes_ids(bare: Path) -> None:
    found = steered(
        "--model", bare, "--ids", "--prompt", "1 2", "--toward", "3 4", "--away", "5", "--max-new-tokens", 2
    )
    assert found["written"]["unedited"].startswith("1 2 ")


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["--toward", "a"], 2, "--away"),
        (["--toward", "", "--away", "b"], 2, "--toward is empty"),
        (["--toward", "a", "--away", "b", "--layer", "9"], 2, "layers 0 to 1"),
        (["--toward", "a", "--away", "b", "--ablate", "--strength", "2"], 2, "no --strength"),
        (["--toward", "a", "--away", "b", "--out", "x.csv"], 2, ".json"),
        (["--toward", "a", "--away", "b", "--max-new-tokens", "99"], 1, "context window"),
    ],
)
def test_the_command_says_what_is_wrong(town: Path, arguments: list[str], code: int, fragment: str) -> None:
    result = interp("steer", "--model", town, "--prompt", "Mary and", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert fragment in result.stderr
