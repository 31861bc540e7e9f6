"""Whether a circuit is the whole story, and whether all of it is needed: completeness and minimality.

Wang et al. 2022 (arXiv:2211.00593, §4), with F the metric's mean over prompts as a share of the way from the run with
everything ablated to the clean one, M the whole model, C the circuit, and \\ taking components away with their edges:

    incompleteness     the largest |F(C \\ K) - F(M \\ K)| over sets K of the circuit's components
    minimality of v    the largest |F(C \\ (K ∪ {v})) - F(C \\ K)| over sets K without v

A circuit that is complete breaks as the model does; one that is minimal has no component that never matters. There are
too many sets to try all: tried are the empty one, each component alone, and some drawn at random. So an incompleteness
is a lower bound of the true one, and a minimality as well.

Cost: a run of a circuit (see `analyses.circuit_runs`) for each set, twice for completeness, and once more for each
component and set for minimality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from analyses.bootstrap import LEVELS
from analyses.circuit_runs import CircuitRuns
from analyses.circuit_setting import six_tuple
from analyses.circuits import SELF_REPAIR, can_normalize, checked_circuits, faithfulness, warn_about
from interp import provenance
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.errors import LabError
from interp.graph import INPUT, LOGITS
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result

Taken = Bool[np.ndarray, "set component"]


@dataclass(frozen=True, eq=False, repr=False)
class Completeness(Result):
    """How alike the circuit and the model break.

    values: |F(C \\ K) - F(M \\ K)| for each set K. low, high: between them lie 95 % of bootstraps over prompts.
    circuit, model: F of both. setting: see `analyses.circuit_setting`.
    """

    title = "Completeness"
    shows = "how far the circuit and the whole model differ when both lack the same components; 0 is best"
    caveat = f"Only some sets are tried, so the largest is a lower bound. {SELF_REPAIR}"

    values: Float[np.ndarray, "set"]
    low: Float[np.ndarray, "set"]
    high: Float[np.ndarray, "set"]
    circuit: Float[np.ndarray, "set"]
    model: Float[np.ndarray, "set"]
    metric: str
    value: str
    normalized: bool
    setting: Mapping[str, str]

    @property
    def incompleteness(self) -> float:
        """The largest difference."""
        return float(self.values.max())


@dataclass(frozen=True, eq=False, repr=False)
class Minimality(Result):
    """How much each component of the circuit matters, where it matters most.

    values: the largest |F(C \\ (K ∪ {v})) - F(C \\ K)| over sets K. low, high: between them lie 95 % of bootstraps over
    prompts. alone: that of the empty set. setting: see `analyses.circuit_setting`.
    """

    title = "Minimality"
    shows = "the most that a component of the circuit matters when it is taken out, alone or after others; 0 is idle"
    caveat = f"Only some sets are tried, so the numbers are lower bounds. {SELF_REPAIR}"

    values: Float[np.ndarray, "component"]
    low: Float[np.ndarray, "component"]
    high: Float[np.ndarray, "component"]
    alone: Float[np.ndarray, "component"]
    metric: str
    value: str
    normalized: bool
    setting: Mapping[str, str]


def completeness(
    model: HookedModel | Any,
    pairs: PromptPairs,
    circuit: Circuit,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    value: str = "resample",
    draws: int = 20,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
) -> Completeness:
    """Take the same components out of the circuit and of the model: `.incompleteness`.

    draws: sets of half of the components, drawn at random with `seed`. The rest is as in `circuits.evaluate_circuits`.

    Raises:
        LabError: a circuit without components between input and logits, and as there.
    """
    names = _parts(model, circuit)
    sets = np.concatenate([_sets(len(names), draws, seed), np.eye(len(names), dtype=bool)])
    whole = Circuit.whole(circuit.graph)
    runs = _runs(model, pairs, metric, value, circuit, budget)
    rows = [_without(each, names, taken) for each in (circuit, whole) for taken in sets]
    normalized = can_normalize(runs)
    found, drawn = faithfulness(runs, runs.scores(np.stack(rows), progress), normalized, seed)
    ours, its = np.split(found, 2)
    low, high = np.percentile(np.abs(drawn[:, : len(sets)] - drawn[:, len(sets) :]), LEVELS, axis=0)
    return Completeness(
        np.abs(ours - its),
        low,
        high,
        ours,
        its,
        runs.metric.name,
        value,
        normalized,
        six_tuple(runs.graph, value, pairs),
        labels={"set": [_words(names, taken) for taken in sets]},
        provenance=provenance.of(model, prompts=pairs, metric=runs.metric.name, ablation=value, seed=seed),
    )


def minimality(
    model: HookedModel | Any,
    pairs: PromptPairs,
    circuit: Circuit,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    value: str = "resample",
    draws: int = 10,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
) -> Minimality:
    """Take each component out of the circuit, alone and after sets of others: `.values[component]`.

    The rest is as in `completeness`.

    Raises:
        LabError: as there.
    """
    names = _parts(model, circuit)
    each = np.eye(len(names), dtype=bool)
    sets = _sets(len(names), draws, seed)
    runs = _runs(model, pairs, metric, value, circuit, budget)
    before = sets[None] & ~each[:, None]  # K without v, for each v and each set
    after = before | each[:, None]
    rows = np.stack(
        [_without(circuit, names, taken) for taken in np.concatenate([before, after]).reshape(-1, len(names))]
    )
    normalized = can_normalize(runs)
    found, drawn = faithfulness(runs, runs.scores(rows, progress), normalized, seed)
    both = np.concatenate([found[None], drawn]).reshape(-1, 2, len(names), len(sets))
    matters, *drawn_matters = np.abs(both[:, 0] - both[:, 1])
    low, high = np.percentile(np.max(drawn_matters, -1), LEVELS, axis=0)
    return Minimality(
        matters.max(1),
        low,
        high,
        matters[:, 0],
        runs.metric.name,
        value,
        normalized,
        six_tuple(runs.graph, value, pairs),
        labels={"component": names},
        provenance=provenance.of(model, prompts=pairs, metric=runs.metric.name, ablation=value, seed=seed),
    )


def _runs(model: Any, pairs: PromptPairs, metric: Any, value: str, circuit: Circuit, budget: int | None) -> CircuitRuns:
    warn_about(value)
    return CircuitRuns.of(model, pairs, metric, value, circuit.graph, budget)


def _parts(model: Any, circuit: Circuit) -> list[str]:
    """The circuit's components between input and logits."""
    checked_circuits(model, circuit)
    names = [name for name in circuit.nodes if name not in (INPUT, LOGITS)]
    if not names:
        raise LabError(
            "the circuit has no component between the input and the logits, so there is nothing to take out."
        )
    return names


def _sets(size: int, draws: int, seed: int) -> Taken:
    """The empty set, and some with each component or without it by the toss of a coin."""
    tossed = np.random.default_rng(seed).random((draws, size)) < 0.5
    return np.concatenate([np.zeros((1, size), dtype=bool), tossed])


def _without(circuit: Circuit, names: Sequence[str], taken: Bool[np.ndarray, "component"]) -> np.ndarray:
    """The circuit's edges that begin and end at none of the components that are taken out."""
    gone = {name for name, out in zip(names, taken, strict=True) if out}
    return circuit.restrict([name for name in circuit.nodes if name not in gone]).kept


def _words(names: Sequence[str], taken: Bool[np.ndarray, "component"]) -> str:
    return " ".join(name for name, out in zip(names, taken, strict=True) if out) or "nothing"
