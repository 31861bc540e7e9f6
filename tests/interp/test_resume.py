"""A sweep that is kept on disk: killed at any moment, it goes on to the same numbers; another's is refused."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import LabError, PromptPairs, Site, edits, metrics, sweep
from interp.sweep import running, saved
from models import GPT, TransformerConfig
from tests.killed import finished, sweep_to
from tests.pairs import random_pairs
from tests.strategies import random_model
from tests.sweeps import least_budget

CONFIG = TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=8, model_name="small")
PAIRS = random_pairs(1)
ROWS = [[edits.zero(Site("z", layer, head, pos=pos))] for layer in range(2) for head in range(2) for pos in range(6)]


def model(seed: int = 2) -> GPT:
    return random_model(CONFIG, seed)


# -- SIGKILL ----------------------------------------------------------------------------------------------------------

KILLS = 5  # of each of four sweeps


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes forked from one that has imported everything and computes with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed"])
    return context


def whole(processes: Any, path: Path, seed: int) -> tuple[np.ndarray, float]:
    """The numbers of a sweep that nobody stops, and the seconds that it takes."""
    process, began = processes.Process(target=sweep_to, args=(path, seed)), time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return finished(path)[0], time.monotonic() - began


@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_that_is_killed_at_random_moments_ends_with_the_same_bits(
    processes: Any, tmp_path: Path, seed: int
) -> None:
    whole(processes, tmp_path / "first", seed)  # starts the server that forks
    expected, seconds = whole(processes, tmp_path / "whole", seed)
    path, moments = tmp_path / "killed", random.Random(seed)
    seen = np.zeros(expected.shape, dtype=bool)
    for _ in range(KILLS):
        killed = False
        while not killed:
            process = processes.Process(target=sweep_to, args=(path, seed))
            process.start()
            time.sleep(moments.uniform(0, 0.7 * seconds))
            process.kill()
            process.join()
            killed = process.exitcode == -signal.SIGKILL
            if path.exists():
                values, done = finished(path)
                assert (values[done] == expected[done]).all()
                assert np.isnan(values[~done]).all()
                assert (done >= seen).all()  # nothing is lost
                seen = done
            if not killed:
                path.unlink()  # it had ended: once more from the start
                seen[:] = False
    assert np.array_equal(whole(processes, path, seed)[0], expected)


# -- what is kept -----------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """What a test stops a sweep with."""


def stop_after(climbs: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = Stopped) -> list[int]:
    """Let that many climbs run and stop the next; the list counts them."""
    ran, real = [0], running.run_climb

    def run_climb(*arguments: Any) -> torch.Tensor:
        if ran[0] == climbs:
            raise error
        ran[0] += 1
        return real(*arguments)

    monkeypatch.setattr(running, "run_climb", run_climb)
    return ran


def passes(budget: int | None) -> int:
    return sweep.plan(model(), PAIRS, ROWS, budget=budget).passes


def small_budget() -> int:
    return 2 * least_budget(lambda budget: sweep.plan(model(), PAIRS, ROWS, budget=budget))


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_a_sweep_that_is_stopped_keeps_what_it_has_and_runs_only_the_rest(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, budget = tmp_path / "sweep.safetensors", small_budget()
    expected = sweep.run(model(), PAIRS, ROWS, budget=budget)
    with monkeypatch.context() as patched:
        stop_after(4, patched, error)
        with pytest.raises(error):
            sweep.run(model(), PAIRS, ROWS, budget=budget, out=path)
    values, done = finished(path)
    assert 0 < done.sum() < done.size
    assert np.array_equal(values[done], expected.values[done])
    assert list(tmp_path.iterdir()) == [path]

    ran = stop_after(10**6, monkeypatch)
    again = sweep.run(model(), PAIRS, ROWS, budget=budget, out=path)
    assert ran == [passes(budget) - 4]
    assert np.array_equal(again.values, expected.values)
    assert (again.skipped, again.way) == (expected.skipped, expected.way)
    assert list(tmp_path.iterdir()) == [path]


def test_a_sweep_goes_on_with_the_budget_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget decides what shares a batch, and so the last bits: they are those of the first run."""
    path, budget = tmp_path / "sweep.safetensors", small_budget()
    assert passes(budget) > passes(None)
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        with pytest.raises(Stopped):
            sweep.run(model(), PAIRS, ROWS, budget=budget, out=path)
    ran = stop_after(10**6, monkeypatch)
    again = sweep.run(model(), PAIRS, ROWS, out=path)
    assert ran == [passes(budget) - 4]
    assert np.array_equal(again.values, sweep.run(model(), PAIRS, ROWS, budget=budget).values)


def test_a_finished_sweep_gives_its_numbers_without_running_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sweep.safetensors"
    first = sweep.run(model(), PAIRS, ROWS, out=path)
    ran = stop_after(0, monkeypatch)
    again = sweep.run(model(), PAIRS, ROWS, out=path)
    assert ran == [0]
    assert np.array_equal(again.values, first.values)
    assert np.array_equal(again.base, first.base)


def test_whole_runs_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, net, ran = tmp_path / "sweep.safetensors", model(), [0]
    net.add_hook("hook_embed", lambda tensor, hook: None)
    budget = 3 * least_budget(lambda budget: sweep.plan(net, PAIRS, ROWS, budget=budget))
    expected, real = sweep.run(net, PAIRS, ROWS, budget=budget), running.run_batch

    def run_batch(*arguments: Any) -> torch.Tensor:
        ran[0] += 1
        if ran[0] == 5:
            raise Stopped
        return real(*arguments)

    monkeypatch.setattr(running, "run_batch", run_batch)
    with pytest.raises(Stopped):
        sweep.run(net, PAIRS, ROWS, budget=budget, out=path)
    stopped, done = ran[0], finished(path)[1]
    assert 0 < done.sum() < done.size
    assert np.array_equal(sweep.run(net, PAIRS, ROWS, budget=budget, out=path).values, expected.values)
    # 24 rows of 3 prompts, 3 at a time; the unedited run is made each time.
    assert ran[0] - stopped == 1 + (24 * 3 - done.sum()) / 3


