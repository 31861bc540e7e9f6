"""A model's directory appears whole: written beside its place, then moved there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from interp.errors import LabError
from models.pretrained.tensors import read_json

# What `load` would read together with the new files; left over from another model, it would mix the two.
_READ_BY_LOAD = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


@contextmanager
def replace_folder(directory: str | Path, replaceable: Callable[[Mapping[str, Any]], bool]) -> Iterator[Path]:
    """Give a temporary folder beside `directory`; on a clean exit its files move there, config.json last.

    replaceable: whether a model that is already there, known by its config.json, may be replaced.

    Raises:
        LabError: the place cannot be written to, or holds another model. Nothing was changed then.
    """
    target = Path(directory).expanduser()
    stale = _check(target, replaceable)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            tempfile.TemporaryFile(dir=target).close()
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".part"))
    except OSError as error:
        raise LabError(
            f"cannot write to {str(target)!r}: {error.strerror or error}; choose another directory."
        ) from error
    try:
        yield part
        _move(part, target, stale)
    except (OSError, SafetensorError) as error:  # a full disk, say
        raise LabError(f"cannot write to {str(target)!r}: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check(target: Path, replaceable: Callable[[Mapping[str, Any]], bool]) -> list[Path]:
    """The files of an earlier model at the same place."""
    if target.exists() and not target.is_dir():
        raise LabError(f"cannot save a model to {str(target)!r}: it is a file; expected a directory.")
    config = target / "config.json"
    if config.is_file() and not replaceable(read_json(config)):
        raise LabError(f"{str(target)!r} holds another model, which would be lost; choose a new directory.")
    return [target / name for name in _READ_BY_LOAD if (target / name).is_file()] if config.is_file() else []


def _move(part: Path, target: Path, stale: list[Path]) -> None:
    for path in part.iterdir():
        path.chmod(0o666 & ~_umask())
    if not target.exists():
        part.chmod(0o777 & ~_umask())
        os.rename(part, target)
        return
    new = sorted(part.iterdir(), key=lambda path: path.name == "config.json")
    for path in new:
        os.replace(path, target / path.name)
    for path in stale:
        if path.name not in {each.name for each in new}:
            path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
