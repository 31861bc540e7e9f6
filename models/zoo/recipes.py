"""Recipes: one TOML file says how a model of the zoo is made; replaying it makes the model again.

    [data]      kind = "repeats" and the settings of that kind (see `LESSONS`)
    [model]     the entries of a `TransformerConfig`; d_vocab comes from the tokenizer when it is left out, and
                normalization_type = "none" stands for no norm
    [training]  the entries of a `TrainingConfig`

with `name`, `summary`, `seed` (of data, fresh weights and training) and `notes` above them: what was found in the model
that this very recipe made, for its card.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import LabError, choose
from interp.files import write_text
from models.config import TransformerConfig
from models.training import TrainingConfig, train
from models.zoo.lessons import Lesson, checked

if TYPE_CHECKING:
    from models.gpt import GPT

ZOO = Path(__file__).resolve().parent

LESSONS = {
    "repeats": "models.zoo.repeats",
    "modular": "models.zoo.modular",
    "town": "models.zoo.corpus",
}
"""Each kind of data, and the module whose `lesson(options, seed)` makes it."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made. `text`: the file it was read from, as it was."""

    name: str
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    summary: str = ""
    notes: str = ""
    seed: int = 0
    text: str = field(default="", repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """The recipe in a TOML file.

        Raises:
            LabError: no such file, not TOML, an unknown entry (near misses named) or a missing one.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            entries = tomllib.loads(text)
        except OSError as problem:
            raise LabError(f"cannot read the recipe {str(path)!r}: {problem.strerror}.") from problem
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise LabError(f"{str(path)!r} is not TOML: {problem}.") from problem
        known = [f.name for f in fields(cls) if f.name != "text"]
        for entry in entries:
            choose("entry of a recipe", entry, known)
        missing = [name for name in ("name", "data", "model", "training") if name not in entries]
        if missing:
            raise LabError(f"the recipe {str(path)!r} lacks {', '.join(missing)}.")
        return cls(**entries, text=text)

    def changed(self, changes: Iterable[str]) -> Recipe:
        """The recipe with some entries set: "seed=1", "model.n_layers=1", "training.lr=3e-4" (values as in TOML).

        It has no notes: they are of the model that the recipe makes as it is.

        Raises:
            LabError: not of that form.
        """
        changed, changes = self, list(changes)
        for change in changes:
            name, _, value = (part.strip() for part in change.partition("="))
            section, _, entry = name.partition(".")
            try:
                parsed = tomllib.loads(f"value = {value}")["value"]
            except tomllib.TOMLDecodeError:
                parsed = value
            if section in ("data", "model", "training") and entry and value:
                sections: dict[str, Any] = {section: {**getattr(changed, section), entry: parsed}}
                changed = replace(changed, **sections)
            elif name == "seed" and isinstance(parsed, int):
                changed = replace(changed, seed=parsed)
            else:
                raise LabError(
                    f"cannot change {change!r}; expected seed=NUMBER, or data., model. or training.ENTRY=VALUE, "
                    "such as model.n_layers=1."
                )
        if not changes:
            return self
        return replace(changed, notes="", text=f"{self.text}\n# changed: {', '.join(changes)}\n")

    def lesson(self) -> Lesson:
        """The data.

        Raises:
            LabError: an unknown kind of data, or settings that it does not have.
        """
        kind = choose("kind of data", str(self.data.get("kind")), LESSONS)
        options = {name: value for name, value in self.data.items() if name != "kind"}
        lesson: Lesson = import_module(LESSONS[kind]).lesson(options, self.seed)
        return lesson

    def config(self, lesson: Lesson) -> TransformerConfig:
        """The model's sizes.

        Raises:
            LabError: unknown or contradictory entries.
        """
        sizes: dict[str, Any] = {"model_name": self.name, "seed": self.seed} | dict(self.model)
        if lesson.tokenizer is not None:
            sizes = {"d_vocab": len(lesson.tokenizer)} | sizes
        if sizes.get("normalization_type") == "none":  # TOML has no null
            sizes["normalization_type"] = None
        return TransformerConfig.from_dict(sizes)

    def training_config(self) -> TrainingConfig:
        """How it is trained.

        Raises:
            LabError: unknown entries, or values out of range.
        """
        given = {"seed": self.seed} | checked(TrainingConfig, self.training, "training")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        try:
            return TrainingConfig(**given)
        except TypeError as problem:
            raise LabError(f"[training] is incomplete: {problem}.") from problem

    def identity(self) -> dict[str, Any]:
        """What a training folder remembers of the data, to refuse another run's."""
        return {"seed": self.seed, **self.data}


def names() -> list[str]:
    """The models that have a recipe."""
    return sorted(path.parent.name for path in ZOO.glob("*/recipe.toml"))


def find(name_or_path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a zoo model, of a TOML file, or of a folder that holds `recipe.toml`.

    Raises:
        LabError: none of these; near misses are named.
    """
    path = Path(name_or_path).expanduser()
    if (ZOO / path / "recipe.toml").is_file():
        return Recipe.read(ZOO / path / "recipe.toml")
    if path.is_dir() or path.suffix == ".toml":
        return Recipe.read(path / "recipe.toml" if path.is_dir() else path)
    choose("recipe", str(name_or_path), names())
    raise AssertionError("every name that `names` gives has a recipe")


def replay(
    recipe: Recipe,
    out: str | os.PathLike[str],
    device: torch.device | str | None = None,
    progress: bool = True,
) -> GPT:
    """Train the recipe's model and save it, with its card, recipe, log and checkpoints, in the folder `out`.

    A replay that was interrupted goes on from its last checkpoint.

    Raises:
        LabError: a bad recipe, or a folder that holds something else; before any work is done.
    """
    from models.gpt import GPT
    from models.zoo.card import card

    lesson = recipe.lesson()
    training = recipe.training_config()
    model = GPT(recipe.config(lesson), tokenizer=lesson.tokenizer, device=device)
    log = train(model, lesson.batches, training, out, lesson.measure, recipe.identity(), progress)
    model.save(Path(out))
    write_text(Path(out) / "recipe.toml", recipe.text)
    write_text(Path(out) / "README.md", card(recipe, model, training, log))
    return model
