"""`interp train`: a model of the zoo made anew, or one that learns from your text, examples or preferences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from analyses.command_line.choices import Output, misuse
from analyses.command_line.kinds import Device, Name, OutputFolder
from analyses.command_line.options import bundle, json_option
from analyses.command_line.shell import note

KINDS: tuple[Literal["text", "instructions", "preferences"], ...] = ("text", "instructions", "preferences")


@dataclass(frozen=True)
class Source:
    """What is learned: a recipe, or a file of one kind, with the trained model to go on from.

    Raises:
        click.UsageError: at construction, when the options do not fit together.
    """

    name: str | None
    text: str | None
    instructions: str | None
    preferences: str | None
    model: str | None
    tokenizer: str | None

    def __post_init__(self) -> None:
        given = [kind for kind in ("name", *KINDS) if getattr(self, kind) is not None]
        if len(given) != 1:
            what = ", ".join("a recipe" if kind == "name" else f"--{kind}" for kind in given) or "nothing to learn"
            raise misuse(f"{what}; expected a recipe, --text, --instructions or --preferences, one of them.")
        if given[0] == "name" and (self.model is not None or self.tokenizer is not None):
            raise misuse("a recipe says itself what it starts from; expected no --model and no --tokenizer beside it.")
        if given[0] in ("instructions", "preferences") and self.model is None:
            raise misuse(f"--{given[0]} needs a trained model to go on from; give --model, such as --model town.")
        if self.tokenizer is not None and (self.text is None or self.model is not None):
            raise misuse("--tokenizer is for a fresh model of a --text; a trained model keeps its own.")

    def recipe(self, out: Path | None) -> Any:
        """The recipe that these options mean. out: where the model goes, which names a model of a file.

        Raises:
            LabError: no such recipe, or one that cannot be read.
        """
        from models.zoo import recipes

        if self.name is not None:
            if not Path(self.name).exists():
                Name("recipe", recipes.names).convert(self.name, None, click.get_current_context())
            return recipes.find(self.name)
        [(kind, file)] = ((kind, getattr(self, kind)) for kind in KINDS if getattr(self, kind) is not None)
        name = out.name if out else Path(file).stem or kind
        return recipes.for_file(kind, file, name, self.model, self.tokenizer or "characters")


_SOURCE = (
    click.argument("name", metavar="[NAME]", required=False),
    click.option("--text", metavar="FILE", help="Learn a text (UTF-8)."),
    click.option(
        "--instructions", metavar="FILE", help="Learn answers: JSON lines with prompt and answer, or 'gifts'."
    ),
    click.option(
        "--preferences", metavar="FILE", help="Learn which answer is liked: prompt, chosen, rejected; 'gifts'."
    ),
    click.option("--model", help="The trained model to go on from."),
    click.option(
        "--tokenizer", metavar="KIND", help="Of a --text: characters, bpe, or of a model.  [default: characters]"
    ),
)
source_options = bundle(Source, "source", *_SOURCE)


@click.command()
@source_options
@click.option("--out", type=OutputFolder(), help="Where the model goes.  [default: ./NAME]")
@click.option("--set", "changes", multiple=True, metavar="ENTRY=VALUE", help="Change the recipe: model.n_layers=1, ...")
@click.option("--seed", type=click.IntRange(min=0), help="Of data, weights and training.  [default: the recipe's]")
@click.option("--device", type=Device(), help="cpu, cuda, mps.  [default: cpu]")
@json_option
def train(
    source: Source, out: Path | None, changes: tuple[str, ...], seed: int | None, device: str | None, output: Output
) -> None:
    """Make a model of the zoo anew, or one from a recipe.toml or your own data; an interrupted run goes on.

    \b
    interp train induction-2l                                    a model of the zoo
    interp train --text book.txt --tokenizer bpe                 pre-training on a text
    interp train --instructions answers.jsonl --model book       supervised fine-tuning
    interp train --preferences liked.jsonl --model answers       preference optimisation (DPO)
    """
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import training_view
    from models.checkpoints import read_log
    from models.devices import available
    from models.zoo import recipes

    place = available(device)
    recipe = source.recipe(out).changed([*changes, *([] if seed is None else [f"seed={seed}"])])
    folder = out or OutputFolder().convert(recipe.name, None, None)
    try:
        recipes.replay(recipe, folder, place)
    except KeyboardInterrupt:
        note(f"the same command goes on from the last checkpoint in {folder}")
        raise
    records = read_log(folder)
    deliver(output, {"model": str(folder), "log": records}, training_view(folder, records))
