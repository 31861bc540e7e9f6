"""Roles of heads: the evidence against a loop with plain hooks, and what is found in the shipped models.

The loop runs one prompt at a time. Attention is averaged in float32, so 1e-5; the other numbers are those of
`head_scores`, `copying_scores` and `head_attribution`, which have tests of their own.
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

from analyses import head_attribution, head_roles, head_scores
from analyses.role_evidence import ATTENDS, EVIDENCE, HeadRoles
from interp import PromptPairs, tasks
from interp.results import Result
from models import GPT, TransformerConfig, load
from tests.analyses.tiny_models import interp
from tests.pairs import alone
from tests.strategies import ADDITIVE, SEEDS, models, random_model


def pairs_with_answers(seed: int, side: str) -> PromptPairs:
    """Random prompts in which both answers stand somewhere before the last token."""
    generator = torch.Generator().manual_seed(seed)
    rows, others, right, wrong = [], [], [], []
    for length in (6, 5):
        ids = torch.randperm(11, generator=generator)[:length].tolist()
        rows.append(ids)
        others.append([ids[1], ids[0], *ids[2:]])
        right.append(ids[0])
        wrong.append(ids[1])
    return PromptPairs.from_tokens(rows, others, right, wrong, padding_side=side)  # type: ignore[arg-type]


def attention(model: GPT, tokens: Tensor, answer: int, hooks: list[Any]) -> np.ndarray:
    """From the last token to the places of an answer, [layer head]."""
    with torch.no_grad(), model.hooks(hooks):
        _, cache = model.run_with_cache(tokens)
    here = (tokens[0] == answer).double()
    return np.array([(cache["pattern", i][0, :, -1] @ here).tolist() for i in range(model.cfg.n_layers)])


def resampled(other: Tensor, head: int) -> Any:
    def hook(z: Tensor, hook: Any = None) -> Tensor:
        new = z.clone()
        new[:, -1, head] = other[:, -1, head]
        return new

    return hook


@settings(max_examples=3)
@given(models(**ADDITIVE), SEEDS, st.sampled_from(["left", "right"]))
def test_the_evidence_of_the_prompts_equals_a_loop(model: GPT, seed: int, side: str) -> None:
    pairs = pairs_with_answers(seed, side)
    found = head_roles(model, pairs)
    shape = found.roles.shape
    looks, lost = np.zeros((2, *shape)), np.zeros((*shape, *shape))  # lost: [layer head], of every [layer head]
    for prompt in range(2):
        tokens, other, _ = alone(pairs, prompt)
        _, cache = model.run_with_cache(other)
        ids = [int(pairs.right[prompt, 0]), int(pairs.wrong[prompt, 0])]
        base = np.stack([attention(model, tokens, answer, []) for answer in ids])
        looks += base / 2
        for layer, head in np.ndindex(shape):
            name = f"blocks.{layer}.attn.hook_z"
            hooks = [(name, resampled(cache[name], head))]
            change = base - np.stack([attention(model, tokens, answer, hooks) for answer in ids])
            lost[layer, head] += (change[0] - change[1]) / 2
    np.testing.assert_allclose(found.evidence("to right"), looks[0], atol=1e-5)
    np.testing.assert_allclose(found.evidence("to wrong"), looks[1], atol=1e-5)
    looking = looks.sum(0) >= ATTENDS
    for layer, head in np.ndindex(shape):
        behind = looking[layer + 1 :]
        expected = lost[layer, head][layer + 1 :][behind].mean() if behind.any() else 0.0
        if looking.any():
            assert found.evidence("directs")[layer, head] == pytest.approx(expected, abs=1e-5)


def test_the_rest_of_the_evidence_is_that_of_the_other_analyses() -> None:
    model = random_model(TransformerConfig(**SIZES), seed=5)
    pairs = pairs_with_answers(0, "left")
    found, scores, shares = head_roles(model, pairs, seed=3), head_scores(model, seed=3), head_attribution(model, pairs)
    for name, expected in zip(EVIDENCE, scores.values, strict=False):
        np.testing.assert_array_equal(found.evidence(name), expected)
    np.testing.assert_allclose(found.evidence("attribution"), shares.values / shares.logit_diff.mean(), rtol=1e-12)


def test_without_the_answers_in_the_prompts_only_their_places_are_unknown() -> None:
    model = random_model(TransformerConfig(**SIZES), seed=5)
    pairs = PromptPairs.from_tokens([[1, 2, 3]], [[1, 4, 3]], [7], [8])
    found = head_roles(model, pairs)
    unknown = {name for name in EVIDENCE if np.isnan(found.evidence(name)).all()}
    assert unknown == {"to right", "to wrong", "directs"}
    assert not found.heads("mover")


SIZES: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 12,
    "d_head": 4,
    "d_mlp": 9,
    "d_vocab": 11,
    "n_ctx": 12,
}


def directed() -> GPT:
    """Two layers, one head each. Prompts are `a b a END` for six names: the first head brings the name before END,
    negated; the second looks from END at names, and away from that one, and copies what it sees.

    The stream holds the token in coordinates 0 to 6 (END is 6), the position in 7 to 10, and in 11 to 17 what the
    first head brings.
    """
    cfg = TransformerConfig(n_layers=2, n_heads=1, d_model=18, d_head=18, d_vocab=7, n_ctx=4, attn_only=True,
                            normalization_type=None, attn_bias=False, dtype=torch.float64)  # fmt: skip
    model, names = GPT(cfg), torch.eye(7, dtype=torch.float64)
    names[6, 6] = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :7] = torch.eye(7)
        model.pos_embed.W_pos[:, 7:11] = torch.eye(4)
        model.unembed.weight[:, :7] = torch.eye(7)
        first, second = (block.attn for block in model.blocks)
        first.q.weight[0, 10] = first.k.weight[0, 9] = 20.0  # the last position asks for the one before
        first.v.weight[:7, :7] = names
        first.o.weight[11:18, :7] = -torch.eye(7)
        second.q.weight[:7, 11:18], second.k.weight[:7, :7] = 20 * torch.eye(7), 20 * names
        second.q.weight[7, 6], second.k.weight[7, :6] = 10.0, 20.0  # END asks for any name
        second.v.weight[:7, :7] = second.o.weight[:7, :7] = names
    return model


def test_a_head_that_tells_another_where_not_to_look_directs_attention() -> None:
    """400 / sqrt(18) = 94 between the two names' scores, so attention is all on the other name, or all on this one."""
    rows = [[0, 1, 0, 6], [3, 2, 2, 6]]
    pairs = PromptPairs.from_tokens(rows, [[0, 1, 1, 6], [3, 2, 3, 6]], [1, 3], [0, 2])
    found = head_roles(directed(), pairs)
    assert found.evidence("to right")[1, 0] == pytest.approx(1.0, abs=1e-6)
    assert found.evidence("directs")[0, 0] == pytest.approx(2.0, abs=1e-6)  # from +1 to -1
    assert found.heads("directs attention") == [(0, 0)]
    assert found.heads("mover") == [(1, 0)]


