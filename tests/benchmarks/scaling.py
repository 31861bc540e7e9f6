"""A scaling law, measured: `python -m tests.benchmarks.scaling TEXT --runs runs.jsonl`.

Trains the models of `models.zoo.scaling` on a text, keeps each finished one as a line of the file of runs, so that the
same command goes on where it was stopped, and writes the law that is fitted to all of them to
`results/scaling.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path

import click
import torch

from analyses import scaling_law
from models.zoo.scaling import ScalingStudy


@click.command()
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Finished runs, one JSON object a line.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and windows.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results/scaling.safetensors")
def main(text: Path, runs: Path, seed: int, out: Path) -> None:
    torch.set_num_threads(1)
    study = ScalingStudy(text, seed=seed)
    done = [json.loads(line) for line in runs.read_text().splitlines()] if runs.is_file() else []
    found = []
    for steps, width in product(study.steps, study.widths):
        wanted = {"steps": steps, "d_model": width, "seed": seed}
        run = next((run for run in done if wanted.items() <= run.items()), None)
        if run is None:
            run = wanted | asdict(study.run(width, steps))
            click.echo(run, err=True)
            with runs.open("a") as file:
                file.write(json.dumps(run) + "\n")
        found.append(run)
    law = scaling_law(*([run[name] for run in found] for name in ("parameters", "tokens", "loss")))
    law.save(out)
    click.echo(law)


if __name__ == "__main__":
    main()
