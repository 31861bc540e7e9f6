"""Attention knockout: forbid some positions to attend to others, and read what that does to the answer.

    score(q, k) <- the lowest number, for q in queries and k in keys;    effect = m(knocked out) - m(run)

Geva et al. 2023 (arXiv:2304.14767). The pattern there becomes zero and the rest of the row, renormalised, takes its
weight: what is forbidden is the flow of information, nothing is written in its place. One layer seldom matters, as its
neighbours move the same information; so the edges are knocked out in a window of layers around each.

Cost: for each window, or head, and prompt the part of a forward that follows (see `interp.sweep`).
It does not show: what flows along the edges, or ways around them through other positions or other layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.effects import SELF_REPAIR, Effects, effects, measure_of
from analyses.patching import check_site
from analyses.windows import layer_windows
from interp import metrics, provenance, sweep
from interp.contract import HookedModel
from interp.edits import Edit, Window
from interp.errors import LabError
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import to_numpy
from interp.sites import Site

Positions = int | Sequence[int] | Int[Tensor, "batch _"]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionKnockout(Effects):
    """What knocking out attention edges does to the metric: `values` is [layer], or [layer head].

    cut: how many edges each prompt lost in a head. window: how many layers lost them at once, around each.
    """

    title = "Attention knockout"
    caveat = f"{SELF_REPAIR} What is forbidden here may flow by other positions or layers."

    cut: Int[np.ndarray, "prompt"]
    window: int

    @property
    def shows(self) -> str:  # type: ignore[override]
        layers = "in one layer" if self.window == 1 else f"in {self.window} layers around each"
        where = "in one head" if "head" in self.axes else layers
        return f"The change of {self.metric} when the queries cannot attend to the keys {where}."


def attention_knockout(
    model: HookedModel | Any,
    pairs: PromptPairs,
    queries: Positions,
    keys: Positions,
    window: int = 1,
    by: Sequence[str] = ("layer",),
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    budget: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> AttentionKnockout:
    """Knock out the edges from queries to keys: `.values[layer]` in all heads, or `.values[layer, head]`.

    queries, keys: positions in the padded batch, from the end when negative; or, as a tensor, each prompt's own, such
    as `pairs.last[:, None]`. Edges to padding or to the future are not there to be cut. window: how many layers lose
    them at once: layer l stands for those from l - window // 2 on, as far as there are any. by: ("layer",), or
    ("layer", "head") to tell heads apart, one layer at a time. The runs are of the clean prompts; metric, budget,
    out, progress: as in `analyses.knockouts.ablation`.

    Raises:
        LabError: positions that the prompts do not have, no edge to cut, a query that would have nothing left to
            attend to, a window of no layers or one for single heads, prompts that the model cannot take, and as
            `sweep.run`.
    """
    _check(model, window, by)
    check_site(model, "attn_scores")
    pairs.check(model)
    if metric != "kl":
        metric = metrics.get(metric)
    pairs = pairs.to(model.device)
    edges = _edges(model, pairs, queries, keys)
    measure = measure_of(model, pairs, metric)
    rows = [[knockout(site, edges) for site in sites] for sites in _sites(model, window, "head" in by)]
    found = sweep.run(model, pairs, rows, measure, budget, out, progress)
    shape = [model.cfg.n_layers, model.cfg.n_heads][: len(by)]
    settings = {"queries": _plain(queries), "keys": _plain(keys), "window": window}
    origin = provenance.of(
        model, prompts=pairs, metric=measure.name, site="attn_scores", ablation="knockout", settings=settings
    )
    cut = to_numpy(edges.sum((1, 2)))
    return AttentionKnockout(*effects(found, shape), cut, window, axes=tuple(by), provenance=origin)


def knockout(site: Site, edges: Bool[Tensor, "batch q_pos k_pos"]) -> Edit:
    """Each prompt's own edges, knocked out of the scores of a head or of all heads."""
    values = edges if site.head is not None else rearrange(edges, "batch q_pos k_pos -> batch 1 q_pos k_pos")
    values, axes = values.float(), site.free_axes  # a window is taken of activations, which are floating-point

    def new(old: Tensor, window: Window) -> Tensor:
        return old.masked_fill(window.of(values, axes).bool(), torch.finfo(old.dtype).min)

    return Edit(site, new, "knockout", values, per_position=True)


