"""What `interp circuit` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType

from analyses.command_line.tables import table
from interp import text

if TYPE_CHECKING:
    from analyses.circuit_curve import FaithfulnessCurve
    from analyses.circuit_finding import FoundCircuit
    from analyses.circuits import CircuitEvaluation
    from interp.circuit import Circuit

View = list[RenderableType]


def circuit_view(found: FoundCircuit, k: int) -> View:
    """How good the circuit is, its components, and its strongest edges."""
    from analyses.circuit_picture import lines_of

    lines = lines_of(found.circuit, found.scores.values)
    strongest = [(line.name, text.number(line.score)) for line in lines[:k]]
    return [
        found.summary,
        str(found.stability),
        *setting_view(found.evaluation),
        components_table(found.circuit),
        table(["strongest edges", found.unit], strongest),
        *curve_view(found.curve),
    ]


def evaluation_view(found: CircuitEvaluation, circuit: Circuit) -> View:
    """The faithfulness of one circuit, with its spread over prompts."""
    unit = "faithfulness" if found.normalized else found.unit or found.metric
    rows = [(len(circuit), *(text.number(float(f)) for f in (found.values[0], found.low[0], found.high[0])))]
    spread = [(name, text.number(value)) for name, value in found.spread().items()]
    return [
        found.shows,
        table(["edges", unit, "95 % from", "to"], rows),
        table([f"{found.metric} of its runs", ""], spread),
        *setting_view(found),
        components_table(circuit),
    ]


def setting_view(found: CircuitEvaluation) -> View:
    """Of what it is a circuit."""
    return [table(["", ""], list(found.setting.items()))]


def components_table(circuit: Circuit) -> RenderableType:
    """Each component with its edges in and out."""
    from analyses.circuit_picture import lines_of

    lines = lines_of(circuit, circuit.kept.astype(float))
    rows = []
    for name in circuit.nodes:
        kinds = [line.kind for line in lines if line.receiver == name]
        into = {kind: kinds.count(kind) for kind in ("q", "k", "v", "")}
        words = ", ".join(f"{n} {kind}".strip() for kind, n in into.items() if n)
        rows.append((name, words or "-", str(sum(line.sender == name for line in lines))))
    return table(["component", "edges in", "out"], rows)


def curve_view(found: FaithfulnessCurve) -> View:
    """Faithfulness at each size, and the areas."""
    rows = [
        (f"{size:.1%}", *(text.number(float(value)) for value in values))
        for size, values in zip(found.sizes, found.values.T, strict=True)
    ]
    areas = [
        f"{name} {area:.3g} (95 % of bootstraps {low:.3g} to {high:.3g})"
        for name, area, low, high in zip(("CPR", "CMD"), found.area, found.area_low, found.area_high, strict=True)
    ]
    return [table(["of the edges", "signed ranking", "absolute ranking"], rows), ", ".join(areas)]
