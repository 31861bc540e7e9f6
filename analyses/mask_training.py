"""Edge pruning: a mask over all edges is trained until few are left that give the model's answer.

Bhaskar et al. 2024 (arXiv:2406.16778), with the masks of Louizos et al. 2018 (arXiv:1712.01312). Every edge has a
number a; in each step its share z of what its sender does is drawn, the rest being what it does when ablated:

    z = clamp(1.2 sigmoid((log u - log(1 - u) + a) / β) - 0.1, 0, 1),   u uniform on (0, 1),  β = 2/3
    P(z > 0) = sigmoid(a - β log(0.1 / 1.1))

and the numbers go down the gradient of

    mean |m(C) - m(clean)| / mean |m(nothing) - m(clean)| + λ (p - s) + μ (p - s)²,     p the mean of P(z > 0)

while λ and μ go up it; s falls from 1 to the share that is asked for in the first half of the steps. In the end the
edges with the largest a are kept. Unlike a ranking by single edges this sees edges that matter only together.

Cost: a forward and a backward of a batch of prompts for each step. Other seeds give other circuits: compare some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.bootstrap import spread
from analyses.circuit_runs import CircuitRuns
from analyses.circuit_selection import edges_of_share
from analyses.circuit_setting import six_tuple
from analyses.edges import labels_of
from interp import provenance
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.dangling import without_dangling
from interp.errors import LabError
from interp.graph import Graph
from interp.metrics import AnyMetric
from interp.progress import bar
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
PRESSURE = 4
"""How much faster λ and μ learn than the masks."""
MOST_PROMPTS = 16
"""Prompts in a step; of more, others are drawn for each."""


@dataclass(frozen=True, eq=False, repr=False)
class EdgePruningResult(Result):
    """The circuit that training the masks left.

    values: P(z > 0) of every edge in the end. kept: the edges with the largest. losses: the first term in each step.
    raw, clean: the metric of the run of the circuit that is left, and of the clean run. setting: see
    `analyses.circuit_setting`.
    """

    title = "Edge pruning"
    caveat = "Other seeds give other circuits; what they share can be told."

    values: Float[np.ndarray, "*axes"]
    kept: Bool[np.ndarray, "*axes"]
    losses: Float[np.ndarray, "step"]
    raw: Float[np.ndarray, "prompt"]
    clean: Float[np.ndarray, "prompt"]
    metric: str
    shape: Mapping[str, Any]
    setting: Mapping[str, str]

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"how likely the trained mask lets each edge carry something; the {int(self.kept.sum())} likeliest stay"

    @property
    def circuit(self) -> Circuit:
        """The edges that stay, without dangling parts."""
        known = self.provenance
        return Circuit(Graph(**self.shape), self.kept, known.model, known.weights).pruned()

    def spread(self) -> dict[str, float]:
        """The metric of its run over prompts: mean, quartiles and the lowest."""
        return spread(self.raw)


def edge_pruning(
    model: HookedModel | Any,
    pairs: PromptPairs,
    share: float = 0.05,
    metric: str | AnyMetric | Callable[..., Any] = "kl",
    value: str = "resample",
    graph: Graph | None = None,
    steps: int = 300,
    learning_rate: float = 0.1,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
) -> EdgePruningResult:
    """Train a mask over the edges, and keep a share of them: `.circuit`.

    metric, value, graph, budget: as in `circuit_runs.CircuitRuns.of`. learning_rate: of Adam, for the masks.

    Raises:
        LabError: a share that is not above 0 and at most 1, fewer than one step, a learning rate that is not above 0, a
            metric without a gradient, and as there.
    """
    if steps < 1 or not learning_rate > 0:
        raise LabError(f"steps={steps}, learning_rate={learning_rate}; expected at least one step, and a rate above 0.")
    edges_of_share(Graph.of(model), share)
    runs = CircuitRuns.of(model, pairs, metric, value, graph, budget)
    masks = _Masks(runs, share, seed)
    losses = masks.train(steps, learning_rate, progress)
    values = to_numpy(masks.chances().double())
    kept = np.zeros(values.shape, dtype=bool)
    kept.flat[np.argsort(-values, axis=None, kind="stable")[: edges_of_share(runs.graph, share)]] = True
    name = runs.metric.name
    settings = {"method": "edge pruning", "share": share, "steps": steps, "learning_rate": learning_rate}
    return EdgePruningResult(
        values,
        kept,
        np.array(losses),
        runs.scores(without_dangling(runs.graph, kept)[None], progress=False)[0],
        runs.clean,
        name,
        asdict(runs.graph),
        six_tuple(runs.graph, value, pairs),
        axes=runs.graph.axes,
        labels=labels_of(model, pairs, runs.graph),
        provenance=provenance.of(model, prompts=pairs, metric=name, ablation=value, seed=seed, settings=settings),
    )


class _Masks:
    """The numbers a, and what is drawn from them."""

    def __init__(self, runs: CircuitRuns, share: float, seed: int) -> None:
        self.runs, self.share = runs, share
        self.random = torch.Generator().manual_seed(seed)
        device, wide = runs.model.device, torch.promote_types(runs.model.dtype, torch.float32)
        self.a = torch.full(runs.graph.shape, 2.0, device=device, dtype=wide, requires_grad=True)
        self.weights = torch.zeros(2, device=device, dtype=wide, requires_grad=True)  # λ and μ
        self.clean = torch.from_numpy(runs.clean).to(device, wide)
        self.scale = float(np.abs(runs.ablation - runs.clean).mean()) or 1.0

    def train(self, steps: int, learning_rate: float, progress: bool | None) -> list[float]:
        """The loss of every step.

        Raises:
            LabError: no gradient reaches the masks.
        """
        groups: list[dict[str, Any]] = [
            {"params": [self.a]},
            {"params": [self.weights], "lr": PRESSURE * learning_rate},
        ]
        optimizer = torch.optim.Adam(groups, lr=learning_rate)
        losses = []
        with torch.enable_grad(), bar(steps, "steps", progress) as advance:
            for step in range(steps):
                loss = self._loss()
                if not loss.requires_grad:
                    raise LabError(f"the metric {self.runs.metric.name!r} has no gradient; try 'kl' or 'logit_diff'.")
                size = self.chances().mean() - (1 - (1 - self.share) * min(1.0, 2 * (step + 1) / steps))
                total = loss + self.weights[0] * size + self.weights[1] * size**2
                found = torch.autograd.grad(total, [self.a, self.weights])
                self.a.grad, self.weights.grad = found[0], -found[1]
                optimizer.step()
                losses.append(loss.detach())
                advance(1)
        return torch.stack(losses).tolist()

    def chances(self) -> Float[Tensor, "edge *pos"]:
        """P(z > 0)."""
        return (self.a - BETA * math.log(-LOW / HIGH)).sigmoid()

    def _loss(self) -> Float[Tensor, ""]:
        """How far the metric is from the clean run's, with shares drawn from the masks."""
        u = torch.rand(self.a.shape, generator=self.random).clamp(1e-6, 1 - 1e-6).to(self.a)
        shares = ((u.logit() + self.a) / BETA).sigmoid() * (HIGH - LOW) + LOW
        n = len(self.runs.pairs)
        prompts = torch.randperm(n, generator=self.random)[: min(MOST_PROMPTS, self.runs.size)].to(self.a.device)
        change = self.runs.soft_scores(shares.clamp(0, 1), prompts) - self.clean[prompts]
        return change.abs().mean() / self.scale
