"""A GPT-2- or Llama-shaped model as a directory that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from interp.errors import LabError
from models.config import TransformerConfig
from models.gpt import GPT
from models.pretrained.family import Entry, Family
from models.pretrained.folders import replace_folder
from models.pretrained.huggingface import FAMILIES

_MARK = {"exported_by": "interp-lab"}


def to_huggingface(model: GPT, directory: str | Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer for `AutoModelForCausalLM.from_pretrained(directory)`.

    An earlier export in the same place is replaced; other files there stay.

    Raises:
        LabError: the config has no counterpart in any family (what is in the way is listed), or the place cannot be
            written to or holds another model. Nothing was changed then.
    """
    family = counterpart(model.cfg)
    with replace_folder(directory, _is_export) as folder:
        tensors = {entry.stored: _joined(model, entry) for entry in family.prefixed(model.cfg, family.prefix)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        (folder / "config.json").write_text(json.dumps(_config(model, family), indent=2) + "\n", encoding="utf-8")
    return Path(directory).expanduser()


def counterpart(cfg: TransformerConfig) -> Family:
    """The family that expresses a config.

    Raises:
        LabError: none does; the message says what is in the way in the nearest.
    """
    exported = [family for family in FAMILIES if family.write_config is not None]
    nearest = min(exported, key=lambda family: len(family.obstacles(cfg)))
    obstacles = nearest.obstacles(cfg)
    if obstacles:
        raise LabError(
            f"the model {cfg.model_name!r} has no counterpart in transformers. It is nearest to {nearest.name}, except "
            f"for {', '.join(obstacles)}.  model.save(directory) keeps it in the lab's own format."
        )
    return nearest


def _config(model: GPT, family: Family) -> dict[str, Any]:
    tokenizer = model.tokenizer
    assert family.write_config is not None
    return {
        "architectures": [family.architecture],
        "model_type": family.model_types[0],
        **family.write_config(model.cfg),
        "bos_token_id": None if tokenizer is None else tokenizer.bos_token_id,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_token_id,
        "pad_token_id": None if tokenizer is None else tokenizer.pad_token_id,
        "dtype": str(model.dtype).removeprefix("torch."),
        **_MARK,
    }


def _joined(model: GPT, entry: Entry) -> torch.Tensor:
    """The stored tensor of an entry, in storage of its own layout."""
    parts = [model.get_parameter(name).detach() for name in entry.parameters]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (whole.T if entry.transposed else whole).contiguous()


def _is_export(config: Mapping[str, Any]) -> bool:
    return _MARK.items() <= config.items()
