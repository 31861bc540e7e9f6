"""`interp circuit`, from options to files: what it prints and writes, and how it ends on bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interp.circuit import Circuit
from interp.graph import Graph
from models import load
from tests.analyses.tiny_models import interp

IOI = ("--task", "ioi", "-n", 3, "--edges", 0.5)


@pytest.fixture(scope="module")
def found(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit that the command wrote."""
    path = tmp_path_factory.mktemp("circuits") / "circuit.json"
    result = interp("circuit", "--model", town, *IOI, "--out", path)
    assert result.exit_code == 0, result.output
    return path


def test_a_circuit_is_found_written_and_read_again(town: Path, found: Path) -> None:
    circuit, model = Circuit.load(found), load(town)
    circuit.check(model)
    assert 0 < len(circuit) <= len(Graph.of(model)) / 2
    document = json.loads(found.read_text())
    assert set(document["scores"]) == set(circuit)
    assert document["provenance"]["settings"]["task"] == "ioi"
    assert document["setting"]["ablation"].startswith("resample")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--method", "eap"),
        ("--method", "eap-ig", "--select", "greedy", "--absolute"),
        ("--method", "atp", "--select", "nodes"),
        ("--method", "relp", "--select", "pruning"),
    ],
)
def test_it_tells_size_faithfulness_components_and_areas(town: Path, options: tuple[str, ...]) -> None:
    result = interp("circuit", "--model", town, *IOI, *options)
    assert result.exit_code == 0, result.output
    for words in ("edges", "give", "overlap", "granularity", "component", "strongest edges", "CPR", "CMD"):
        assert words in result.output


def test_acdc_takes_a_threshold_in_place_of_a_share(town: Path) -> None:
    search = ("--task", "ioi", "-n", 2, "--method", "eap", "--select", "acdc", "--threshold", 0.05, "--json")
    result = interp("circuit", "--model", town, *search)
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert document["provenance"]["settings"]["threshold"] == 0.05
    assert document["stability"]["k"] == len(document["edges"])
    assert {"overlap", "spearman"} <= set(document["stability"])


def test_a_page_is_written(town: Path, tmp_path: Path) -> None:
    result = interp("circuit", "--model", town, *IOI, "--out", tmp_path / "circuit.html")
    assert result.exit_code == 0, result.output
    assert "What is claimed" in (tmp_path / "circuit.html").read_text()


def test_a_saved_circuit_is_run(town: Path, found: Path) -> None:
    result = interp("circuit", "--model", town, "--task", "ioi", "-n", 3, "--seed", 1, "--circuit", found, "--json")
    assert result.exit_code == 0, result.output
    document, before = json.loads(result.output), json.loads(found.read_text())
    assert document["edges"] == [len(Circuit.load(found))]
    np.testing.assert_allclose(document["values"], before["evaluation"]["values"], rtol=1e-4)  # the same prompts
    assert interp("circuit", "--model", town, "--task", "ioi", "-n", 3, "--circuit", found).exit_code == 0


Bad = tuple[Callable[[Path, Path], tuple[object, ...]], int, str]
BAD: dict[str, Bad] = {
    "method": (lambda town, _: (*IOI, "--method", "eapp"), 2, "closest: 'eap'"),
    "select": (lambda town, _: (*IOI, "--select", "node"), 2, "closest: 'nodes'"),
    "acdc": (lambda town, _: ("--select", "acdc"), 2, "--select acdc and --threshold go together"),
    "threshold": (lambda town, _: ("--threshold", 0.1), 2, "--select acdc and --threshold go together"),
    "sizes": (lambda town, _: (*IOI, "--select", "acdc", "--threshold", 0.1), 2, "expected no --edges beside it"),
    "share": (lambda town, _: (*IOI[:4], "--edges", 1.5), 2, "1.5"),
    "nothing": (lambda town, _: (*IOI[:4], "--edges", 0), 2, "0"),
    "suffix": (lambda town, _: (*IOI, "--out", "circuit.txt"), 2, "expected .html or"),
    "both": (lambda town, found: (*IOI, "--circuit", found), 2, "expected no --edges beside it"),
    "missing": (lambda town, _: ("--circuit", "no-such.json"), 2, "does not exist"),
    "empty": (lambda town, _: (*IOI[:4], "--edges", 1e-6), 1, "has no edges"),
    "stationary": (lambda town, _: (*IOI, "--method", "eap", "--metric", "kl"), 1, "the gradient is zero there"),
    "memory": (lambda town, _: (*IOI, "--budget", 100), 1, "budget"),
    "lengths": (
        lambda town, _: ("--prompt", "Mary gave", "--corrupted", "Mary", "--right", " John", "--wrong", " Mary"),
        1,
        "they must be aligned",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_a_message(town: Path, found: Path, name: str) -> None:
    options, code, message = BAD[name]
    result = interp("circuit", "--model", town, *options(town, found))
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_circuit_of_another_model_is_refused(bare: Path, town: Path, found: Path) -> None:
    result = interp("circuit", "--model", bare, "--circuit", found)
    assert result.exit_code == 1
    assert "the circuit is not one of 'bare'" in result.output
    assert "n_heads 4 and 2" in result.output


def test_a_damaged_circuit_is_refused(town: Path, tmp_path: Path) -> None:
    (tmp_path / "circuit.json").write_text('{"format": "interp.circuit/1", "edges": ["a->b"]}')
    result = interp("circuit", "--model", town, "--circuit", tmp_path / "circuit.json")
    assert result.exit_code == 1
    assert "is damaged" in result.output


def test_a_circuit_at_positions_takes_prompts_of_one_length(town: Path, tmp_path: Path) -> None:
    model = load(town)
    Circuit.whole(Graph.of(model, n_pos=4), model).save(tmp_path / "circuit.json")
    result = interp("circuit", "--model", town, "--task", "ioi", "-n", 2, "--circuit", tmp_path / "circuit.json")
    assert result.exit_code == 1
    assert "the graph has edges at each of 4 positions" in result.output


def test_an_empty_circuit_is_refused(town: Path, tmp_path: Path) -> None:
    Circuit.of(Graph.of(load(town)), []).save(tmp_path / "circuit.json")
    result = interp("circuit", "--model", town, "--circuit", tmp_path / "circuit.json")
    assert result.exit_code == 1
    assert "has no edges" in result.output


def test_nothing_is_left_behind_by_a_run_that_fails(town: Path, tmp_path: Path) -> None:
    out = tmp_path / "circuit.html"
    result = interp("circuit", "--model", town, *IOI, "--budget", 100, "--out", out)
    assert result.exit_code == 1
    assert not list(tmp_path.iterdir())
