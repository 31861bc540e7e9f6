"""Times of several ways to do the same work, interleaved in one process, with ratios, peak memory and the machine.

    compare("forward", {"ours": lambda: model(tokens), "transformers": lambda: peer(tokens)}, "GPT-2 small, 8 x 16")

Every round runs each side once, the order turning round from one round to the next, so that what else the machine
does falls on all sides alike. A ratio is the median over rounds of (a side's time / the reference's time in that
round); the quartiles of the same rounds say how far to trust it.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any, TypeVar

import click
import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"
DTYPES = ("float32", "bfloat16", "float16", "float64")
Work = Callable[[], object]
Command = TypeVar("Command", bound=Callable[..., Any])


def options(command: Command) -> Command:
    """The options of every benchmark: `--device`, `--dtype`, `--rounds`."""
    command = click.option("--rounds", default=15, type=click.IntRange(2), help="How often each side runs.")(command)
    command = click.option("--dtype", default="float32", type=click.Choice(DTYPES))(command)
    return click.option("--device", default="cpu", help="As torch names it: cpu, cuda.")(command)


def compare(
    name: str,
    sides: Mapping[str, Work],
    work: str,
    rounds: int = 15,
    against: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    warmup: int = 2,
    calls: int = 1,
    shares: Mapping[str, float] | None = None,
    notes: Mapping[str, Any] | None = None,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Measure the sides, print a table, append it to `<name>.jsonl` in `results`, and return it.

    sides: label -> the work, to be called without arguments; its value is freed outside the time. work: what all of
    them do. against: the label that ratios refer to; by default the second side, the first being ours. calls: how
    often each side works per round, for short work. shares: label -> which part of the work a side does, where the
    whole would take too long and every part takes as long as another; its times are scaled up to the whole. notes:
    whatever else the reader must know (sizes, versions).
    """
    reference = against or list(sides)[1]
    machine = describe_machine(device)
    for side in sides.values():
        for _ in range(warmup):
            side()
    shares = dict(shares or {})
    times = interleaved(sides, rounds, calls, device)
    times = {label: [each / shares.get(label, 1) for each in taken] for label, taken in times.items()}
    memory = {label: peak_bytes(side, device) for label, side in sides.items()}
    rows = {label: _row(times[label], times[reference], memory[label]) for label in sides}
    record = {
        "name": name,
        "work": work,
        "device": device,
        "dtype": dtype,
        "rounds": rounds,
        "calls": calls,
        "shares": shares,
        "against": reference,
        "sides": rows,
        "peak": "bytes that torch held at most during one call, beyond those before it",
        "notes": dict(notes or {}),
        "machine": machine,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    click.echo(table(record))
    results.mkdir(exist_ok=True)
    with (results / f"{name}.jsonl").open("a") as lines:
        lines.write(json.dumps(record) + "\n")
    return record


def interleaved(sides: Mapping[str, Work], rounds: int, calls: int = 1, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds per call of every side in every round; garbage is collected between rounds, not during them."""
    times: dict[str, list[float]] = {label: [] for label in sides}
    for number in range(rounds):
        gc.collect()
        gc.disable()
        try:
            for label in list(sides)[:: 1 if number % 2 == 0 else -1]:
                times[label].append(seconds(sides[label], calls, device))
        finally:
            gc.enable()
    return times


def seconds(work: Work, calls: int = 1, device: str = "cpu") -> float:
    """Seconds per call; on a GPU, until the work is done there."""
    _wait(device)
    start = perf_counter()
    for _ in range(calls):
        kept = work()
    _wait(device)
    taken = (perf_counter() - start) / calls
    del kept
    return taken


def peak_bytes(work: Work, device: str = "cpu") -> int:
    """The most that torch's allocator held during one call beyond what it held before."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = work()
    del kept
    held = most = 0
    assert recorded.profiler is not None
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]" and "CPU" in str(event.device_type()):
            held += event.nbytes()
            most = max(most, held)
    return most


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on, as plain values."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that is checked out, with a plus where the packages differ from it; empty outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = [":/interp", ":/models", ":/analyses"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *packages], capture_output=True)
    return head + ("+" if head and changed.returncode else "")


def table(record: Mapping[str, Any]) -> str:
    """A record as text: one line per side."""
    machine = record["machine"]
    where = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    lines = [
        f"{record['name']}: {record['work']} [{record['dtype']} on {record['device']}]",
        f"{where}, load {machine['load']}, {record['rounds']} rounds, commit {record['commit']}",
        f"{'':<32}{'median':>12}{'ratio':>8}{'quartiles':>15}{'peak':>12}",
    ]
    for label, row in record["sides"].items():
        low, high = row["ratio_quartiles"]
        lines.append(
            f"{label:<32}{row['median_s'] * 1e3:>9.2f} ms{row['ratio']:>8.3f}{f'{low:.3f}-{high:.3f}':>15}"
            f"{row['peak_bytes'] / 2**20:>8.1f} MiB"
        )
    return "\n".join(lines) + "\n"


def _row(times: list[float], reference: list[float], peak: int) -> dict[str, Any]:
    low, median, high = quantiles(times, n=4, method="inclusive")
    ratios = quantiles([mine / theirs for mine, theirs in zip(times, reference, strict=True)], n=4, method="inclusive")
    return {
        "median_s": median,
        "quartiles_s": [low, high],
        "ratio": ratios[1],
        "ratio_quartiles": [ratios[0], ratios[2]],
        "peak_bytes": peak,
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
