"""Edge attribution: the effect of every edge at once, estimated to first order.

    score(u -> v) = sum over positions of (u' - u) . dm/d(what v reads), at the run or along a way to it

u' is what the sender u writes in the other run, and the gradient that at v's own reading of the stream, before its
norm. Where the gradient is taken tells the methods apart:

    EAP                 at the run that is patched (Syed et al. 2023, arXiv:2310.10348)
    EAP-IG-inputs       the mean over m runs whose inputs go from the other run's to the run's own (Hanna et al. 2024,
                        arXiv:2403.17806): input' + k/m (input - input'), k = 0 ... m - 1, as the authors' code has it
    EAP-IG-activations  for each sender the mean over m runs in which the senders of its layer go the same way, all
                        else following from them: x' + k/m (x - x'), k = 1 ... m
    AtP                 as EAP, but edges into queries and keys have the q/k fix of Kramár et al. 2024 (AtP*,
                        arXiv:2403.00745): the softmax is recomputed (see `analyses.edge_softmax`)
    RelP                as EAP, with the coefficients of relevance propagation in place of derivatives (Jafari et al.
                        2025, arXiv:2508.21258; see `analyses.relevance`)

Without the fix attribution patching at edges is EAP. As m grows the scores of all edges from the input (inputs), or of
all edges from the heads of one layer (activations), add up to what replacing the input, or those heads, does to the
metric.

Cost: two forwards and a backward; m forwards and backwards instead of one for EAP-IG-inputs, and (2 layers + 1) m for
EAP-IG-activations; for AtP also the patterns that every sender gives to every later head. Then one more forward, and
exact patching of the few edges that are checked. No tensor [batch pos head d_model] is made (see
`analyses.edge_products`).
It does not show: what is not linear between the two runs, and effects that cancel at first order. What is checked
exactly is the top of the estimate alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from analyses.agreement import Agreement, agreement
from analyses.direct_paths import DirectPaths, check_closed_form
from analyses.edge_gradients import Question, Recorded
from analyses.edge_methods import METHODS
from analyses.edge_products import EdgeProducts, Products
from analyses.edge_scores import VALUES, EdgeScores, check_value, checked_graph
from analyses.edges import edge_patching, labels_of
from analyses.fills import warn_of_zeros
from analyses.first_order import Estimates, batches_of, check_gradient
from analyses.patching import DIRECTIONS, run
from analyses.path_ends import means_of, stand_ins
from analyses.paths import on_the_way
from analyses.recording import observed, past_names
from interp import metrics, provenance
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.graph import Graph
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import to_numpy
from interp.storage import plain


@dataclass(frozen=True, eq=False, repr=False)
class EdgeAttributionResult(EdgeScores):
    """Estimated effects of every edge, and exact ones of those with the largest estimates.

    raw: the estimated metric of every patched run. method, steps: how the gradients were taken; steps is 1 for EAP.
    exact: as `values` by edge patching, NaN where it was not done.
    """

    title = "Edge attribution"

    raw: Float[np.ndarray, "*axes prompt"]
    exact: Float[np.ndarray, "*axes"]
    method: str
    steps: int

    @property
    def agreement(self) -> Agreement:
        """Of estimated with exact effects, in units of `values`, over the edges that were checked."""
        checked = ~np.isnan(self.exact)
        return agreement(self.values[checked], self.exact[checked])

    @property
    def caveat(self) -> str:  # type: ignore[override]
        return (
            f"{self.method}, exact patching of the {self.agreement.n} largest estimates: {self.agreement}. "
            "First-order estimates miss what saturates or cancels, and the edges that are not checked may be among it."
        )

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"Estimated to first order: {super().shows}"

    def to_dict(self, arrays: Sequence[str] | None = None) -> dict[str, Any]:
        """As for every result, with the agreement."""
        return super().to_dict(arrays) | {"agreement": plain(vars(self.agreement))}


def edge_attribution(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    direction: str = "noise",
    value: str = "resample",
    graph: Graph | None = None,
    method: str = "EAP",
    steps: int = 5,
    normalize: bool = True,
    checks: int = 10,
    budget: int | None = None,
    progress: bool | None = None,
) -> EdgeAttributionResult:
    """Estimate what `edge_patching` with the same arguments gives: `.values[edge]`, `.top(10)`.

    metric, direction, value, graph, normalize: as there. method: a key of `METHODS`, as above. steps: m of those along
    a way; see that the scores no longer change with it. checks: how many edges, those with the largest estimates, are
    patched exactly; `.exact` holds their values, and `.agreement` compares. budget: bytes for the runs and their
    graphs, by default half of what is free; prompts are run a batch at a time to fit, and a single prompt that does not
    fit is run all the same. progress: of the exact runs.

    Raises:
        LabError: as `edge_patching`; an unknown method, `steps` or `checks` below 1; a metric without a gradient
            ("rank"), or whose gradient vanishes at the run that is patched ("kl" in the direction "noise", unless along
            a way); a model without gradients, or one whose softmax AtP cannot recompute.
    """
    graph = checked_graph(model, pairs, graph)
    _check_question(metric, direction, value, method, steps, checks)
    pairs.check(model)
    pairs = pairs.to(model.device)
    runs = pairs if direction == "noise" else pairs.swapped()
    receivers = [site for site in graph.receivers if site is not None]
    check_closed_form(model, pairs.clean[:1, pairs.mask[0]], graph.senders, receivers, freeze_mlps=True)
    measure = metrics.kl(run(model, pairs), pairs) if metric == "kl" else metrics.get(metric)
    if value == "zero":
        warn_of_zeros(2)
    found = edge_scores_of(model, runs, measure, graph, method, steps, value, budget)
    check_gradient(found, measure, model.dtype)
    top = np.zeros(graph.shape, dtype=bool)
    top.flat[found.largest(checks)] = True
    among, wanted = Circuit(graph, top), normalize and value == "resample"
    exact = _exactly(model, pairs, measure, direction, value, graph, among, budget, progress)
    effects, base, source = found.effects, found.base, found.source
    both = np.stack([effects.mean(-1), (exact - base).mean(-1)])
    values, normalized = on_the_way(both, base, source, wanted, model.dtype)
    clean, corrupted = (base, source) if direction == "noise" else (source, base)
    steps = 1 if METHODS[method].way is None else steps
    return EdgeAttributionResult(
        values[0],
        clean,
        corrupted,
        measure.name,
        direction,
        value,
        normalized,
        asdict(graph),
        base + effects,
        values[1],
        method,
        steps,
        axes=graph.axes,
        labels=labels_of(model, pairs, graph),
        provenance=provenance.of(
            model,
            prompts=pairs,
            metric=measure.name,
            direction=direction,
            ablation=value,
            settings={"method": method, "steps": steps, "checks": int(top.sum())},
        ),
    )


def edge_scores_of(
    model: HookedModel | Any,
    runs: PromptPairs,
    metric: AnyMetric,
    graph: Graph,
    method: str = "EAP",
    steps: int = 5,
    value: str = "resample",
    budget: int | None = None,
) -> Estimates:
    """The scores alone, [edge (pos) prompt], in units of the metric, without checks and baselines' scale.

    runs: the pairs with what is patched as their clean prompts.
    """
    return _Estimator(model, graph, value, method, steps).run(runs, metric, budget)


def _check_question(metric: Any, direction: str, value: str, method: str, steps: int, checks: int) -> None:
    """Raises:
    LabError: what gradients cannot answer, as far as it shows before anything runs.
    """
    choose("direction", direction, DIRECTIONS)
    choose("value", value, VALUES)
    choose("method", method, METHODS)
    check_value(value, direction)
    if metric == "rank" or metric is metrics.rank:
        raise LabError("the metric 'rank' counts, so it has no gradient; try 'logit_diff' or 'log_prob'.")
    if metric == "kl" and direction == "noise" and METHODS[method].way is None:
        raise LabError(
            "'kl' compares with the clean run, and in the direction 'noise' the clean run is the one that is patched: "
            "the gradient is zero there, and so would be every estimate. Try direction='denoise', 'logit_diff', or "
            "method='EAP-IG-inputs'."
        )
    if steps < 1 or checks < 1:
        raise LabError(
            f"steps={steps}, checks={checks}; expected at least 1 of each: estimates are always compared with exact "
            "patching."
        )


def _exactly(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: AnyMetric,
    direction: str,
    value: str,
    graph: Graph,
    among: Circuit,
    budget: int | None,
    progress: bool | None,
) -> Float[np.ndarray, "*axes prompt"]:
    """The metric of the runs with the edges of `among` patched, NaN for the others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zero ablation")  # it was said
        found = edge_patching(
            model, pairs, metric, direction, value, graph, among, normalize=False, budget=budget, progress=progress
        )
    return found.raw


