"""Where `HookedTransformer.from_pretrained` gets its model from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import LabError
from models.gpt import GPT
from models.positions import LearnedPositions
from models.pretrained import load
from models.pretrained.places import zoo_names

# Arguments of HookedTransformer's that change nothing here.
_WITHOUT_EFFECT = ("move_to_device", "token", "cache_dir", "low_cpu_mem_usage")


def fetched(
    name: str,
    hf_model: Any,
    device: torch.device,
    dtype: torch.dtype,
    version: str | int | None,
    first_n_layers: int | None,
    n_ctx: int | None,
    others: Mapping[str, Any],
) -> GPT:
    """The model of that name, or of the weights of a transformers model, unprocessed.

    version: a revision, or a number of training steps.

    Raises:
        LabError: as `models.load`; arguments that the lab does nothing of; more layers or positions than there are; an
            architecture that HookedTransformer does not have.
    """
    asked = {key: value for key, value in others.items() if key not in _WITHOUT_EFFECT and value not in (None, False)}
    if asked.pop("n_devices", 1) != 1 or asked:
        raise LabError(
            f"from_pretrained was given {dict(others)!r}, of which the lab does nothing; expected one device, "
            "full-precision weights and no code from elsewhere.  Leave those arguments out."
        )
    if hf_model is None:
        model = load(name, device=device, dtype=dtype, revision=_revision(name, version))
    else:
        model = _of_transformers(hf_model, name, device, dtype)
    if not isinstance(model, GPT):
        raise LabError(f"{name!r} is a {type(model).__name__}, expected a decoder alone (GPT).  Try models.load.")
    if first_n_layers is not None:
        _keep_layers(model, first_n_layers)
    if n_ctx is not None:
        _keep_positions(model, n_ctx)
    return model


def _revision(name: str, version: str | int | None) -> str | None:
    """Checkpoints in a folder are called step-400, branches of the hub step400."""
    if not isinstance(version, int):
        return version
    here = name in zoo_names() or Path(name).expanduser().is_dir()
    return f"step-{version}" if here else f"step{version}"


def _of_transformers(hf_model: Any, name: str, device: torch.device, dtype: torch.dtype) -> GPT:
    """By way of the files that it saves, so that there is one way in which weights are read."""
    with tempfile.TemporaryDirectory() as folder:
        hf_model.save_pretrained(folder)
        model = load(folder, device=device, dtype=dtype)
    model._cfg = replace(model._cfg, model_name=name)
    return model


def _keep_layers(model: GPT, n: int) -> None:
    if not 1 <= n <= model.cfg.n_layers:
        raise LabError(f"first_n_layers={n}; expected 1 to {model.cfg.n_layers}.")
    kinds = None if model.cfg.attn_types is None else model.cfg.attn_types[:n]
    model.blocks = model.blocks[:n]
    model._cfg = replace(model.cfg, n_layers=n, attn_types=kinds)


def _keep_positions(model: GPT, n_ctx: int) -> None:
    learned = model.cfg.positional_embedding_type == "learned"
    if n_ctx < 1 or (learned and n_ctx > model.cfg.n_ctx):
        raise LabError(f"n_ctx={n_ctx}; expected at least 1, and of learned positions at most {model.cfg.n_ctx}.")
    if learned and isinstance(model.pos_embed, LearnedPositions):
        model.pos_embed.W_pos = nn.Parameter(model.W_pos[:n_ctx].detach())
    model._cfg = replace(model.cfg, n_ctx=n_ctx)
