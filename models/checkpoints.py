"""The folder of a training run: its log, the weights on the way, and what a resumed run needs.

    run.json                          what is trained on what; a folder of another run is refused
    log.jsonl                         one JSON object a line
    checkpoints/step_000400.safetensors    weights after 400 steps: the steps to keep, and the newest
    checkpoints/step_000400.resume.pt      optimizer, scaler and random state of the newest

Every file but the log appears whole; the state is written after its weights, so a state that is there has them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from interp.errors import LabError
from interp.files import whole_file, write_text

WEIGHTS = "step_{:06d}.safetensors"
STATE = "step_{:06d}.resume.pt"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; `open` it before the first step."""

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> RunFolder:
        """Make the folder, or return to it.

        identity: what makes this run this run (sizes, data, optimisation), as plain values.

        Raises:
            LabError: the folder holds another run, or other files, or cannot be written to.
        """
        folder = Path(path).expanduser()
        wanted = json.loads(json.dumps(identity, default=str))
        if (folder / "run.json").is_file():
            _refuse_another_run(folder, wanted)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise LabError(
                f"{str(folder)!r} exists and is not the folder of a training run; expected a new or empty folder."
            )
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise LabError(
                f"cannot make the folder {str(folder)!r}: {problem.strerror}; choose another one."
            ) from problem
        write_text(folder / "run.json", json.dumps(wanted, indent=1) + "\n")
        return cls(folder)

    def save_weights(self, model: nn.Module, step: int) -> Path:
        """Keep the weights after `step` steps."""
        path = self.path / "checkpoints" / WEIGHTS.format(step)
        write_weights(model, path)
        return path

    def save(self, model: nn.Module, state: Mapping[str, Any], step: int, keep: frozenset[int]) -> None:
        """Keep all that a resumed run needs, then let go of the state before, and of its weights unless in `keep`."""
        self.save_weights(model, step)
        with whole_file(self.path / "checkpoints" / STATE.format(step)) as part:
            torch.save(dict(state), part)
        for old in self.resumable():
            if old != step:
                (self.path / "checkpoints" / STATE.format(old)).unlink()
                if old not in keep:
                    (self.path / "checkpoints" / WEIGHTS.format(old)).unlink(missing_ok=True)

    def resumable(self) -> list[int]:
        """The steps at which the run can be taken up, oldest first."""
        names = (re.fullmatch(r"step_(\d+)\.resume\.pt", p.name) for p in (self.path / "checkpoints").iterdir())
        return sorted(int(match[1]) for match in names if match)

    def load(self, model: nn.Module, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """Load the newest weights into the model; return their step and the state, or None for a fresh run.

        Raises:
            LabError: a file is damaged or does not belong to this model.
        """
        steps = self.resumable()
        if not steps:
            return None
        folder = self.path / "checkpoints"
        try:
            read_weights(model, folder / WEIGHTS.format(steps[-1]))
            state = torch.load(folder / STATE.format(steps[-1]), map_location="cpu", weights_only=True)
        except Exception as problem:
            raise LabError(
                f"cannot resume {str(self.path)!r} at step {steps[-1]}: {problem}; "
                "remove the damaged checkpoint, or start in a new folder."
            ) from problem
        return steps[-1], state

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind_log(self, step: int) -> list[dict[str, Any]]:
        """Cut the log back to what was known at `step`, and return it."""
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        write_text(self.path / "log.jsonl", "".join(json.dumps(record) + "\n" for record in kept))
        return kept


def read_log(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a last line that was cut short is left out."""
    path = Path(folder) / "log.jsonl"
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """The model's parameters and buffers as safetensors, each tensor once."""
    tensors = {name: w.detach().cpu().contiguous() for name, w in _own_tensors(model).items()}
    with whole_file(path) as part:
        save_file(tensors, part, metadata={"format": "pt"})


def read_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """The inverse of `write_weights`, in place.

    Raises:
        LabError: names or shapes that are not this model's.
    """
    found, expected = load_file(path), _own_tensors(model)
    wrong = sorted(set(found) ^ set(expected)) or [n for n in found if found[n].shape != expected[n].shape]
    if wrong:
        raise LabError(f"{str(path)!r} does not fit the model: {', '.join(wrong[:4])} differ.")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])


def _own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without second names of the same tensor (a tied unembedding)."""
    seen: dict[int, str] = {}
    for name, tensor in nn.Module.state_dict(model, keep_vars=True).items():
        seen.setdefault(id(tensor), name)
    kept = set(seen.values())
    return {name: tensor for name, tensor in nn.Module.state_dict(model).items() if name in kept}


def _refuse_another_run(folder: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as problem:
        raise LabError(f"cannot read {str(folder / 'run.json')!r}: {problem}; start in a new folder.") from problem
    different = _differences(found, wanted)
    if different:
        raise LabError(
            f"{str(folder)!r} holds another run: {'; '.join(different[:3])}. "
            "Expected a new folder, or the same run to resume."
        )


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two trees of plain values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in found if key not in wanted)]
        return [
            text
            for key in keys
            for text in _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == wanted else [f"{name} was {found!r}, now {wanted!r}"]