@dataclass(frozen=True)
class _Estimator:
    """What is asked of every batch of prompts."""

    model: HookedModel | Any
    graph: Graph
    value: str
    method: str
    steps: int

    @torch.inference_mode(False)  # whatever the caller's: tensors of inference mode cannot be part of a graph
    def run(self, runs: PromptPairs, metric: AnyMetric, budget: int | None) -> Estimates:
        """runs: the pairs with what is patched as their clean prompts."""
        means = means_of(self.model, runs, self.graph.senders, self.value)
        method = METHODS[self.method]
        also = method.edits(self.model), method.points(self.model)
        batches = [
            self._batch(Question(self.model, self.graph, runs.take(prompts), metric.take(prompts.cpu()), *also), means)
            for prompts in batches_of(self.model, runs, budget)
        ]
        columns = zip(*batches, strict=True)
        return Estimates(*(np.concatenate([to_numpy(part.double()) for part in parts], -1) for parts in columns))

    def _batch(self, question: Question, means: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The fields of `Estimates` for some of the prompts."""
        runs, metric, points, method = question.runs, question.metric, question.senders_points, METHODS[self.method]
        logits, source, other = observed(self.model, runs.swapped(), metric, points)
        if method.way is not None:
            kept = past_names(self.model) if question.resumes else []
            own_logits, base, own = observed(self.model, runs, metric, [*points, *kept])
        else:
            at_the_run = question.recorded()
            own_logits, base, own = at_the_run.logits, at_the_run.scores, at_the_run.values
            recorded = iter([(question.everyone, 1, at_the_run)])
        taken = stand_ins(self.value, own, {name: other[name] for name in points}, means)
        with torch.no_grad():
            run = {name: kept for name, kept in own.items() if name not in question.points}
            paths = DirectPaths(self.model, run, taken, runs.mask, freeze_mlps=True)
            if method.way is not None:
                recorded = method.way(question.after(paths.moving.start, own), own, taken, self.steps)
            effects, slopes = self._effects(question, method.products(self.model, self.graph, paths), recorded)
            by_logits = (slopes * (logits - own_logits)).double().sum((1, 2))
            return effects, base.detach(), source, slopes.abs().amax((1, 2)), by_logits

    def _effects(
        self, question: Question, products: EdgeProducts, recorded: Recorded
    ) -> tuple[Float[Tensor, "edge *pos prompt"], Float[Tensor, "prompt n token"]]:
        """The scores of every edge, and the mean of dm/dlogits over the runs."""
        scores: Products | None = None
        slopes = []
        for senders, steps, recording in recorded:
            gradients = recording.gradients(question.receivers)
            found = products.of(senders, recording.values, gradients, recording.start) / steps
            if scores is None:
                scores = found.new_zeros((len(self.graph.senders), *found.shape[1:]))
            scores[senders.start : senders.stop] += found
            slopes.append(recording.logit_gradient())
        assert scores is not None
        one, other = torch.from_numpy(self.graph.ends.copy()).to(scores.device).T
        return rearrange(scores[one, other], "edge prompt ... -> edge ... prompt"), torch.stack(slopes).mean(0)
