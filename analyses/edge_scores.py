"""What every result with a score for each edge of a model's graph holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interp.errors import LabError
from interp.graph import Graph
from interp.prompts import PromptPairs
from interp.results import Result
from interp.style import SIGNED

if TYPE_CHECKING:
    import plotly.graph_objects as go

VALUES = ("resample", "mean", "zero")
DRAWN = 30


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(Result):
    """A score for each edge of a graph, [edge] or [edge pos], labelled by the edges' names.

    values: mean over prompts; when `normalized` 0 is no change and 1 the whole way to the other run, else in the
    metric's units. clean, corrupted: the metric of the two unpatched runs. value: what an edge's sender is replaced
    with, of `VALUES`. shape: of the graph, as plain values.
    """

    caveat = "One edge at a time: edges that only matter together, or stand in for each other, are not seen."
    scale = SIGNED

    values: Float[np.ndarray, "*axes"]
    clean: Float[np.ndarray, "prompt"]
    corrupted: Float[np.ndarray, "prompt"]
    metric: str
    direction: str
    value: str
    normalized: bool
    shape: Mapping[str, Any]

    @property
    def graph(self) -> Graph:
        """The graph whose edges these are."""
        return Graph(**self.shape)

    @property
    def shows(self) -> str:  # type: ignore[override]
        run, other = ("clean", "corrupted") if self.direction == "noise" else ("corrupted", "clean")
        what = {"zero": "as zero", "mean": "as its mean over prompts"}.get(self.value, f"as it is in the {other} run")
        scale = f"0 is no change, 1 the {other} run" if self.normalized else f"in units of {self.metric}"
        return f"change of {self.metric} in the {run} run when one receiver alone reads one sender {what}; {scale}."

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "share of the way to the other run" if self.normalized else f"change of {self.metric}"

    def plot(self) -> go.Figure:
        """The edges that are furthest from zero."""
        from interp import pictures

        found = self.top(DRAWN)
        title = f"{self.title}: the {len(found)} strongest of {self.values.size} edges"
        numbers = np.array([each.value for each in found])
        return pictures.bars(numbers, [self.graph.name(each.index) for each in found], title=title, unit=self.unit)


def checked_graph(model: Any, pairs: PromptPairs, graph: Graph | None) -> Graph:
    """The graph that is asked for, by default the model's.

    Raises:
        LabError: it is another model's; or tells positions apart, and the prompts are of unequal or another length.
    """
    if graph is None:
        return Graph.of(model)
    own = Graph.of(model, graph.n_neurons is not None, graph.n_pos)
    if graph != own:
        its, given = asdict(own), asdict(graph)
        differing = ", ".join(f"{name} {given[name]} for {its[name]}" for name in its if its[name] != given[name])
        raise LabError(f"the graph is not one of {model.cfg.model_name!r} ({differing}); try Graph.of(model).")
    if graph.n_pos is not None and (pairs.padded or pairs.clean.shape[1] != graph.n_pos):
        lengths = sorted({int(length) for length in pairs.mask.sum(1)})
        raise LabError(
            f"the graph has edges at each of {graph.n_pos} positions, but the prompts have {lengths} tokens; expected "
            f"prompts of {graph.n_pos} each, or a graph without positions."
        )
    return graph


def check_value(value: str, direction: str) -> None:
    """Raises:
    LabError: means or zeros together with the direction "denoise", in which senders take clean outputs.
    """
    if value != "resample" and direction != "noise":
        raise LabError(
            f"value={value!r} with direction={direction!r}; in the direction 'denoise' senders take their outputs of "
            "the clean run. Expected value='resample', or direction='noise'."
        )
