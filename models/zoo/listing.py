"""The models that ship with the lab, as their folders describe them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from models.pretrained.places import ZOO, zoo_names
from models.pretrained.tensors import open_tensors, read_json


@dataclass(frozen=True)
class ZooEntry:
    """One model: its sizes, what it is for, and how many earlier checkpoints it keeps. megabytes: of its folder."""

    name: str
    summary: str
    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    n_ctx: int
    parameters: int
    megabytes: float
    revisions: tuple[str, ...]


def entries() -> list[ZooEntry]:
    """Every model of the zoo; no weights are read.

    Raises:
        LabError: a folder of the zoo is damaged.
    """
    return [_entry(name, ZOO / name) for name in zoo_names()]


def _entry(name: str, folder: Path) -> ZooEntry:
    config = read_json(folder / "config.json")
    sizes = {size: int(config[size]) for size in ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx")}
    steps = sorted(int(path.stem.partition("_")[2]) for path in (folder / "checkpoints").glob("step_*.safetensors"))
    return ZooEntry(
        name=name,
        summary=_summary(folder),
        parameters=sum(prod(stored.shape) for stored in open_tensors(folder).entries.values()),
        megabytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
        revisions=tuple(f"step-{step}" for step in steps),
        **sizes,
    )


def _summary(folder: Path) -> str:
    """The summary of the recipe, on one line."""
    from models.zoo.recipes import Recipe

    recipe = folder / "recipe.toml"
    return " ".join(Recipe.read(recipe).summary.split()) if recipe.is_file() else ""
