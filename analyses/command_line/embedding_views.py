"""What `interp embeddings` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import RenderableType

from analyses.command_line.tables import table, token
from interp import text

if TYPE_CHECKING:
    from analyses.embeddings import Analogies, NearestTokens
    from analyses.position_vectors import PositionGeometry
    from analyses.principal import EmbeddingPCA

View = list[RenderableType]


def neighbours_view(found: NearestTokens) -> View:
    """For each token and measure the nearest tokens, each with how near it is."""
    measures = [str(name) for name in found.labels["measure"]]
    rows = [
        [token(name), measures[j], *_cells(found.tokens[i, j], found.values[i, j])]
        for i, name in enumerate(found.labels["token"])
        for j in range(len(measures))
    ]
    return [found.shows, table(["token", "by", *_ordinals(found.values.shape[-1])], rows)]


def analogies_view(found: Analogies) -> View:
    """For each question the nearest tokens, each with its cosine."""
    rows = [[str(name), *_cells(found.tokens[i], found.values[i])] for i, name in enumerate(found.labels["question"])]
    return [f"{found.shows}; {found.unit}", table(["question", *_ordinals(found.values.shape[-1])], rows)]


def components_view(found: EmbeddingPCA, k: int) -> View:
    """What each component explains, and the tokens at its ends."""
    names = [token(name) for name in found.labels["token"]]
    rows = []
    for i, share in enumerate(found.explained):
        order = np.argsort(-found.values[:, i], kind="stable")
        ends = [" ".join(names[j] for j in some) for some in (order[:k], order[::-1][:k])]
        rows.append([str(i + 1), f"{share:.1%}", *ends])
    return [found.shows, table(["component", "explained", "highest", "lowest"], rows)]


def positions_view(found: PositionGeometry, k: int) -> View:
    """Similarity by distance, variance by component, and the strongest waves."""
    n = len(found.values)
    distances = [d for d in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if d < n]
    similar = [(str(d), float(np.diagonal(found.values, d).mean())) for d in distances]
    spread = [(str(i + 1), f"{share:.1%}") for i, share in enumerate(found.explained)]
    strongest = np.argsort(-found.spectrum, kind="stable")[:k]
    waves = [(str(i + 1), f"{n / (i + 1):.4g}", f"{found.spectrum[i]:.1%}") for i in strongest]
    return [
        found.shows,
        table(["distance", "mean cosine"], similar),
        table(["component", "explained"], spread),
        table(["turns over the window", "wavelength", "share"], waves),
    ]


def _cells(tokens: np.ndarray, values: np.ndarray) -> list[str]:
    return [
        f"{token(name)} {text.number(float(value), signed=False)}" for name, value in zip(tokens, values, strict=True)
    ]


def _ordinals(n: int) -> list[str]:
    return [f"nearest {i + 1}" for i in range(n)]
