"""Where a name leads: a directory, the zoo, or the Hugging Face hub, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp.errors import LabError, UnknownModelError, did_you_mean
from models.pretrained import hub
from models.pretrained.tensors import PICKLES, refuse_pickle

ZOO = Path(__file__).resolve().parents[1] / "zoo"


@dataclass(frozen=True)
class Checkpoint:
    """A directory with a config.json, the model's name, and the version of its weights, if one is known.

    step: the revision, where it means one of several weights inside the directory.
    """

    directory: Path
    name: str
    revision: str | None = None
    step: str | None = None


def zoo_names() -> list[str]:
    """The models that ship with the lab."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def locate(name_or_path: str | Path, revision: str | None = None) -> Checkpoint:
    """Find the checkpoint that a name or a path means.

    Raises:
        UnknownModelError: nothing there; the message says where was looked, and names the near misses.
        LabError: a directory or repository without config, or a repository that is gated or lacks the revision.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name.strip() and (path / "config.json").is_file():
        return Checkpoint(path, path.resolve().name, revision, step=revision)
    if name in zoo_names():
        return Checkpoint(ZOO / name, name, revision, step=revision)
    if name.strip() and path.is_dir():
        raise LabError(f"no config.json in {name!r}; expected a directory with config.json and model.safetensors.")
    if path.is_file():
        if path.suffix in PICKLES:
            raise refuse_pickle(path)
        raise LabError(f"{name!r} is a file; expected a directory with config.json and model.safetensors.")
    if name.startswith((".", "/", "~", "\\")) or name.endswith("/") or name.count("/") > 1 or not name.strip():
        raise UnknownModelError(f"no directory {name!r}.{_from_the_zoo(name)}")
    return _from_hub(name, revision)


def locate_tokenizer(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The directory of the tokenizer that a name or a path means; of the hub, downloaded without the weights.

    Raises:
        UnknownModelError: nothing there, as `locate`.
        LabError: a repository that is gated or lacks the revision.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name.strip() and path.is_dir():
        return path
    if name in zoo_names():
        return ZOO / name
    return _asked(name, revision, hub.fetch_tokenizer)


def _asked(name: str, revision: str | None, fetch: Callable[[str, str | None], Path]) -> Path:
    try:
        return fetch(name, revision)
    except hub.NotOnHubError as error:
        raise UnknownModelError(
            f"no model {name!r}: no such directory, not in the zoo, and {error}.{_from_the_zoo(name)}"
        ) from error


def _from_hub(name: str, revision: str | None) -> Checkpoint:
    directory = _asked(name, revision, hub.fetch)
    if not (directory / "config.json").is_file():
        raise LabError(f"the Hugging Face repository {name!r} has no config.json, so it holds no whole model.")
    return Checkpoint(directory, name, revision or directory.name)


def _from_the_zoo(name: str) -> str:
    names = zoo_names()
    near = did_you_mean(name.strip("./"), names)
    return f"{near}  try a directory with config.json, or one of the zoo: {', '.join(names) or '(empty)'}."