def _check(model: HookedModel | Any, window: int, by: Sequence[str]) -> None:
    """Raises:
    LabError: the window and the axes make no question.
    """
    if tuple(by) not in (("layer",), ("layer", "head")):
        raise LabError(f"by={by!r}; expected ('layer',) or ('layer', 'head').")
    layer_windows(model.cfg.n_layers, window)
    if window > 1 and "head" in by:
        raise LabError(
            f"window={window} with heads told apart, but head 0 of one layer has nothing to do with head 0 of "
            "the next; leave out the window, or try by=('layer',)."
        )


def _sites(model: HookedModel | Any, window: int, heads: bool) -> list[list[Site]]:
    """The sites of each entry of the result, in order."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if heads:
        return [[Site("attn_scores", layer, head=head)] for layer in range(n_layers) for head in range(n_heads)]
    return [[Site("attn_scores", layer) for layer in layers] for layers in layer_windows(n_layers, window)]


def _edges(
    model: HookedModel | Any, pairs: PromptPairs, queries: Positions, keys: Positions
) -> Bool[Tensor, "batch q_pos k_pos"]:
    """The edges to cut, of those that are there.

    Raises:
        LabError: there are none, or a query loses all that it has.
    """
    there = _there(model, pairs)
    edges = there & _all_pairs(marked(pairs, "queries", queries), marked(pairs, "keys", keys))
    if not edges.any():
        raise LabError("there is no edge from these queries to these keys: they are padding, or lie in the future.")
    bare = (edges.any(2) & ~(there & ~edges).any(2)).nonzero().tolist()
    if bare:
        prompt, query = bare[0]
        raise LabError(
            f"without these keys query {query} of prompt {prompt} has nothing left to attend to; leave it one of them."
        )
    return edges


def _there(model: HookedModel | Any, pairs: PromptPairs) -> Bool[Tensor, "batch q_pos k_pos"]:
    """Which real positions may attend to which."""
    real = _all_pairs(pairs.mask, pairs.mask)
    return real.tril() if getattr(model.cfg, "attention_dir", "causal") == "causal" else real


def _all_pairs(
    queries: Bool[Tensor, "batch q_pos"], keys: Bool[Tensor, "batch k_pos"]
) -> Bool[Tensor, "batch q_pos k_pos"]:
    """Every query with every key."""
    return rearrange(queries, "batch q_pos -> batch q_pos 1") & rearrange(keys, "batch k_pos -> batch 1 k_pos")


def marked(pairs: PromptPairs, name: str, given: Positions) -> Bool[Tensor, "batch pos"]:
    """True at the positions given.

    Raises:
        LabError: none, or one that the prompts do not have.
    """
    n, n_pos = pairs.clean.shape
    positions = torch.as_tensor(given, device=pairs.clean.device)
    if not positions.numel() or positions.ndim > 2 or (positions.ndim == 2 and len(positions) != n):
        raise LabError(f"{name} of shape {list(positions.shape)}; expected positions, or [batch n] for {n} prompts.")
    outside = positions[(positions < -n_pos) | (positions >= n_pos)]
    if outside.numel():
        raise LabError(
            f"{name} has position {int(outside[0])}; expected 0 to {n_pos - 1}, or from {-n_pos} for the end."
        )
    positions = (positions % n_pos).expand(n, -1) if positions.ndim else (positions % n_pos).expand(n, 1)
    return torch.zeros_like(pairs.mask).scatter(1, positions, True)


def _plain(positions: Positions) -> Any:
    """Positions for the provenance."""
    return positions.tolist() if isinstance(positions, Tensor) else positions
