"""How much of a model's answer a circuit gives: its faithfulness.

    f(C) = [m(C) - m(nothing)] / [m(M) - m(nothing)]

m(C) is the metric, mean over prompts, of the run in which all outside the circuit C is ablated (see
`analyses.circuit_runs`), m(nothing) that with everything ablated, m(M) the clean run's. So 1 is the whole model's
answer, 0 none of it; below 0 a circuit argues for the other answer, above 1 it lacks what argues against its own. It is
a ratio of means.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from analyses.bootstrap import LEVELS, mean_draws, spread
from analyses.circuit_runs import CircuitRuns
from analyses.circuit_setting import six_tuple
from analyses.fills import warn_of_zeros
from interp import provenance
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.errors import LabError
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result

SELF_REPAIR = "What is left may make up for what is ablated, also through the norms' changed scales."


@dataclass(frozen=True, eq=False, repr=False)
class CircuitEvaluation(Result):
    """The faithfulness of circuits.

    values: of each circuit; when not `normalized` m(C) - m(nothing), in the metric's units. low, high: between them lie
    95 % of bootstraps over prompts. raw: the metric of every run. edges: how many each has. clean, ablated: the metric
    of the clean run and of that with everything ablated. setting: see `analyses.circuit_setting`.
    """

    title = "Faithfulness of circuits"
    caveat = SELF_REPAIR

    values: Float[np.ndarray, "circuit"]
    low: Float[np.ndarray, "circuit"]
    high: Float[np.ndarray, "circuit"]
    raw: Float[np.ndarray, "circuit prompt"]
    edges: Int[np.ndarray, "circuit"]
    clean: Float[np.ndarray, "prompt"]
    ablated: Float[np.ndarray, "prompt"]
    metric: str
    value: str
    normalized: bool
    setting: Mapping[str, str]

    @property
    def shows(self) -> str:  # type: ignore[override]
        if not self.normalized:
            return f"{self.metric} of the circuit's run less that with everything ablated"
        return f"share of {self.metric} that the circuit alone gives: 1 is the clean run, 0 everything ablated"

    def spread(self, circuit: int = 0) -> dict[str, float]:
        """The metric of one circuit's runs over prompts: mean, quartiles and the lowest."""
        return spread(self.raw[circuit])


def evaluate_circuits(
    model: HookedModel | Any,
    pairs: PromptPairs,
    circuits: Circuit | Sequence[Circuit],
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    value: str = "resample",
    names: Sequence[str] | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
) -> CircuitEvaluation:
    """The faithfulness of each circuit, all of them in one plan: `.values[circuit]`.

    metric, value, budget: as in `circuit_runs.CircuitRuns.of`. names: what the circuits are called. seed: of the
    bootstrap.

    When m(M) and m(nothing) differ by no more than rounding error, f would divide by it: a warning says so, and the
    values are not normalised.

    Raises:
        LabError: no circuit, one without edges, one of another model or graph, and as there.
    """
    chosen = checked_circuits(model, circuits)
    if names is not None and len(names) != len(chosen):
        raise LabError(f"{len(names)} names for {len(chosen)} circuits; expected one for each.")
    warn_about(value)
    runs = CircuitRuns.of(model, pairs, metric, value, chosen[0].graph, budget)
    raw = runs.scores(np.stack([circuit.kept for circuit in chosen]), progress)
    normalized = can_normalize(runs)
    found, draws = faithfulness(runs, raw, normalized, seed)
    low, high = np.percentile(draws, LEVELS, axis=0)
    return CircuitEvaluation(
        found,
        low,
        high,
        raw,
        np.array([len(circuit) for circuit in chosen]),
        runs.clean,
        runs.ablation,
        runs.metric.name,
        value,
        normalized,
        six_tuple(runs.graph, value, pairs),
        labels={} if names is None else {"circuit": list(names)},
        provenance=provenance.of(model, prompts=pairs, metric=runs.metric.name, ablation=value, seed=seed),
    )


def faithfulness(
    runs: CircuitRuns, raw: Float[np.ndarray, "circuit prompt"], normalized: bool, seed: int
) -> tuple[Float[np.ndarray, "circuit"], Float[np.ndarray, "draw circuit"]]:
    """f of each circuit, and of each bootstrap over prompts; in the metric's units when not normalised."""
    together = np.concatenate([raw - runs.ablation, (runs.clean - runs.ablation)[None]])
    means, draws = together.mean(-1), mean_draws(together, seed=seed)
    if not normalized:
        return means[:-1], draws[:, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of prompts without difference has no faithfulness
        return means[:-1] / means[-1], draws[:, :-1] / draws[:, -1:]


def can_normalize(runs: CircuitRuns) -> bool:
    """Whether the two baselines differ by more than rounding; warns where they do not."""
    clean, ablated = float(runs.clean.mean()), float(runs.ablation.mean())
    noise = 100 * torch.finfo(runs.model.dtype).eps * max(1.0, abs(clean), abs(ablated))
    if abs(clean - ablated) > noise:
        return True
    warnings.warn(
        f"the clean run's {clean:.6g} and the ablated run's {ablated:.6g} differ by no more than rounding "
        f"({noise:.1g}), so faithfulness is not normalised: values are changes of the metric.",
        stacklevel=3,
    )
    return False


def checked_circuits(model: Any, circuits: Circuit | Sequence[Circuit], empty: bool = False) -> list[Circuit]:
    """The circuits as a list. empty: whether they may be without edges.

    Raises:
        LabError: none, one without edges, of another model, or of another graph than the first.
    """
    chosen = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not chosen:
        raise LabError("no circuit; expected at least one.")
    for number, circuit in enumerate(chosen):
        circuit.check(model)
        if circuit.graph != chosen[0].graph:
            raise LabError(f"circuit {number} is of another graph than the first; evaluate them apart.")
        if not len(circuit) and not empty:
            raise LabError(
                f"circuit {number} has no edges, so its run is the ablated one; expected at least one edge. A circuit "
                "may lose all its edges when dangling parts are taken out: try a larger one."
            )
    return chosen


def warn_about(value: str) -> None:
    """What to mind about an ablation."""
    if value == "zero":
        warn_of_zeros(4)


def warn_if_another(known: str, value: str, what: str) -> None:
    """A warning where two ablations are mixed; what: what was done with the known one."""
    if known != value:
        warnings.warn(
            f"{what} with the ablation {known!r}, but circuits are run with {value!r}: the two ask different "
            "questions, and their circuits differ for that alone (Miller et al. 2024, arXiv:2407.08734).",
            stacklevel=4,
        )
