"""What `interp sampling` shows."""

from __future__ import annotations

from rich.console import RenderableType

from analyses.command_line.tables import safe, table
from analyses.sampling import MEASURES, SamplingEffects

View = list[RenderableType]


def sampling_view(found: SamplingEffects) -> View:
    """Each way's measures, mean and standard deviation over its texts, and the first text of each."""
    columns = ["way"] + [heading for name in MEASURES for heading in (name, "spread")] + ["distinct 3-grams"]
    rows = [
        (way, *(f"{number:.3f}" for pair in zip(means, spreads, strict=True) for number in pair), f"{distinct:.3f}")
        for way, means, spreads, distinct in found.rows()
    ]
    texts = [(str(way), safe(found.text(i))) for i, way in enumerate(found.labels["way"])]
    samples, pos = found.tokens.shape[1:]
    return [
        f"{found.shows} ({samples} texts of {pos} tokens each way; entropy and log probability in nats a token)",
        table(columns, rows),
        table(["way", "the first of its texts"], texts),
    ]
