"""Path patching: what reaches one component's input straight from another, and what that does to the answer.

Wang et al. 2022 (arXiv:2211.00593, §3.1 and appendix B), Goldowsky-Dill et al. 2023 (arXiv:2304.05969). One run is
patched, and a sender's output there is taken from the other run; δ, the difference, flows along the residual stream to
a receiver's input and nowhere else: every head in between keeps its output, and with `freeze_mlps` every MLP. The
receiver reads its stream + δ through its own norm; from there on everything is recomputed.

    effect(sender -> receiver) = [m(patched) - m(run)] / [m(other run) - m(run)]

so 0 is no change and 1 the whole way to the other run, in both directions:

- noise: the clean run, a sender from the corrupted one. Is the path necessary?
- denoise: the corrupted run, a sender from the clean one. Is the path sufficient?

The paper's relative change of the metric is [m(patched) - m(run)] / m(run): `raw` and the baselines give it.

Cost: two forwards, and one of a single prompt to hold the formulas to the model. δ and what it makes of the receiver's
input are linear algebra (see `analyses.direct_paths`). Paths to the logits end there. Each other receiver costs, for
each sender and prompt, the part of a forward that lies after it (see `interp.sweep`).
It does not show: paths through other heads, or paths that only matter together.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.direct_paths import DirectPaths, check_closed_form, mlp_points, stream_name
from analyses.patching import DIRECTIONS, run
from analyses.path_ends import (
    LOGITS,
    Given,
    Receiver,
    chosen_positions,
    means_of,
    receivers_of,
    sender_label,
    senders_of,
    stand_ins,
)
from analyses.path_runs import PathRuns, patch
from interp import files, metrics, provenance, sweep
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import SIGNED


@dataclass(frozen=True, eq=False, repr=False)
class PathPatchingResult(Result):
    """The effect of patching the direct path from each sender to each receiver.

    values: mean change over prompts; when `normalized` 0 is no change and 1 the whole way to the other run, else in the
    metric's units. A sender without a path to the receiver has exactly 0. raw: the metric of every patched run.
    clean, corrupted: the metric of the two unpatched runs. way: how receivers were run, "closed form" for the logits.
    """

    title = "Path patching"
    caveat = (
        "Only direct paths: what goes through other heads, or matters only together with another path, is not seen."
    )
    scale = SIGNED

    values: Float[np.ndarray, "sender receiver"]
    raw: Float[np.ndarray, "sender receiver prompt"]
    clean: Float[np.ndarray, "prompt"]
    corrupted: Float[np.ndarray, "prompt"]
    metric: str
    direction: str
    freeze_mlps: bool
    normalized: bool
    n_layers: int
    n_heads: int
    way: str

    @property
    def shows(self) -> str:  # type: ignore[override]
        run, other = ("clean", "corrupted") if self.direction == "noise" else ("corrupted", "clean")
        mlps = "MLPs in between frozen" if self.freeze_mlps else "MLPs in between recomputed"
        scale = f"0 is no change, 1 the {other} run" if self.normalized else f"in units of {self.metric}"
        return (
            f"change of {self.metric} in the {run} run when the receiver reads the sender's output of the {other} run, "
            f"{mlps}; {scale}."
        )

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "share of the way to the other run" if self.normalized else f"change of {self.metric}"

    def heads(self, receiver: str | int | None = None) -> Float[np.ndarray, "layer head"]:
        """The effect of every head on one receiver, NaN where a head was no sender.

        receiver: its label or number; not needed where there is one.

        Raises:
            LabError: an unknown receiver, or none given where there are several.
        """
        names = [str(name) for name in self.labels["receiver"]]
        if receiver is None and len(names) > 1:
            raise LabError(f"heads() of {len(names)} receivers; give one of {', '.join(names)}.")
        if isinstance(receiver, int) and not -len(names) <= receiver < len(names):
            raise LabError(f"receiver {receiver} of {len(names)}.")
        column = names.index(choose("receiver", receiver, names)) if isinstance(receiver, str) else receiver or 0
        grid = np.full((self.n_layers, self.n_heads), np.nan)
        for name, value in zip(self.labels["sender"], self.values[:, column], strict=True):
            if place := re.fullmatch(r"L(\d+)H(\d+)", str(name)):
                grid[int(place[1]), int(place[2])] = value
        return grid


def path_patching(
    model: HookedModel | Any,
    pairs: PromptPairs,
    receivers: Given | Sequence[Given] = LOGITS,
    senders: Sequence[Site] | None = None,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    direction: str = "noise",
    positions: Sequence[int] | Bool[Tensor, "prompt pos"] | None = None,
    freeze_mlps: bool = True,
    normalize: bool = True,
    budget: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> PathPatchingResult:
    """Patch the direct path from every sender to every receiver, one at a time: `.values[sender, receiver]`.

    receivers: "logits"; a head's input, `Site("q", 9, head=6)` ("q", "k" or "v"; a key/value head for k and v); an
    MLP's input, `Site("mlp_in", 5)`; or a list of those. `Site("q", 9)` is every head of the layer, each a receiver. A
    tuple of sites inside the list is one receiver, patched together. A site with `pos` receives there alone.
    senders: `Site("z", 3, head=1)` (without a head, every head of the layer), `Site("mlp_out", 3)`, `Site("embed")`;
    by default all heads and MLPs. positions: where senders take the other run's output; numbers in the padded batch,
    or a mask with positions of its own for each prompt. metric: see `interp.metrics`; "kl" compares with the clean run.
    normalize: False gives the change in the metric's units. budget: bytes for what is computed of paths at a time, and
    as much again for running them (see `interp.sweep.run`); the two runs' activations come on top. out, progress: as
    there.

    When the two baselines differ by no more than rounding error, normalising would divide by it: a warning says so
    and the change is given in the metric's units.

    Raises:
        LabError: unknown receivers, senders, positions, metric or direction; prompts that the model cannot take; a
            model whose parts do not add up in closed form, or with hooks attached; too small a budget.
    """
    choose("direction", direction, DIRECTIONS)
    pairs.check(model)
    if out is not None:
        files.check_writable(out)
    columns, sources = receivers_of(model, pairs, receivers), senders_of(model, senders)
    chosen = chosen_positions(pairs, positions).to(model.device)
    work = prepare(model, pairs.to(model.device), columns, sources, metric, direction, chosen, freeze_mlps, budget)
    change, way = patch(work.runs, out, progress)
    values, normalized = on_the_way(change.mean(-1), work.base, work.source, normalize, model.dtype)
    clean, corrupted = (work.base, work.source) if direction == "noise" else (work.source, work.base)
    name = work.runs.metric.name
    return PathPatchingResult(
        values,
        work.base + change,
        clean,
        corrupted,
        name,
        direction,
        freeze_mlps,
        normalized,
        model.cfg.n_layers,
        model.cfg.n_heads,
        way,
        labels={"sender": [sender_label(site) for site in sources], "receiver": [column.label for column in columns]},
        provenance=provenance.of(model, prompts=pairs, metric=name, direction=direction, ablation="replace"),
    )


@dataclass(frozen=True)
class Work:
    """What to run, and the metric of the run that is patched and of the one that it is patched from."""

    runs: PathRuns
    base: Float[np.ndarray, "prompt"]
    source: Float[np.ndarray, "prompt"]


def prepare(
    model: HookedModel | Any,
    pairs: PromptPairs,
    columns: Sequence[Receiver],
    senders: Sequence[Site],
    metric: str | AnyMetric | Callable[..., Any],
    direction: str,
    chosen: Bool[Tensor, "prompt pos"],
    freeze_mlps: bool,
    budget: int | None,
    value: str = "resample",
    wanted: Bool[np.ndarray, "sender column"] | None = None,
) -> Work:
    """Check that the formulas hold, and run both runs for what they need.

    value: what senders take, see `analyses.fills`. wanted: which paths, by default all.
    """
    if metric != "kl":
        metric = metrics.get(metric)
    inputs = [site for column in columns for site in column.sites]
    check_closed_form(model, pairs.clean[:1, pairs.mask[0]], senders, inputs, freeze_mlps)
    measure = metrics.kl(run(model, pairs), pairs) if metric == "kl" else metrics.get(metric)
    patched, other = (pairs, pairs.swapped()) if direction == "noise" else (pairs.swapped(), pairs)
    written = sorted({site.hook_name for site in senders})
    own, base = sweep.observe(model, patched, _needed(model, columns, written, freeze_mlps), measure)
    others, source = sweep.observe(model, other, written, measure)
    taken = stand_ins(value, own, others, means_of(model, patched, senders, value))
    paths = DirectPaths(model, own, taken, chosen, freeze_mlps)
    where = "" if bool((chosen == pairs.mask).all()) else f" at {provenance.tensor_hash(chosen)[:12]}"
    words = f"{value}{where}{'' if freeze_mlps else ' through MLPs'}"
    runs = PathRuns(model, patched, columns, senders, measure, paths, words, budget, wanted)
    return Work(runs, to_numpy(base.double()), to_numpy(source.double()))


def _needed(model: Any, columns: Sequence[Receiver], written: Sequence[str], freeze_mlps: bool) -> list[str]:
    """The hook points of the patched run: senders, the streams that are read, and receivers patched together."""
    points = {point for column in columns for point in column.points(model.cfg)}
    if not freeze_mlps:
        points |= {reads for _, reads, _ in mlp_points(model.cfg)}
    together = {site.hook_name for column in columns if len(column.sites) > 1 for site in column.sites}
    return sorted({*written, *together, *(stream_name(model.cfg, point) for point in points)})


def on_the_way(
    change: Float[np.ndarray, "*axes"],
    base: Float[np.ndarray, "prompt"],
    source: Float[np.ndarray, "prompt"],
    wanted: bool,
    dtype: torch.dtype,
) -> tuple[Float[np.ndarray, "*axes"], bool]:
    """The change as a share of the way from one baseline to the other, and whether that was done."""
    if not wanted:
        return change, False
    start, stop = float(base.mean()), float(source.mean())
    noise = 100 * torch.finfo(dtype).eps * max(1.0, abs(start), abs(stop))
    if abs(stop - start) <= noise:
        warnings.warn(
            f"the two baselines {start:.6g} and {stop:.6g} differ by no more than rounding ({noise:.1g}), so the "
            "values are not normalised: they are changes of the metric.",
            stacklevel=3,
        )
        return change, False
    return change / (stop - start) + 0.0, True  # + 0.0: no effect is 0, not -0
