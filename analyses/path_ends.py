"""The two ends of direct paths, as they are asked for: senders, receivers, and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.fills import fill_of
from interp.errors import LabError
from interp.prompts import PromptPairs
from interp.sites import Site
from interp.stream_points import end, read_at

LOGITS = "logits"
READS = {"q": "head", "k": "key/value head", "v": "key/value head", "mlp_in": ""}
"""The kinds that receive, and what a site of that kind counts."""
WRITES = ("z", "mlp_out", "embed")

Given = str | Site | tuple[Site, ...]


@dataclass(frozen=True)
class Receiver:
    """One column of the result. sites: the inputs that are patched together; none are the logits, at `pos` alone if it
    is given."""

    label: str
    sites: tuple[Site, ...]
    pos: int | None = None

    def points(self, cfg: Any) -> set[int]:
        """The points of the stream that it reads."""
        return {read_at(cfg, site) for site in self.sites} or {end(cfg)}


def receivers_of(model: Any, pairs: PromptPairs, given: Given | Sequence[Given]) -> list[Receiver]:
    """One receiver for each that is given; a layer's heads apart.

    Raises:
        LabError: what does not receive, or that the model or the prompts do not have.
    """
    listed = [given] if isinstance(given, str | Site) else list(given)
    found = []
    for one in listed:
        if isinstance(one, str) and one == LOGITS:
            found.append(Receiver(LOGITS, ()))
            continue
        together = (one,) if isinstance(one, Site) else one
        if not isinstance(together, tuple) or not together or not all(isinstance(site, Site) for site in together):
            raise LabError(f"receiver {one!r}; expected {LOGITS!r}, a Site, or a tuple of Sites to patch together.")
        for site in together:
            _check_receiver(model, pairs, site)
        apart = _heads_apart(model, one) if isinstance(one, Site) else [together]
        found += [Receiver(" + ".join(map(_read_label, sites)), sites) for sites in apart]
    _check_distinct("receivers", [one.label for one in found])
    return found


def senders_of(model: Any, given: Sequence[Site] | None) -> list[Site]:
    """The senders, each a head, an MLP or the embedding; by default all heads and MLPs.

    Raises:
        LabError: what does not send, or that the model does not have.
    """
    cfg = model.cfg
    if given is None:
        kinds = ("z",) if cfg.attn_only else ("z", "mlp_out")
        given = [Site(kind, layer) for layer in range(cfg.n_layers) for kind in kinds]
    found = []
    for site in [given] if isinstance(given, Site) else given:
        if not isinstance(site, Site) or site.kind not in WRITES or site.pos is not None:
            raise LabError(
                f"sender {site!s}; expected Site('z', layer, head=...), Site('mlp_out', layer) or Site('embed'); the "
                "positions of all senders go into positions=."
            )
        _check_place(model, site, "sender")
        apart = site.kind == "z" and site.head is None
        found += [Site("z", site.layer, head) for head in range(cfg.n_heads)] if apart else [site]
    _check_distinct("senders", [sender_label(site) for site in found])
    return found


def sender_label(site: Site) -> str:
    """`L3H1`, `MLP3` or `embed`."""
    return {"z": f"L{site.layer}H{site.head}", "mlp_out": f"MLP{site.layer}", "embed": "embed"}[site.kind]


def chosen_positions(
    pairs: PromptPairs, given: Sequence[int] | Bool[Tensor, "prompt pos"] | None
) -> Bool[Tensor, "prompt pos"]:
    """Where senders take the other run's output: the positions given, without padding.

    Raises:
        LabError: positions outside the prompts, a mask of another shape, or none.
    """
    n_pos = pairs.clean.shape[1]
    if given is None:
        return pairs.mask
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        if given.shape != pairs.mask.shape:
            raise LabError(f"positions is a mask {list(given.shape)}; expected the prompts' {list(pairs.mask.shape)}.")
        chosen = given.to(pairs.mask.device)
    else:
        numbers = [given] if isinstance(given, int) else [int(position) for position in given]
        if outside := [position for position in numbers if not -n_pos <= position < n_pos]:
            raise LabError(f"position {outside[0]} of prompts with {n_pos}; expected {-n_pos} to {n_pos - 1}.")
        chosen = torch.zeros_like(pairs.mask)
        chosen[:, numbers] = True
    chosen = chosen & pairs.mask
    if not chosen.any():
        raise LabError(f"positions={given} chooses no token of any prompt; give at least one, or None for all.")
    return chosen


def means_of(model: Any, runs: PromptPairs, senders: Sequence[Site], value: str) -> Mapping[str, Tensor]:
    """For value="mean" the mean of what senders write, over the prompts that `runs` are patched from."""
    if value != "mean":
        return {}
    return fill_of(model, runs, sorted({site.kind for site in senders}), value).tensors


def stand_ins(
    value: str, own: Mapping[str, Tensor], other: Mapping[str, Tensor], means: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """What senders take in place of what they wrote: of the other run ("resample"), their means, or zeros."""
    if value == "resample":
        return other
    return {
        name: torch.zeros_like(own[name]) if value == "zero" else means[name].expand_as(own[name]) for name in other
    }


def _check_receiver(model: Any, pairs: PromptPairs, site: Site) -> None:
    if site.kind not in READS:
        raise LabError(
            f"receiver {site}; expected {LOGITS!r} or a site of kind 'q', 'k' or 'v' (a head's input) or 'mlp_in'."
        )
    _check_place(model, site, "receiver")
    n_pos = pairs.clean.shape[1]
    if site.pos is not None and not -n_pos <= site.pos < n_pos:
        raise LabError(f"receiver {site}: the prompts have {n_pos} positions; expected {-n_pos} to {n_pos - 1}.")


def _check_place(model: Any, site: Site, what: str) -> None:
    cfg = model.cfg
    if site.layer is not None and site.layer >= cfg.n_layers:
        raise LabError(f"{what} {site}: the model has {cfg.n_layers} layers, 0 to {cfg.n_layers - 1}.")
    if site.kind in ("mlp_in", "mlp_out") and cfg.attn_only:
        raise LabError(f"{what} {site}: {cfg.model_name!r} has no MLPs.")
    heads = _n_heads(model, site.kind)
    if site.head is not None and not 0 <= site.head < heads:
        raise LabError(f"{what} {site}: layer {site.layer} has {heads} {READS.get(site.kind, 'head')}s, from 0.")


def _check_distinct(what: str, labels: Sequence[str]) -> None:
    if not labels:
        raise LabError(f"there are no {what}; give at least one.")
    if repeated := [label for number, label in enumerate(labels) if label in labels[:number]]:
        raise LabError(f"{repeated[0]} is given twice among the {what}; give each once.")


def _heads_apart(model: Any, site: Site) -> list[tuple[Site, ...]]:
    if site.kind == "mlp_in" or site.head is not None:
        return [(site,)]
    return [(Site(site.kind, site.layer, head, site.pos),) for head in range(_n_heads(model, site.kind))]


def _n_heads(model: Any, kind: str) -> int:
    shared = kind in ("k", "v")
    return (getattr(model.cfg, "n_key_value_heads", None) if shared else None) or model.cfg.n_heads


def _read_label(site: Site) -> str:
    head = "" if site.head is None else f"H{site.head}"
    where = "" if site.pos is None else f" at {site.pos}"
    return (f"MLP{site.layer}" if site.kind == "mlp_in" else f"L{site.layer}{head}.{site.kind}") + where
