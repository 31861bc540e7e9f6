"""`interp patch` says what it will take, keeps to a budget, and goes on after Ctrl-C."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyses.command_line.shell import FAILED
from interp import tasks
from interp.text import megabytes
from models import load
from tests.analyses.test_cli_errors import interrupt, start
from tests.analyses.tiny_models import interp
from tests.killed import finished

TASK = ["-n", "3", "--seed", "1", "--site", "z", "--by", "layer,head,pos"]


def told(*arguments: object) -> str:
    result = interp(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def values(*arguments: object) -> np.ndarray:
    return np.array(json.loads(told(*arguments, "--json"))["values"])


def least(town: Path, *arguments: object) -> int:
    """The smallest budget that is not refused."""
    refusal = interp("patch", "--model", town, *arguments, "--budget", "1").stderr
    found = re.search(r"at least (\d+) bytes", refusal)
    assert found is not None, refusal
    return int(found[1])


def test_a_plan_tells_what_a_sweep_takes_and_runs_none(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.sweep.running.run_climb", lambda *_: pytest.fail("a row was run"))
    n_pos = tasks.ioi(load(town), n=3, seed=1).clean.shape[1]
    rows = 2 * 4 * n_pos
    shown = told("patch", "--model", town, *TASK, "--plan")
    assert [line.split()[0] for line in shown.splitlines()] == [
        "way",
        "runs",
        "passes",
        "operations",
        "memory",
        "time",
    ]
    found = json.loads(told("patch", "--model", town, *TASK, "--plan", "--json"))
    assert (found["rows"], found["prompts"]) == (rows, 3)
    # A patch from the corrupted run changes nothing before the prompts differ.
    assert 0 < found["skipped"] < rows * 3
    assert f"{rows * 3} = {rows} rows x 3 prompts; {found['skipped']} change nothing" in shown
    assert found["way"] == "resumed"
    assert 0 < found["operations"] < found["naive"]
    assert 0 < found["memory"] <= found["budget"]
    assert found["seconds"] > 0
    assert found["passes"] <= found["layer_runs"]


@pytest.mark.parametrize("spelling", ["{bytes}", "{bytes}B", "{kibi:.3f}KB", "{kibi:.3f}kib"])
def test_a_budget_is_kept_to_and_changes_no_number(town: Path, spelling: str) -> None:
    needed = 8 * least(town, *TASK)
    budget = spelling.format(bytes=needed, kibi=needed / 1024)
    planned: list[dict[str, Any]] = [
        json.loads(told("patch", "--model", town, *TASK, "--plan", "--json", *given))
        for given in (["--budget", budget], [])
    ]
    assert abs(planned[0]["budget"] - needed) <= 1  # three digits of a KiB
    assert planned[0]["memory"] <= planned[0]["budget"]
    assert planned[0]["passes"] > planned[1]["passes"]
    if spelling == "{bytes}":
        assert megabytes(needed) in told("patch", "--model", town, *TASK, "--plan", "--budget", budget)
        # Float32; effects are of the size of one.
        kept = values("patch", "--model", town, *TASK, "--budget", budget)
        np.testing.assert_allclose(kept, values("patch", "--model", town, *TASK), atol=1e-4)


STOPPING = """
import interp.sweep.running as running
real, ran = running.run_climb, []
def run_climb(*arguments):
    if len(ran) == 5:
        print("sweeping", file=sys.stderr, flush=True)
        time.sleep(600)
    ran.append(1)
    return real(*arguments)
running.run_climb = run_climb
"""


def test_a_sweep_that_is_interrupted_goes_on_with_the_same_command(town: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep.safetensors"
    command = ["patch", "--model", str(town), *TASK, "--budget", str(4 * least(town, *TASK))]
    process = start([*command, "--resume", str(path)], STOPPING)
    assert process.stderr is not None
    assert process.stderr.readline().strip() == "sweeping"
    code, out, err = interrupt(process)
    assert (code, out) == (FAILED, "")
    assert err.strip() == "error: interrupted; nothing was left half-written."
    done = finished(path)[1]
    assert 0 < done.sum() < done.size

    resumed = values(*command, "--resume", path)
    assert finished(path)[1].all()
    np.testing.assert_allclose(resumed, values(*command), atol=1e-6)  # float32
    assert list(tmp_path.iterdir()) == [path]
    again = values(*command, "--resume", path)
    assert np.array_equal(again, resumed)


def test_the_file_of_another_sweep_is_refused(town: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep.safetensors"
    told("patch", "--model", town, "-n", 2, "--resume", path)
    before = path.read_bytes()
    for change, what in (
        (["--seed", 5], "prompts, edits"),
        (["--site", "mlp_out"], "edits"),
        (["--metric", "prob"], "metric"),
    ):
        result = interp("patch", "--model", town, "-n", 2, *change, "--resume", path)
        assert (result.exit_code, result.stdout) == (FAILED, "")
        assert f"holds another sweep: it differs in its {what}" in result.stderr
        assert path.read_bytes() == before
