"""Four kinds of positions beyond the length of training, measured: `python -m tests.benchmarks.positions --runs DIR`.

Trains the model of `models.zoo.positions` with each kind of position from each of three seeds (half a minute each on
one idle core), and writes the loss of all of them at each position of rows four times as long to
`results/positions.safetensors`. A run that was stopped goes on from the checkpoints in DIR.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import click
import torch

from analyses import loss_by_position
from models import GPT
from models.zoo.positions import KINDS, PositionStudy


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each kind: 0, 1, ...")
@click.option("--steps", type=click.IntRange(min=1), default=PositionStudy.steps, show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Folder of logs and checkpoints.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results/positions.safetensors")
def main(seeds: int, steps: int, runs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    study = PositionStudy(steps=steps)
    models: dict[str, list[GPT]] = {kind: [] for kind in KINDS}
    for seed, kind in product(range(seeds), KINDS):
        models[kind].append(study.trained(kind, seed, runs / f"{kind}-{seed}", progress=True))
    found = loss_by_position(models, study.test_rows(), study.trained_on, seed=0)
    found.save(out)
    headings, rows = found.table()
    for row in (headings, *rows):
        click.echo("  ".join(f"{cell:22s}" for cell in row))


if __name__ == "__main__":
    main()
