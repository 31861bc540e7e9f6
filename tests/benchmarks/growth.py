"""How the time of a sweep grows, and that its memory does not: `python -m tests.benchmarks.growth --rounds 5`.

Time: of one model, one thing growing at a time, against the number of edited sites, of prompts, of positions and of
layers, with the exponent of the power law that fits the points best (by least squares on logarithms). The edits stay
spread over all layers and positions alike. Sizes are timed in turns.

Memory: the peak of a sweep under several budgets, and of longer and longer sweeps under one. On a CPU the resident
memory of a fresh process beyond what it had before the sweep (on Linux), on a GPU what torch's allocator held.

Writes `results/growth.svg` and appends to `results/growth.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from interp import Site, sweep
from interp.edits import replace
from models import GPT, TransformerConfig
from tests.benchmarks.growth_picture import Curve, svg
from tests.benchmarks.harness import RESULTS, commit, describe_machine, interleaved, options, peak_bytes
from tests.benchmarks.sweep_subjects import prompt_pairs, sampled

MIB = 2**20
SIZES = {"sites": 128, "prompts": 8, "positions": 32, "layers": 4}
"""What one sweep has while something else grows."""
GROWTH = {
    "sites": [32, 64, 128, 256, 512],
    "prompts": [2, 4, 8, 16, 32],
    "positions": [16, 32, 64, 128, 256],
    "layers": [2, 4, 8, 16],
}
BUDGETS = [12, 24, 48, 96, 192]
"""In MiB."""
LENGTHS, FIXED = [64, 128, 256, 512], 48
"""Numbers of sites, and the budget in MiB under which they are swept."""
QUICK = {"sites": [8, 16, 32], "prompts": [2, 4], "positions": [8, 16], "layers": [1, 2]}


def sweeping(
    sites: int, prompts: int, positions: int, layers: int, device: str, dtype: str, budget: int | None = None
) -> Callable[[], Any]:
    """A sweep that patches heads' outputs (z) at so many of the places (layer, head, position), drawn at random."""
    cfg = TransformerConfig(
        layers, n_heads=8, d_model=256, d_vocab=1000, n_ctx=256, seed=0, dtype=getattr(torch, dtype), init_range=0.05
    )
    model = GPT(cfg).to(device).eval()
    pairs = prompt_pairs(model, prompts, positions, start=1)
    names = [Site("z", layer).hook_name for layer in range(layers)]
    with torch.inference_mode():
        _, cache = model.run_with_cache(pairs.corrupted, names_filter=names)
    places = sampled((layers, cfg.n_heads, positions), sites)
    rows = [[replace(Site("z", layer, head=head, pos=pos), cache)] for layer, head, pos in places]
    return partial(sweep.run, model, pairs, rows, budget=budget, progress=False)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The power of size that times grow as."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def timed(what: str, sizes: Sequence[int], rounds: int, device: str, dtype: str) -> Curve:
    """Seconds of the sweep as one of its sizes grows."""
    sides = {str(size): sweeping(**{**SIZES, what: size}, device=device, dtype=dtype) for size in sizes}
    for side in sides.values():
        side()
    taken = interleaved(sides, rounds, device=device)
    times = [median(taken[str(size)]) for size in sizes]
    return Curve(what, list(sizes), times, f"time ~ {what}^{exponent(sizes, times):.2f}")


def extra_bytes(sites: int, budget: int, device: str, dtype: str) -> int:
    """Peak memory of a sweep beyond what there was before it; on a CPU only right in a process of its own."""
    work = sweeping(**{**SIZES, "sites": sites, "positions": 64}, device=device, dtype=dtype, budget=budget)
    if device.startswith("cuda"):
        return peak_bytes(work, device)
    sweeping(2, 2, 4, 1, device, dtype)()  # imports and threads, which are no part of it
    before = _memory("VmRSS")
    work()
    return max(0, _memory("VmHWM") - before)


def _memory(which: str) -> int:
    """Bytes of memory that this process has (VmRSS) or had at most (VmHWM), as Linux counts them.

    Not `getrusage`, whose peak begins at that of the process which started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def peaks(settings: Sequence[tuple[int, int]], device: str, dtype: str) -> list[int]:
    """Bytes at the peak for each (number of sites, budget), each in a fresh process."""
    found = []
    for sites, budget in settings:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            found.append(fresh.submit(extra_bytes, sites, budget, device, dtype).result())
    return found


def in_memory(budgets: Sequence[int], lengths: Sequence[int], device: str, dtype: str) -> list[Curve]:
    """Peaks under several budgets, and of several lengths under one."""
    under = peaks([(lengths[-1], budget * MIB) for budget in budgets], device, dtype)
    longer = peaks([(sites, FIXED * MIB) for sites in lengths], device, dtype)
    over = max(0.0, max(peak / MIB - budget for budget, peak in zip(budgets, under, strict=True)))
    power = exponent(lengths, longer)
    return [
        Curve(
            "budget, MiB",
            list(budgets),
            [each / MIB for each in under],
            f"at most {over:.0f} MiB over the budget (dashed)",
            budgets,
        ),
        Curve(
            "sites",
            list(lengths),
            [each / MIB for each in longer],
            f"peak ~ sites^{power:.2f}; budget dashed",
            [FIXED] * len(lengths),
        ),
    ]


def report(curves: Sequence[Curve], memory: Sequence[Curve], record: dict[str, Any]) -> str:
    """The numbers as text."""
    lines = [json.dumps(record["machine"]), f"sizes {SIZES}, d_model 256, 8 heads; {record['rounds']} rounds"]
    for unit, group in (("s", curves), ("MiB", memory)):
        for curve in group:
            points = ", ".join(f"{x}: {y:.3g}" for x, y in zip(curve.x, curve.y, strict=True))
            lines.append(f"{unit} by {curve.what}: {points}; {curve.finding}")
    return "\n".join(lines)


@click.command()
@options
@click.option("--quick", is_flag=True, help="Few and small sizes, to see that all runs; nothing is kept.")
def main(device: str, dtype: str, rounds: int, quick: bool) -> None:
    growth, budgets, lengths = (QUICK, [12, 24], [16, 32]) if quick else (GROWTH, BUDGETS, LENGTHS)
    curves = [timed(what, sizes, rounds, device, dtype) for what, sizes in growth.items()]
    memory = in_memory(budgets, lengths, device, dtype)
    record = {
        "name": "growth",
        "sizes": SIZES,
        "device": device,
        "dtype": dtype,
        "rounds": rounds,
        "seconds": {curve.what: vars(curve) for curve in curves},
        "mebibytes": {curve.what: vars(curve) for curve in memory},
        "machine": describe_machine(device),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    click.echo(report(curves, memory, record))
    with TemporaryDirectory() as scratch:
        results = Path(scratch) if quick else RESULTS
        results.mkdir(exist_ok=True)
        suffix = "" if device == "cpu" else f"-{device.partition(':')[0]}-{dtype}"
        (results / f"growth{suffix}.svg").write_text(svg(curves, memory))
        with (results / "growth.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
