"""A sweep on disk while it runs, so that one that was killed goes on where it was.

The file appears whole or not at all and is replaced whole, so it can be read after a kill at any moment. It says whose
sweep it is (the weights, the prompts, the rows, the metric), and another's is refused. It also keeps the memory
budget, which decides how runs are batched: a sweep that goes on rounds as it would have.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from types import TracebackType

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import files, provenance
from interp.errors import LabError
from interp.metrics import Divergence
from interp.sweep.job import Job

SAVE_EVERY = 2.0
"""Seconds between saves."""
FORMAT = "interp.sweep/1"


@dataclass
class Saved:
    """The numbers so far. values: NaN where not `done`. path: None keeps nothing on disk.

    As a context it saves on the way out, also when that is an exception or Ctrl-C.
    """

    job: Job
    path: Path | None
    values: Float[np.ndarray, "row prompt"]
    done: Bool[np.ndarray, "row prompt"]
    identity: dict[str, str] = field(default_factory=dict)
    last: float = field(default_factory=monotonic)

    @classmethod
    def of(cls, job: Job, out: str | os.PathLike[str] | None) -> Saved:
        """Start anew, or from what is in the file.

        Raises:
            LabError: the file cannot be written to, is no saved sweep, or holds another one, and what differs.
        """
        shape = (len(job.rows), len(job.pairs))
        empty = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        if out is None:
            return cls(job, None, *empty)
        path, identity = files.check_writable(out), identity_of(job)
        if not path.exists():
            return cls(job, path, *empty, identity)
        values, done, budget = _read(path, identity)
        return cls(replace(job, budget=budget), path, values, done, identity)

    def keep(self, row: Int[np.ndarray, "item"], prompt: Int[np.ndarray, "item"], scores: np.ndarray) -> None:
        """Take in some numbers, and save when it is time."""
        fresh = ~self.done[row, prompt]
        self.values[row[fresh], prompt[fresh]] = scores[fresh]
        self.done[row, prompt] = True
        if self.path is not None and monotonic() - self.last >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file whole."""
        if self.path is None:
            return
        from safetensors.numpy import save_file

        about = {"format": FORMAT, "budget": str(self.job.budget), "identity": json.dumps(self.identity)}
        with files.whole_file(self.path) as part:
            save_file({"values": self.values, "done": self.done}, part, metadata=about)
        self.last = monotonic()

    def __enter__(self) -> Saved:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.save()


def _read(path: Path, identity: dict[str, str]) -> tuple[np.ndarray, np.ndarray, int]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise LabError(f"{str(path)!r} is not a saved sweep; give another file, or remove it.")
            found = json.loads(about["identity"])
            differing = [name for name, value in identity.items() if found.get(name) != value]
            if differing:
                raise LabError(
                    f"{str(path)!r} holds another sweep: it differs in its {', '.join(differing)}; give another file, "
                    "or remove it."
                )
            return file.get_tensor("values").copy(), file.get_tensor("done").copy(), int(about["budget"])
    except (SafetensorError, OSError) as problem:
        raise LabError(f"{str(path)!r} is not a saved sweep ({problem}); give another file, or remove it.") from problem


def identity_of(job: Job) -> dict[str, str]:
    """What makes this sweep this sweep, as hashes by name. Of a custom metric or edit only the name is known."""
    pairs = job.pairs
    tensors = [pairs.clean, pairs.corrupted, pairs.mask, pairs.right, pairs.wrong]
    tensors += [] if pairs.at is None else [pairs.at]
    reference = [job.metric.reference] if isinstance(job.metric, Divergence) else []
    rows = hashlib.sha256()
    for row in job.rows:
        for edit in row:
            rows.update(f"{edit} ".encode())
            if edit.values is not None:
                rows.update(_hash([edit.values]).encode())
        rows.update(b"\n")
    return {
        "model": provenance.weights_hash(job.model),
        "dtype": str(job.model.dtype),
        "prompts": _hash(tensors),
        "edits": rows.hexdigest(),
        "metric": job.metric.name + _hash(reference),
        "way of running": f"{job.way} on {job.model.device.type}",
    }


def _hash(tensors: list[Tensor]) -> str:
    return hashlib.sha256(" ".join(map(provenance.tensor_hash, tensors)).encode()).hexdigest()
