"""Recipes: one TOML file says how a model of the zoo is made; replaying it makes the model again.

    [data]      kind = "repeats" and the settings of that kind (see `LESSONS`)
    [model]     the entries of a `TransformerConfig`, or of the config of the `architecture` that is named there (see
                `models.architectures`); d_vocab comes from the tokenizer when it is left out, and
                normalization_type = "none" stands for no norm
    [training]  the entries of a `TrainingConfig`

with `name`, `summary`, `seed` (of data, fresh weights and training) and `notes` above them: what was found in the model
that this very recipe made, for its card.
A recipe that goes on from a trained model says `start = "town"` (a name or a directory) in [model], and no more there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from interp.errors import LabError, choose
from interp.files import write_text
from interp.provenance import weights_hash
from models.architectures import Architecture, architecture
from models.training import TrainingConfig, train
from models.zoo.lessons import Lesson, checked

ZOO = Path(__file__).resolve().parent

LESSONS = {
    "repeats": "models.zoo.repeats",
    "modular": "models.zoo.modular",
    "town": "models.zoo.corpus",
    "text": "models.zoo.plain_text",
    "dates": "models.zoo.iso_dates",
    "tellings": "models.zoo.tellings",
}
"""Each kind of data, and the module whose `lesson(options, seed)` makes it."""

FURTHER = {
    "text": "models.zoo.plain_text:further",
    "instructions": "models.zoo.fine_tuning:instructions",
    "preferences": "models.zoo.fine_tuning:preferences",
}
"""Each kind of data for a model that is trained already, and the function of options, seed and model that makes it."""


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
        except OSError as problem:
            raise LabError(f"cannot read the recipe {str(path)!r}: {problem.strerror}.") from problem
        except UnicodeDecodeError as problem:
            raise LabError(f"{str(path)!r} is not TOML: {problem}.") from problem
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, path: str) -> Recipe:
        """The recipe in a text. path: where it stands, for messages.

        Raises:
            LabError: as `read`.
        """
        try:
            entries = tomllib.loads(text)
        except tomllib.TOMLDecodeError as problem:
            raise LabError(f"{path!r} is not TOML: {problem}.") from problem
        known = [f.name for f in fields(cls) if f.name != "text"]
        for entry in entries:
            choose("entry of a recipe", entry, known)
        missing = [name for name in ("name", "data", "model", "training") if name not in entries]
        if missing:
            raise LabError(f"the recipe {path!r} lacks {', '.join(missing)}.")
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
        """The data for a fresh model.

        Raises:
            LabError: an unknown kind of data, or settings that it does not have.
        """
        kind, options = self._data(LESSONS)
        lesson: Lesson = import_module(LESSONS[kind]).lesson(options, self.seed)
        return lesson

    def further_lesson(self, model: Any) -> Lesson:
        """The data for a model that is trained already.

        Raises:
            LabError: a kind of data that is not for trained models, or settings that it does not have.
        """
        kind, options = self._data(FURTHER)
        module, _, name = FURTHER[kind].partition(":")
        lesson: Lesson = getattr(import_module(module), name)(options, self.seed, model)
        return lesson

    def _data(self, kinds: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        """The kind of data, and its settings."""
        kind = str(self.data.get("kind"))
        if kind not in kinds and kind in {**LESSONS, **FURTHER}:
            wanted = 'needs a trained model to go on from; give model.start, such as "town"'
            fresh = "makes a fresh model; expected sizes in [model], and no start"
            raise LabError(f"data of the kind {kind!r} {fresh if kinds is FURTHER else wanted}.")
        choose("kind of data", kind, kinds)
        return kind, {name: value for name, value in self.data.items() if name != "kind"}

    @property
    def start(self) -> str | None:
        """The trained model to go on from, if any.

        Raises:
            LabError: sizes beside it.
        """
        start = self.model.get("start")
        others = [name for name in self.model if name != "start"]
        if start is not None and others:
            raise LabError(f"model.start={start!r} brings its own sizes; expected no {', '.join(others)} beside it.")
        return None if start is None else str(start)

    @property
    def architecture(self) -> Architecture:
        """What is built.

        Raises:
            LabError: an unknown architecture.
        """
        return architecture(str(self.model.get("architecture", "gpt")))

    def config(self, lesson: Lesson) -> Any:
        """The model's sizes, a config of its architecture.

        Raises:
            LabError: unknown or contradictory entries.
        """
        sizes: dict[str, Any] = {"model_name": self.name, "seed": self.seed} | dict(self.model)
        sizes.pop("architecture", None)
        if lesson.tokenizer is not None:
            sizes = {"d_vocab": len(lesson.tokenizer)} | sizes
        if sizes.get("normalization_type") == "none":  # TOML has no null
            sizes["normalization_type"] = None
        return self.architecture.config_class.from_dict(sizes)

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

    @property
    def ships(self) -> bool:
        """Whether it is one of the zoo's."""
        return (ZOO / self.name / "recipe.toml").is_file()

    def identity(self) -> dict[str, Any]:
        """What a training folder remembers of the data, to refuse another run's."""
        file = Path(str(self.data.get("file", ""))).expanduser()
        content = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if file.is_file() else {}
        return {"seed": self.seed, **self.data, **content}


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


def for_file(
    kind: Literal["text", "instructions", "preferences"],
    file: str,
    name: str,
    start: str | None = None,
    tokenizer: str = "characters",
) -> Recipe:
    """The lab's recipe for a user's data. start: the model to go on from, without which a text alone can be learned.

    tokenizer: of a fresh model of a text, see `models.zoo.plain_text`.
    """
    template = f"further-{kind}" if kind == "text" and start is not None else kind
    path = ZOO / "templates" / f"{template}.toml"
    text = path.read_text(encoding="utf-8")
    given = {"NAME": name, "FILE": file, "START": start or "", "TOKENIZER": tokenizer}
    text = re.sub(f'"({"|".join(given)})"', lambda found: json.dumps(given[found[1]], ensure_ascii=False), text)
    return Recipe.parse(text, str(path))


def replay(
    recipe: Recipe,
    out: str | os.PathLike[str],
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Any:
    """Train the recipe's model and save it, with its card, recipe, log and checkpoints, in the folder `out`.

    A replay that was interrupted goes on from its last checkpoint.

    Raises:
        LabError: a bad recipe, or a folder that holds something else; before any work is done.
    """
    from models.pretrained import load
    from models.zoo.card import card

    training = recipe.training_config()
    if recipe.start is None:
        lesson = recipe.lesson()
        build = recipe.architecture.model_class
        model = build(recipe.config(lesson), tokenizer=lesson.tokenizer, device=device)
        identity = recipe.identity()
    else:
        model = load(recipe.start, "native", device, "float32")
        lesson = recipe.further_lesson(model)
        model._cfg = replace(model.cfg, model_name=recipe.name)
        identity = recipe.identity() | {"start": weights_hash(model)}
    log = train(model, lesson.batches, training, out, lesson.measure, identity, progress, lesson.loss)
    model.save(Path(out))
    write_text(Path(out) / "recipe.toml", recipe.text)
    write_text(Path(out) / "README.md", card(recipe, model, training, log))
    return model