def test_no_logit_difference_has_no_shares() -> None:
    model = directed()
    with torch.no_grad():
        model.unembed.weight.zero_()
    with pytest.warns(UserWarning, match="no more than rounding"):
        found = head_roles(model, PromptPairs.from_tokens([[0, 1, 0, 6]], [[0, 1, 1, 6]], [1], [0]))
    assert np.isnan(found.evidence("attribution")).all()


class TestTown:
    """The indirect object in the shipped model: heads of the second layer bring both names to the end, and two of the
    third write the answer from a place behind the giver, where the layers before have worked out who that is."""

    @pytest.fixture(scope="class", name="found")
    @staticmethod
    def _found() -> HeadRoles:
        model = load("town")
        return head_roles(model, tasks.ioi(model, n=64, seed=3))

    def test_heads_of_the_second_layer_look_at_the_names_and_copy_them(self, found: HeadRoles) -> None:
        carriers = [*found.heads("copier"), *found.heads("mover")]
        assert len(carriers) >= 6
        assert {layer for layer, _ in carriers} == {1}
        for head in carriers:
            assert found.evidence("copying")[head] > 0.9
            assert found.evidence("to right")[head] > 0.4

    def test_two_heads_of_the_third_layer_write_the_answer(self, found: HeadRoles) -> None:
        assert found.heads("writer") == [(2, 1), (2, 4)]
        assert found.evidence("attribution")[2, [1, 4]].sum() > 0.5
        assert found.evidence("looks")[2, [1, 4]].min() > 0.9
        assert {str(found.looks_at[2, head]).split()[0] for head in (1, 4)} == {"12"}  # the article behind the verb
        assert found.evidence("to right")[2, [1, 4]].max() < 0.05

    def test_induction_is_shared_by_the_whole_second_layer(self, found: HeadRoles) -> None:
        assert found.heads("induction") == [(1, head) for head in range(8)]

    def test_no_head_steers_the_attention_of_others_nor_suppresses_copies(self, found: HeadRoles) -> None:
        assert not found.heads("directs attention")
        assert not found.heads("copy suppression")


def test_the_induction_circuit_is_named() -> None:
    model = load("induction-2l")
    found = head_roles(model, tasks.induction(model, n=16))
    assert (0, 3) in found.heads("previous token")
    assert found.evidence("previous token")[0, 3] > 0.8
    assert found.heads("induction") == found.heads("mover") == [(1, head) for head in range(4)]


def test_the_result_survives_a_file_and_is_a_table_and_a_page(tmp_path: Path) -> None:
    found = head_roles(random_model(TransformerConfig(**SIZES), seed=5), pairs_with_answers(0, "left"))
    found.save(tmp_path / "roles.safetensors")
    assert Result.load(tmp_path / "roles.safetensors") == found
    assert {"evidence_label", "layer", "head", "values"} <= set(found.to_dataframe().columns)
    assert list(found.to_dataframe("roles").columns) == ["layer", "head", "roles", "looks_at"]
    assert "Roles of heads" in found.to_html()


def test_the_command_lists_heads_with_their_evidence() -> None:
    shown = interp("heads", "--task", "ioi", "-n", 16).stdout.splitlines()
    assert shown[1].split()[:2] == ["head", "roles"]
    rows = {row.split()[0]: row for row in shown[2:]}
    assert "writer" in rows["L2H1"]
    assert "induction" in rows["L1H3"]
    assert "L3H0" not in rows


def test_the_command_gives_the_same_as_data(town: Path) -> None:
    found = interp("heads", "--model", town, "--task", "ioi", "-n", 4, "--json")
    document = json.loads(found.stdout)
    assert document["kind"] == "HeadRoles"
    assert np.array(document["roles"]).shape == (2, 4)


def test_the_command_refuses_a_length_with_a_task() -> None:
    result = interp("heads", "--task", "ioi", "--length", 4)
    assert result.exit_code == 2
    assert "--length" in result.stderr
