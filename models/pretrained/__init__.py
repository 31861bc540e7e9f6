"""`load`: trained models by name or path.

model = load("town")                                    # from the zoo that ships with the lab
model = load("induction-2l", revision="step-400")       # an earlier checkpoint of it
model = load("checkpoints/mine", dtype="bfloat16")      # what model.save wrote, or a Hugging Face directory
model = load("checkpoints/theirs")                      # a HookedTransformer's config as JSON, and its state dict
model = load("gpt2", device="cuda")                     # from the Hugging Face hub
model = load("gpt2", backend="transformer-lens")        # as TransformerLens's TransformerBridge
model = load("bigscience/bloom-560m")                   # the same, with a warning: the lab has no code of its own
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from interp.errors import LabError, choose
from models.devices import available, dtype_of
from models.gpt import GPT
from models.pretrained import hooked, huggingface, native
from models.pretrained.family import UnsupportedError
from models.pretrained.places import Checkpoint, locate, locate_tokenizer, zoo_names
from models.pretrained.tensors import read_json
from models.tokenizers import NoTokenizerError, Tokenizer

if TYPE_CHECKING:
    from models.bridge import Bridge

__all__ = ["BACKENDS", "load", "load_tokenizer", "zoo_names"]

BACKENDS = ("native", "transformer-lens")
Device = torch.device | str | None
Dtype = torch.dtype | str | None


@overload
def load(
    name_or_path: str | Path,
    backend: Literal["native"] | None = ...,
    device: Device = ...,
    dtype: Dtype = ...,
    revision: str | None = ...,
) -> GPT: ...
@overload
def load(
    name_or_path: str | Path,
    backend: Literal["transformer-lens"],
    device: Device = ...,
    dtype: Dtype = ...,
    revision: str | None = ...,
) -> Bridge: ...
@overload
def load(
    name_or_path: str | Path, backend: str | None, device: Device = ..., dtype: Dtype = ..., revision: str | None = ...
) -> Any: ...
def load(
    name_or_path: str | Path,
    backend: str | None = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: str | None = None,
) -> Any:
    """A trained model: a directory, a model of the zoo, or a Hugging Face hub id.

    backend: "native" gives the lab's own `GPT` or `EncoderDecoder`, "transformer-lens" a `models.bridge.Bridge` of the
    same weights.
    By default native for the zoo, the lab's own directories and `huggingface.FAMILIES`; what the lab has no code for
    becomes a `Bridge`, and a warning says so and why.
    device: by default the CPU. dtype: by default the checkpoint's own. revision: a branch, tag or commit of the hub,
    or "step-400" for a directory that keeps earlier checkpoints.

    Weights come from safetensors (a HookedTransformer's also from `torch.load(weights_only=True)`) and are read a
    piece at a time, so memory holds them once. No remote code runs. Without a tokenizer beside the weights the
    model takes token ids and no text.

    Raises:
        LabError: no such model (near misses are named), a device that is not there, files that are missing, corrupt
            or contradict each other, or an architecture that the backend (by default: neither) knows.
    """
    if backend is not None:
        choose("backend", backend, BACKENDS)
    place = available(device)
    precision = None if dtype is None else dtype_of(dtype)
    checkpoint = locate(name_or_path, revision)
    if backend == "transformer-lens":
        return _bridge(checkpoint, place, precision)
    try:
        return _native(checkpoint, place, precision)
    except UnsupportedError as problem:
        if backend == "native":
            raise
        return _bridged_instead(problem, checkpoint, place, precision)


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> Tokenizer:
    """A tokenizer without its model: of a directory, a model of the zoo, or a hub id, such as "gpt2" for GPT-2's.

    Of the hub only the tokenizer's files are downloaded, and nothing where they are on this machine.

    Raises:
        UnknownModelError: no such model; near misses are named.
        NoTokenizerError: it has no tokenizer that the lab reads.
        LabError: its files are corrupt, or the hub does not give them.
    """
    return Tokenizer.from_dir(locate_tokenizer(name_or_path, revision))


def _native(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None) -> Any:
    config = read_json(checkpoint.directory / "config.json")
    read = native.read if native.is_native(config) else hooked.read if hooked.is_hooked(config) else huggingface.read
    model = read(checkpoint, config, _tokenizer(checkpoint.directory), device, dtype)
    model.revision = checkpoint.revision
    return model


def _bridge(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None) -> Bridge:
    from models.pretrained import bridged

    huggingface.check_layers(checkpoint)
    return bridged.read(checkpoint, _tokenizer(checkpoint.directory), device, dtype)


def _bridged_instead(
    problem: UnsupportedError, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None
) -> Bridge:
    """A bridge of what the lab has no code for, and a warning; the error of both ways if TransformerLens has none."""
    try:
        huggingface.check_head(read_json(checkpoint.directory / "config.json"))
        bridge = _bridge(checkpoint, device, dtype)
    except (LabError, ImportError) as error:
        raise LabError(f"{problem.what}  Nor is there a way through TransformerLens: {error}") from error
    warnings.warn(f"{problem.what}  Loaded through TransformerLens instead.", stacklevel=3)
    return bridge


def _tokenizer(directory: Path) -> Tokenizer | None:
    try:
        return Tokenizer.from_dir(directory)
    except NoTokenizerError:
        return None
