"""The run behind notebook 06: `python -m notebooks.runs.positions`.

Trains the model of `models.studies.positions` with each kind of position from each seed, and writes the loss of all of
them at each position of longer rows to positions.safetensors beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

from analyses import loss_by_position
from models.studies.positions import PositionStudy


def main() -> None:
    """Train, measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.runs.positions")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind, from seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, default=PositionStudy.steps)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".safetensors"))
    asked = parser.parse_args()
    study = PositionStudy(steps=asked.steps)
    models = {}
    for kind in study.kinds:
        start = perf_counter()
        models[kind] = [study.trained(kind, seed) for seed in range(asked.seeds)]
        print(f"{kind}: {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    found = loss_by_position(models, study.test_rows(), study.trained_on, seed=0)
    found.save(asked.out)
    headings, rows = found.table()
    for row in (headings, *rows):
        print("  ".join(f"{cell:24s}" for cell in row))


if __name__ == "__main__":
    main()
