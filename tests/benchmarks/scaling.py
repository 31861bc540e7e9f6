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

from models.zoo.scaling import Run, ScalingStudy


@click.command()
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Finished runs, one JSON object a line.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results/scaling.safetensors")
def main(text: Path, runs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    study = ScalingStudy(text)
    done = [json.loads(line) for line in runs.read_text().splitlines()] if runs.is_file() else []
    for steps, width in product(sorted(study.steps), sorted(study.widths)):
        if not any((run["steps"], run["d_model"]) == (steps, width) for run in done):
            found = {"steps": steps, **asdict(study.run(width, steps))}
            click.echo(found, err=True)
            done.append(found)
            with runs.open("a") as file:
                file.write(json.dumps(found) + "\n")
    from analyses import scaling_law

    found = [Run(**{name: value for name, value in run.items() if name != "steps"}) for run in done]
    law = scaling_law([r.parameters for r in found], [r.tokens for r in found], [r.loss for r in found])
    law.save(out)
    click.echo(str(law))


if __name__ == "__main__":
    main()
