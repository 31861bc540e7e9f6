"""Checkpoints through TransformerLens's bridge instead of the lab's own code."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import LabError
from models.pretrained import native
from models.pretrained.export import to_huggingface
from models.pretrained.huggingface import check_plain, dtype_of
from models.pretrained.places import Checkpoint
from models.pretrained.tensors import read_json
from models.tokenizers import Tokenizer

if TYPE_CHECKING:
    from models.bridge import Bridge


def read(
    checkpoint: Checkpoint, tokenizer: Tokenizer | None, device: torch.device, dtype: torch.dtype | None
) -> Bridge:
    """A `Bridge` of a checkpoint; a directory of the lab's own format is exported to a temporary one first.

    Raises:
        LabError: the model has no counterpart in transformers, or TransformerLens does not know its architecture.
    """
    config = read_json(checkpoint.directory / "config.json")
    if not native.is_native(config):
        check_plain(checkpoint, config)
        directory = checkpoint.directory
        bridge = boot(directory, device, dtype or dtype_of(config), tokenizer=tokenizer, model_name=checkpoint.name)
    else:
        model = native.read(checkpoint, config, tokenizer, torch.device("cpu"), dtype)
        with tempfile.TemporaryDirectory() as folder:
            exported = to_huggingface(model, Path(folder) / "model")
            bridge = boot(exported, device, model.dtype, tokenizer=tokenizer, model_name=model.cfg.model_name)
    bridge.revision = checkpoint.revision
    return bridge


def boot(
    path_or_name: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    tokenizer: Tokenizer | None = None,
    model_name: str | None = None,
) -> Bridge:
    """A `Bridge` on a Hugging Face directory or hub id, from safetensors alone and without remote code.

    `models.load(..., backend="transformer-lens")` calls this. dtype: by default float32. model_name: what results
    call the model, by default `path_or_name`.

    Raises:
        LabError: nothing there, no sound safetensors, an architecture that TransformerLens does not know, or one that
            it cannot run in this dtype.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import AutoModelForCausalLM

    from models.bridge import Bridge

    name = str(path_or_name)
    try:
        hf_model, loading = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype or torch.float32,
            attn_implementation="eager",  # the only one whose scores and patterns can be read
            use_safetensors=True,
            trust_remote_code=False,
            revision=revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        _check_loading(loading)
        hf_model.config.use_cache = False
        hf_model = hf_model.to(device).eval()
        inner = build_bridge_from_module(
            hf_model, type(hf_model).__name__, hf_config=hf_model.config, model_name=model_name or name
        )
    except Exception as error:  # whatever transformers raises of a config or of weights that make no sense
        reason = " ".join(str(error).split()[:60]) or type(error).__name__
        raise LabError(f"cannot load {name!r} with backend='transformer-lens': {reason}") from error
    try:
        return Bridge(inner, tokenizer, revision)  # which runs it
    except RuntimeError as error:
        raise LabError(
            f"TransformerLens cannot run {name!r} in {hf_model.dtype}: {error}.  Try dtype='float32', or "
            "backend='native' where the lab has the code."
        ) from error


def _check_loading(loading: Mapping[str, Any]) -> None:
    """Refuse weights for which transformers made up values."""
    for name, found, expected in sorted(loading["mismatched_keys"]):
        raise ValueError(f"{name!r} has shape {list(found)}, the config makes it {list(expected)}.")
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"the weights lack {', '.join(map(repr, missing[:4]))} ({len(missing)} in all).")
