"""The card of a trained model: what it is, what it was trained on, what it reached."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from models.training import TrainingConfig

if TYPE_CHECKING:
    from models.gpt import GPT
    from models.zoo.recipes import Recipe

MAX_ROWS = 32
NOT_MEASURES = ("step", "seconds", "loss", "lr", "grad_norm")


def card(recipe: Recipe, model: GPT, training: TrainingConfig, log: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: summary, facts, the course of training, and the recipe's notes."""
    facts = {
        "data": _listed(recipe.data),
        "model": _listed(recipe.model),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "training": _listed(recipe.training),
        "steps": f"{training.steps:,}",
        "seed": recipe.seed,
        "loss of the last batch": next((f"{r['loss']:.4g} nats" for r in reversed(log) if "loss" in r), "-"),
        "time": f"{log[-1]['seconds']:.0f} s" if log else "-",
        "hardware": _hardware(model.device),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
    }
    rows = "\n".join(f"| {name} | {_escaped(str(value))} |" for name, value in facts.items())
    parts = [
        f"# {recipe.name}",
        recipe.summary.strip(),
        f"| | |\n|---|---|\n{rows}",
        _course(log),
        recipe.notes.strip(),
        f"Made by `interp train {recipe.name if recipe.ships else 'recipe.toml'}`; the recipe is `recipe.toml`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _course(log: Sequence[Mapping[str, Any]]) -> str:
    """What was measured on the way, as a table; every n-th measurement when there are many."""
    measured = [record for record in log if set(record) - set(NOT_MEASURES)]
    if not measured:
        return ""
    names = [name for name in measured[-1] if name not in NOT_MEASURES]
    every = -(-len(measured) // MAX_ROWS)
    shown = [*measured[:-1][::every], measured[-1]]
    head = f"| step | {' | '.join(name.replace('_', ' ') for name in names)} |\n|{'---|' * (len(names) + 1)}"
    lines = [f"| {r['step']} | {' | '.join(f'{r[name]:.4g}' for name in names)} |" for r in shown]
    return "## Course of training\n\n" + "\n".join([head, *lines])


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} thread(s), {platform.machine()}"


def _listed(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in entries.items())


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
