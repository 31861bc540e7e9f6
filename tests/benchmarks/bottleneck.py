"""The hidden-state bottleneck, measured: `python -m tests.benchmarks.bottleneck --seed 0 --runs DIR`.

Trains a GRU, a GRU with attention and a transformer of one size to copy rows of up to 32 random symbols (about five
minutes each on one core), and writes their accuracy by length to `results/bottleneck.safetensors`. A run that was
stopped goes on from the checkpoints in DIR.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from analyses.bottleneck import accuracy_by_length
from models.zoo.bottleneck import train_all
from models.zoo.copies import Copies

LENGTHS, ROWS = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32), 256
RESULT = Path(__file__).parent / "results/bottleneck.safetensors"


@click.command()
@click.option("--seed", default=0, show_default=True, help="Of data, fresh weights and test rows.")
@click.option("--steps", default=3000, show_default=True, help="Updates of each model.")
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Folder of logs and checkpoints.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=True)
def main(seed: int, steps: int, runs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    data = Copies(max_length=max(LENGTHS), seed=seed)
    trained = train_all(data, steps, seed, runs)
    rows = [data.rows(length, ROWS, seed) for length in LENGTHS]
    tests = [(row, data.copies_of(row)) for row in rows]
    found = accuracy_by_length(trained, tests, chance=1 / data.symbols)
    found.save(out)
    click.echo(found.to_dataframe().to_string())


if __name__ == "__main__":
    main()
