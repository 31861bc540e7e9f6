"""The lab's own directories: config.json, model.safetensors, tokenizer files.

config.json holds the config's `to_dict()` beside `format`, `format_version` and, but for a GPT, the name of the
`architecture`; the tensors have the names of the model's parameters. A directory may also hold
`checkpoints/step_000400.safetensors` and the like, the weights at other moments of the training, which
`revision="step-400"` picks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from interp.errors import LabError
from models.architectures import architecture, architecture_of
from models.pretrained.assemble import check_depth, fill, hollow
from models.pretrained.family import Entry
from models.pretrained.folders import replace_folder
from models.pretrained.places import Checkpoint
from models.pretrained.tensors import open_file, open_tensors
from models.tokenizers import Tokenizer

FORMAT, FORMAT_VERSION = "interp-lab", 1


def is_native(config: Mapping[str, Any]) -> bool:
    return config.get("format") == FORMAT


def read_config(config: Mapping[str, Any]) -> Any:
    """The config of a native directory, of the class that goes with its architecture.

    Raises:
        LabError: it was written by a later version of the lab, or is not a valid config.
    """
    if config.get("format_version") != FORMAT_VERSION:
        raise LabError(
            f"config.json has format_version={config.get('format_version')!r}, this version of the lab reads "
            f"{FORMAT_VERSION}; update the lab."
        )
    known = architecture(_kind(config))
    about = ("format", "format_version", "architecture")
    return known.config_class.from_dict({name: value for name, value in config.items() if name not in about})


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("architecture", "gpt"))


def read(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Any:
    """The model that `save` wrote, or an earlier checkpoint of it.

    Raises:
        LabError: no such checkpoint, or the weights do not fit the config.
    """
    directory, step = checkpoint.directory, checkpoint.step
    stored = open_tensors(directory) if step is None else open_file(weights_at(directory, step))
    cfg = read_config(config)
    check_depth(getattr(cfg, "n_layers", None), stored)
    model = hollow(cfg, tokenizer, _kind(config))
    entries = [Entry(name, (name,)) for name, _ in model.named_parameters()]
    return fill(model, entries, stored, "(?!)", device, dtype or cfg.dtype)


def weights_at(directory: Path, revision: str) -> Path:
    """The weights file of a revision such as "step-400".

    Raises:
        LabError: there is none; those that there are, are named.
    """
    steps = steps_of(directory)
    if revision not in steps:
        known = f"known: {', '.join(steps)}" if steps else "it has only one version, try without revision"
        raise LabError(f"{str(directory)!r} has no revision {revision!r}; {known}.")
    return steps[revision]


def steps_of(directory: Path) -> dict[str, Path]:
    """The weights files of all revisions such as "step-400", the first one first."""
    files = (directory / "checkpoints").glob("step_*.safetensors")
    steps = {int(match[1]): path for path in files if (match := re.fullmatch(r"step_(\d+)", path.stem))}
    return {f"step-{step}": steps[step] for step in sorted(steps)}


def save(model: Any, directory: str | Path) -> Path:
    """Write a directory that `load` turns into the same model, bit for bit.

    An earlier model of the lab in the same place is replaced; other files there stay.

    Raises:
        LabError: the place cannot be written to, or holds a model of another format. Nothing was changed then.
    """
    kind = architecture_of(model)
    named = {} if kind == "gpt" else {"architecture": kind}  # an earlier version of the lab reads a GPT
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **named, **model.cfg.to_dict()}
    with replace_folder(directory, is_native) as folder:
        tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Path(directory).expanduser()
