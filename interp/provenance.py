"""Where a number comes from: everything needed to get it again.

    facts = provenance.of(model, prompts=pairs, metric="logit_diff", direction="denoise")

A `Provenance` travels with every result, into its file and onto its page.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MAX_PROMPTS = 64
"""Prompts that are kept in full; of the rest the count and a hash."""


@dataclass(frozen=True)
class Provenance:
    """The facts of one analysis; `None` where a fact does not apply or is not known.

    Attributes:
        model: name of the model.
        revision: the version of the weights that was asked for, if any.
        weights: sha256 over the names, dtypes, shapes and bytes of all weights.
        prompts: the texts or tokens by role (`text`, `clean`, `corrupted`, `right`, `wrong`), with a count
            and a hash when there are too many to keep.
        metric, site, ablation, direction, seed: what was measured, where, and how it was edited.
        settings: what else the analysis was told.
        dtype, device: of the weights.
        versions: of the lab, torch and Python.
        command: what was typed, when that is known.
        created: UTC, ISO 8601.
    """

    model: str | None = None
    revision: str | None = None
    weights: str | None = None
    prompts: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None
    site: str | None = None
    ablation: str | None = None
    direction: str | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    created: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The facts that are known, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`; facts that this version does not know are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in facts.items() if name in known})


def of(
    model: Any,
    *,
    prompts: Any = None,
    metric: str | None = None,
    site: str | None = None,
    ablation: str | None = None,
    direction: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Provenance:
    """The provenance of an analysis of `model`.

    Args:
        model: any hooked model; what it does not offer is left unknown.
        prompts: `PromptPairs`, a text, several texts, or token ids as a tensor.
        metric, site, ablation, direction, seed: see `Provenance`.
        settings: further settings; values should be plain (they go into JSON).
    """
    cfg = getattr(model, "cfg", None)
    revision = getattr(model, "revision", None) or getattr(cfg, "revision", None)
    return Provenance(
        model=getattr(cfg, "model_name", None) or type(model).__name__,
        revision=None if revision is None else str(revision),
        weights=weights_hash(model) if isinstance(model, nn.Module) else None,
        prompts=describe_prompts(model, prompts),
        metric=metric,
        site=site,
        ablation=ablation,
        direction=direction,
        seed=seed,
        settings=dict(settings or {}),
        dtype=_of_weights(model, "dtype"),
        device=_of_weights(model, "device"),
        versions=versions(),
        command=command(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@cache
def versions() -> dict[str, str]:
    """Versions of the lab, torch and Python."""
    from importlib import metadata

    try:
        lab = metadata.version("interp-lab")
    except metadata.PackageNotFoundError:
        lab = "not installed"
    return {"interp-lab": lab, "torch": str(torch.__version__), "python": platform.python_version()}


def command() -> str | None:
    """The command line of this process, without the folder of its program; `None` in a notebook or a prompt."""
    program = Path(sys.argv[0] if sys.argv else "").name
    if program in ("", "-c", "ipykernel_launcher.py"):
        return None
    return shlex.join([program, *sys.argv[1:]])


_hashes: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def weights_hash(model: nn.Module | Any) -> str:
    """sha256 over every tensor of the model's state: name, dtype, shape and bytes.

    Computed once per model and again only after a weight was replaced or changed in place (autograd's version
    counter tells). Reads every weight once, a tensor at a time per thread.
    """
    # By the names of its own parameters, also where it shows them under others: same weights, same hash.
    state = {name: w for name, w in nn.Module.state_dict(model).items() if isinstance(w, Tensor)}
    stamp = tuple((name, w.data_ptr(), 0 if w.is_inference() else w._version) for name, w in state.items())
    known = _hashes.get(model)
    if known is not None and known[0] == stamp:
        return known[1]
    names = sorted(state)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashlib releases the interpreter lock
        digests = list(pool.map(lambda name: tensor_hash(state[name]), names))
    whole = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        whole.update(f"{name} {state[name].dtype} {tuple(state[name].shape)} {digest}\n".encode())
    _hashes[model] = (stamp, whole.hexdigest())
    return whole.hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """sha256 over the bytes of a tensor."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()


def describe_prompts(model: Any, prompts: Any) -> dict[str, Any]:
    """The prompts by role, as text where `model` can turn tokens into text, else as token ids."""
    if prompts is None:
        return {}
    if isinstance(prompts, str):
        return {"text": [prompts]}
    if isinstance(prompts, Tensor):
        return _capped({"tokens": _texts(model, prompts)})
    if hasattr(prompts, "clean") and hasattr(prompts, "corrupted"):
        mask = getattr(prompts, "mask", None)
        return _capped(
            {
                "clean": _texts(model, prompts.clean, mask),
                "corrupted": _texts(model, prompts.corrupted, mask),
                "right": _texts(model, prompts.right, prompts.right >= 0),
                "wrong": _texts(model, prompts.wrong, prompts.wrong >= 0),
            }
        )
    return _capped({"text": [p if isinstance(p, str) else list(p) for p in prompts]})


def _texts(model: Any, tokens: Tensor, mask: Tensor | None = None) -> list[Any]:
    """Each row of `tokens` as text, or as a list of ids for a model without a tokenizer; masked ones left out."""
    rows = tokens[None] if tokens.ndim == 1 else tokens
    keep = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask.reshape(rows.shape)
    ids = [[t for t, k in zip(r, m, strict=True) if k] for r, m in zip(rows.tolist(), keep.tolist(), strict=True)]
    if getattr(model, "tokenizer", None) is None:
        return ids
    return ["".join(model.to_str_tokens(torch.tensor(row))) if row else "" for row in ids]


def _capped(roles: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Keep `MAX_PROMPTS` of each role, and say how many there were and what they hash to."""
    count = max((len(rows) for rows in roles.values()), default=0)
    kept: dict[str, Any] = {role: list(rows[:MAX_PROMPTS]) for role, rows in roles.items()}
    if count > MAX_PROMPTS:
        kept["count"] = count
        kept["sha256"] = hashlib.sha256(repr(dict(roles)).encode()).hexdigest()
    return kept


def _of_weights(model: Any, attribute: str) -> str | None:
    """The dtype or device that the model states, or that of its first weight."""
    value = getattr(model, attribute, None)
    if value is None and isinstance(model, nn.Module):
        first = next(model.parameters(), None)
        value = None if first is None else getattr(first, attribute)
    return None if value is None else str(value).removeprefix("torch.")