def test_saves_are_made_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "SAVE_EVERY", 0.0)
    path, counts, real = tmp_path / "sweep.safetensors", [], running.run_climb

    def run_climb(*arguments: Any) -> torch.Tensor:
        counts.append(int(finished(path)[1].sum()))
        return real(*arguments)

    monkeypatch.setattr(running, "run_climb", run_climb)
    sweep.run(model(), PAIRS, ROWS, budget=small_budget(), out=path)
    assert len(counts) > 4
    assert counts == sorted(set(counts))


def test_a_save_that_breaks_off_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sweep.safetensors"
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        with pytest.raises(Stopped):
            sweep.run(model(), PAIRS, ROWS, budget=small_budget(), out=path)
    before = path.read_bytes()

    def break_off(tensors: Any, file: str | Path, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise Stopped

    monkeypatch.setattr("safetensors.numpy.save_file", break_off)
    with pytest.raises(Stopped):
        sweep.run(model(), PAIRS, ROWS, out=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -- what is refused --------------------------------------------------------------------------------------------------


def other_prompts() -> PromptPairs:
    return random_pairs(2)


def with_a_hook() -> GPT:
    net = model()
    net.add_hook("hook_embed", lambda tensor, hook: None)
    return net


def kl(seed: int) -> Any:
    with torch.no_grad():
        return metrics.kl(model(seed)(PAIRS.clean), PAIRS)


WRITTEN = edits.write(Site("z", 0, head=0, pos=5), torch.ones(1, 4, dtype=torch.float64))
OTHERWISE = edits.write(Site("z", 0, head=0, pos=5), torch.zeros(1, 4, dtype=torch.float64))
Arguments = tuple[GPT, PromptPairs, Any, Any]
OTHERS: dict[str, tuple[Callable[[], Arguments], str]] = {
    "weights": (lambda: (model(3), PAIRS, [[WRITTEN]], kl(2)), "model"),
    "precision": (lambda: (model().float(), PAIRS, [[WRITTEN]], kl(2)), "model, dtype"),
    "prompts": (lambda: (model(), other_prompts(), [[WRITTEN]], kl(2)), "prompts"),
    "another edit": (lambda: (model(), PAIRS, [[edits.zero(WRITTEN.site)]], kl(2)), "edits"),
    "another value": (lambda: (model(), PAIRS, [[OTHERWISE]], kl(2)), "edits"),
    "more rows": (lambda: (model(), PAIRS, [[WRITTEN], []], kl(2)), "edits"),
    "rows joined": (lambda: (model(), PAIRS, [[WRITTEN, edits.zero(Site("z", 1))]], kl(2)), "edits"),
    "metric": (lambda: (model(), PAIRS, [[WRITTEN]], "logit_diff"), "metric"),
    "another reference": (lambda: (model(), PAIRS, [[WRITTEN]], kl(3)), "metric"),
    "hooks": (lambda: (with_a_hook(), PAIRS, [[WRITTEN]], kl(2)), "way of running"),
}


@pytest.mark.parametrize(("make", "what"), OTHERS.values(), ids=OTHERS)
def test_the_file_of_another_sweep_is_refused_and_left_alone(
    make: Callable[[], Arguments], what: str, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.safetensors"
    sweep.run(model(), PAIRS, [[WRITTEN]], kl(2), out=path)
    before = path.read_bytes()
    with pytest.raises(LabError, match=f"holds another sweep: it differs in its {what}; give another file") as refusal:
        sweep.run(*make(), out=path)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 5, 40, 300, -1])
def test_a_file_that_was_cut_off_is_refused_and_left_alone(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "sweep.safetensors"
    sweep.run(model(), PAIRS, ROWS, out=path)
    cut = path.read_bytes()[:kept]
    path.write_bytes(cut)
    with pytest.raises(LabError, match=r"is not a saved sweep .*give another file, or remove it"):
        sweep.run(model(), PAIRS, ROWS, out=path)
    assert path.read_bytes() == cut


@pytest.mark.parametrize("content", [b"", b"a text", b"\xff" * 400], ids=["empty", "text", "bytes"])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sweep.safetensors"
    path.write_bytes(content)
    with pytest.raises(LabError, match="is not a saved sweep"):
        sweep.run(model(), PAIRS, ROWS, out=path)
    assert path.read_bytes() == content


def test_a_result_or_a_model_is_no_saved_sweep(tmp_path: Path) -> None:
    sweep.run(model(), PAIRS, ROWS).save(tmp_path / "result.safetensors")
    model().save(tmp_path / "model")
    for path in (tmp_path / "result.safetensors", tmp_path / "model" / "model.safetensors"):
        with pytest.raises(LabError, match="is not a saved sweep; give another file"):
            sweep.run(model(), PAIRS, ROWS, out=path)


@pytest.mark.parametrize("place", ["absent/sweep.safetensors", ".", "/proc/sweep.safetensors"])
def test_a_place_that_takes_no_file_is_refused_before_the_work(place: str, tmp_path: Path) -> None:
    net = model()
    net.add_hook("hook_embed", lambda tensor, hook: pytest.fail("the model ran"))
    with pytest.raises(LabError, match="cannot write to"):
        sweep.run(net, PAIRS, ROWS, out=tmp_path / place)
    assert os.listdir(tmp_path) == []
