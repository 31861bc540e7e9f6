"""Results: axes that are checked, files that come back whole, tables and extremes that name their places."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int, Shaped
from torch import nn

from interp import provenance
from interp.errors import LabError
from interp.provenance import Provenance
from interp.results import Result
from interp.style import Scale


@dataclass(frozen=True)
class Grid(Result):
    """A result whose axes depend on the question, with everything that a result may hold."""

    values: Float[np.ndarray, "*axes"]
    per_prompt: Float[np.ndarray, "*axes batch"]
    tokens: Shaped[np.ndarray, "pos k"]
    ids: Int[np.ndarray, "pos k"]
    clean: float = 1.0
    sites: tuple[str, ...] = ("z",)


@dataclass(frozen=True)
class Line(Result):
    values: Float[np.ndarray, "pos"]


WORDS = (" the", "</script>", " the")


def grid(seed: int = 0, **changes: object) -> Grid:
    rng = np.random.default_rng(seed)
    given = {
        "values": rng.normal(size=(2, 3)),
        "per_prompt": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "tokens": np.array([["a", "bb"], ["\n", ""], ["é", "</b>"]]),
        "ids": rng.integers(0, 9, size=(3, 2)),
        "axes": ("layer", "pos"),
        "labels": {"layer": [4, 8], "pos": WORDS},
        "provenance": Provenance(model="tiny", prompts={"clean": ["a b"]}, settings={"k": 2}),
    }
    return Grid(**{**given, **changes})  # type: ignore[arg-type]


def test_a_saved_result_comes_back_equal_and_as_its_own_class(tmp_path: Path) -> None:
    result = grid(values=np.array([[np.nan, np.inf, 0.0], [1.0, -2.0, 3.0]]), sites=("z", "q"), clean=0.25)
    result.save(tmp_path / "grid.safetensors")
    back = Result.load(tmp_path / "grid.safetensors")
    assert type(back) is Grid
    assert back == result
    assert back.provenance == result.provenance
    assert [p.name for p in tmp_path.iterdir()] == ["grid.safetensors"]


@given(
    values=st.lists(st.floats(width=32, allow_nan=True), max_size=5),
    words=st.lists(st.text(st.characters(codec="utf-8")), min_size=5, max_size=5),
)
def test_any_numbers_and_any_tokens_survive_the_file(
    values: list[float], words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "line"
    result = Line(np.array(values, dtype=np.float32), labels={"pos": words[: len(values)]})
    result.save(path)
    assert Line.load(path) == result


def test_a_scalar_keeps_its_shape(tmp_path: Path) -> None:
    result = grid(values=np.array(2.0), per_prompt=np.ones(4), axes=(), labels={})
    result.save(tmp_path / "r")
    assert Grid.load(tmp_path / "r").values.shape == ()


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "grid.safetensors"
    grid().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LabError, match=r"grid\.safetensors"):
        Result.load(path)


def test_weights_are_no_result(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"values": np.ones(3)}, tmp_path / "weights", metadata={"format": "pt"})
    with pytest.raises(LabError, match="not a saved result"):
        Result.load(tmp_path / "weights")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"values": torch.ones(3)}, tmp_path / "evil")
    with pytest.raises(LabError, match="evil"):
        Result.load(tmp_path / "evil")


def test_a_missing_file_and_another_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no file"):
        Result.load(tmp_path / "absent")
    grid().save(tmp_path / "grid")
    with pytest.raises(LabError, match="holds a Grid; expected a Line"):
        Line.load(tmp_path / "grid")


def test_an_unwritable_path_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no folder"):
        grid().save(tmp_path / "absent" / "r")
    with pytest.raises(LabError, match="it is a folder"):
        grid().save(tmp_path)
    with pytest.raises(LabError, match="not plain data"):
        grid(sites=object()).save(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.ones(3)}, r"shape \[3\]; expected the axes \[layer pos\]"),
        ({"axes": ()}, "name them with axes="),
        ({"ids": np.ones((5, 2), dtype=int)}, "has 5 along 'pos'; Grid.values has 3"),
        ({"labels": {"head": [1]}}, "fit no axis"),
        ({"labels": {"pos": ["a"]}}, "1 given, the axis has 3"),
        ({"labels": {"pos": ["a", 2, "c"]}}, "all integers or all strings"),
        ({"values": np.array([[None] * 3] * 2)}, "expected numbers or text"),
        ({"axes": ("pos", "pos")}, "expected the axes"),
    ],
)
def test_arrays_axes_and_labels_must_fit_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LabError, match=message):
        grid(**changes)


def test_tensors_become_read_only_arrays_and_bfloat16_becomes_float32() -> None:
    result = Line(torch.tensor([1.0, 2.5], dtype=torch.bfloat16, requires_grad=True))  # type: ignore[arg-type]
    assert result.values.dtype == np.float32
    assert result.values.tolist() == [1.0, 2.5]
    with pytest.raises(ValueError, match="read-only"):
        result.values[0] = 3.0


def test_top_names_the_entries_furthest_from_zero() -> None:
    result = grid(values=np.array([[0.1, -5.0, np.nan], [4.0, 2.0, -1.0]]))
    first, second = result.top(2)
    assert (first.value, first.place) == (-5.0, "layer 4, pos 1 '</script>'")
    assert (second.value, second.index) == (4.0, (1, 0))
    assert [e.value for e in result.highest(2)] == [4.0, 2.0]
    assert [e.value for e in result.lowest(2)] == [-5.0, -1.0]
    assert len(result.top(99)) == 5  # NaN is no extreme


def test_top_counts_from_the_middle_of_the_scale() -> None:
    @dataclass(frozen=True)
    class Kept(Line):
        scale = Scale("RdBu", middle=1.0)

    assert [e.value for e in Kept(np.array([0.0, 1.0, 1.5])).top(2)] == [0.0, 1.5]


def test_heads_are_named_the_usual_way() -> None:
    result = grid(axes=("layer", "head"), labels={}, values=np.eye(2, 3), per_prompt=np.ones((2, 3, 4)))
    assert result.top(1)[0].place == "L0H0"


def test_the_table_has_a_row_for_each_entry_and_tells_repeated_tokens_apart() -> None:
    result = grid()
    table = result.to_dataframe()
    assert list(table.columns) == ["layer", "pos", "pos_label", "values"]
    assert len(table) == 6
    row = table[(table.layer == 8) & (table.pos == 2)].iloc[0]
    assert row.pos_label == " the"
    assert row["values"] == result.values[1, 2]
    assert len(result.to_dataframe("per_prompt")) == 24


def test_the_plain_data_is_strict_json() -> None:
    data = json.loads(json.dumps(grid(values=np.full((2, 3), np.nan)).to_dict(), allow_nan=False))
    assert data["values"] == [[None] * 3] * 2
    assert data["axes"]["per_prompt"] == ["layer", "pos", "batch"]
    assert data["provenance"]["model"] == "tiny"
    assert "tokens" not in grid().to_dict(arrays=["values"])


def test_an_unknown_array_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LabError, match=r"unknown array 'value'.*closest: 'values'"):
        grid().top(of="value")


def test_results_differ_when_one_number_differs() -> None:
    assert grid() == grid()
    assert grid() != grid(values=grid().values + 1e-9)
    assert grid() != grid(clean=0.5)


def test_the_weights_hash_follows_the_weights() -> None:
    model = nn.Linear(3, 2)
    before = provenance.weights_hash(model)
    assert provenance.weights_hash(model) == before
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    assert provenance.weights_hash(twin) == before
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert provenance.weights_hash(model) != before
    assert provenance.weights_hash(twin.bfloat16()) != before


def test_the_hash_covers_names_and_shapes() -> None:
    def holding(**weights: torch.Tensor) -> nn.Module:
        return nn.ParameterDict({name: nn.Parameter(w) for name, w in weights.items()})

    hashes = {
        provenance.weights_hash(holding(**weights))
        for weights in ({"a": torch.zeros(4)}, {"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.zeros(5)})
    }
    assert len(hashes) == 4


def test_provenance_tells_model_prompts_and_settings() -> None:
    facts = provenance.of(nn.Linear(2, 2), prompts=["one", "two"], metric="logit_diff", settings={"k": 3})
    assert facts.prompts == {"text": ["one", "two"]}
    assert facts.model == "Linear"
    assert (facts.dtype, facts.device) == ("float32", "cpu")
    assert facts.weights is not None
    assert len(facts.weights) == 64
    assert Provenance.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


def test_many_prompts_are_kept_as_a_count_and_a_hash() -> None:
    facts = provenance.of(nn.Linear(2, 2), prompts=torch.arange(200)[:, None])
    assert len(facts.prompts["tokens"]) == provenance.MAX_PROMPTS
    assert facts.prompts["count"] == 200
    assert len(facts.prompts["sha256"]) == 64
