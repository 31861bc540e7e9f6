"""The methods of edge attribution: what their gradients are taken of, and how scores come of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyses import relevance
from analyses.edge_gradients import Way, along_activations, along_inputs
from analyses.edge_products import EdgeProducts
from analyses.edge_softmax import SoftmaxProducts, attention_points
from analyses.relevance import RelevanceProducts
from interp.contract import NamedHook


def _nothing(model: Any) -> list[Any]:
    return []


@dataclass(frozen=True)
class Method:
    """products: from gradients to scores. way: the runs along which gradients are taken, or None for the run that is
    patched alone. edits: of a model, the hooks that its runs have. points: of a model, where gradients are taken beside
    the receivers."""

    products: type[EdgeProducts] = EdgeProducts
    way: Way | None = None
    edits: Callable[[Any], list[NamedHook]] = _nothing
    points: Callable[[Any], list[str]] = _nothing


METHODS = {
    "EAP": Method(),
    "AtP": Method(SoftmaxProducts, points=attention_points),
    "RelP": Method(RelevanceProducts, edits=relevance.rules),
    "EAP-IG-inputs": Method(way=along_inputs),
    "EAP-IG-activations": Method(way=along_activations),
}
