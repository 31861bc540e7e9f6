"""`interp ablate`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analyses import ablation, cumulative_ablation
from analyses.cli import main
from analyses.command_line.shell import FAILED, MISUSED
from interp import tasks
from interp.results import Result
from models import load
from tests.analyses.tiny_models import interp

WARNING = "warning: zero ablation takes the model off the distribution"


def document(*arguments: object) -> dict:
    """What it prints with --json, which must be all that it prints."""
    result = interp("ablate", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def lines(*arguments: object) -> list[str]:
    result = interp("ablate", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_it_explains_itself_and_all_of_its_options() -> None:
    assert "ablation" in interp("ablate", "--help").stdout
    for parameter in main.commands["ablate"].params:
        assert parameter.help, parameter.name  # type: ignore[attr-defined]


@pytest.mark.parametrize(("of", "axes"), [("head", ["layer", "head"]), ("neuron", ["layer", "neuron"])])
def test_it_prints_the_numbers_of_ablation(town: Path, of: str, axes: list[str]) -> None:
    model = load(town)
    expected = ablation(model, tasks.ioi(model, n=4, seed=3), of, "resample", metric="prob", positions=[-1, 2])
    found = document("--model", town, "-n", 4, "--seed", 3, "--of", of, "--value", "resample", "--metric", "prob",
                     "--positions", "-1, 2")  # fmt: skip
    # Printed in full precision, computed by the same code on the same machine.
    assert np.array_equal(np.array(found["values"]), expected.values)
    assert found["axes"]["values"] == axes
    assert (found["provenance"]["ablation"], found["provenance"]["settings"]["task"]) == ("resample", "ioi")


def test_it_shows_the_base_run_a_grid_and_the_strongest_with_their_spread(town: Path) -> None:
    shown = lines("--model", town, "-n", 2, "--top", 2)
    assert shown[0].startswith("logit_diff of the unedited run: ")
    assert "replaced by its mean over the corrupted prompts" in shown[1]
    assert shown[2].split() == ["layer", "\\", "head", "0", "1", "2", "3"]
    assert shown[5].startswith("furthest from zero")
    assert "interquartile range" in shown[5]
    assert len(shown) == 8


def test_cumulative_takes_out_the_strongest_together(town: Path) -> None:
    model = load(town)
    pairs = tasks.ioi(model, n=4)
    order = ablation(model, pairs, "head").ranking[:3]
    expected = cumulative_ablation(model, pairs, order)
    found = document("--model", town, "-n", 4, "--cumulative", 3)
    assert np.array_equal(np.array(found["values"]), expected.values)
    assert found["order"] == [list(component) for component in order]
    shown = lines("--model", town, "-n", 4, "--cumulative", 3)
    assert [row.split()[:2] for row in shown[3:]] == [[str(k), f"L{i}H{j}"] for k, (i, j) in enumerate(order, 1)]


@pytest.mark.parametrize("more", [[], ["--cumulative", "2"]])
def test_zero_is_warned_of_once(town: Path, more: list[str]) -> None:
    result = interp("ablate", "--model", town, "-n", 2, "--value", "zero", *more)
    assert result.exit_code == 0
    assert result.stderr.startswith(WARNING)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("suffix", [".html", ".safetensors", ".csv", ".json"])
def test_out_writes_what_its_suffix_says(town: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"result{suffix}"
    assert interp("ablate", "--model", town, "-n", 2, "--of", "layer", "--out", path).stderr == f"wrote {path}\n"
    assert path.stat().st_size > 0
    if suffix == ".safetensors":
        assert Result.load(path).values.shape == (2,)  # type: ignore[attr-defined]


def test_resume_keeps_the_sweep(town: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    one, again = (document("--model", town, "-n", 2, "--resume", kept) for _ in range(2))
    assert kept.exists()
    assert one["values"] == again["values"]


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (["--of", "heads"], MISUSED, ["unknown component 'heads'", "closest: 'head'"]),
        (["--value", "means"], MISUSED, ["unknown ablation value 'means'", "closest: 'mean'"]),
        (["--positions", "last"], MISUSED, ["expected positions such as '3 -1'", "given 'last'"]),
        (["--positions", ""], MISUSED, ["expected positions such as '3 -1'"]),
        (["--cumulative", "0"], MISUSED, ["0 is not in the range x>=1"]),
        (["--budget", "much"], MISUSED, ["no amount of memory"]),
        (["--positions", "99"], FAILED, ["position 99 to ablate", "expected some from 0 to"]),
        (["--budget", "1KB"], FAILED, ["too small for one row"]),
    ],
)
def test_bad_input_is_told_what_is_wrong(arguments: list[str], code: int, fragments: list[str], town: Path) -> None:
    result = interp("ablate", "--model", town, "-n", 2, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in result.stderr
