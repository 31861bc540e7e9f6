"""Principal components of token vectors: the few directions along which they differ most.

    X = W_E[tokens] - mean  = U S V^T      coordinates X V,   explained variance  S² / |X|²

Cost: no forward; a QR of [tokens d_model] and a decomposition of its square factor.
It does not show: that the model reads these directions; a direction may vary much and be read by nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from analyses.embeddings import Token, texts_of, token_ids, token_vectors
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingPCA(Result):
    """Tokens on the principal components of their vectors, the component of the largest variance first.

    explained: the share of the variance on each component. directions: the components, each of length one, signed so
    that the largest coordinate on it is positive.
    """

    title = "Principal components of the embedding"
    shows = "where tokens lie along the directions in which their vectors differ most"
    caveat = "That a direction varies does not say that the model reads it."
    unit = "coordinate"

    values: Float[np.ndarray, "token component"]
    explained: Float[np.ndarray, "component"]
    directions: Float[np.ndarray, "component d_model"]

    def plot(self, first: int = 0) -> go.Figure:
        """The tokens on the component `first` and the one after it."""
        from analyses.embedding_pictures import scatter_figure

        names = [str(name) for name in self.labels["token"]]
        return scatter_figure(self.values, self.explained, names, first, title=self.title)

    def sections(self) -> tuple[Section, ...]:
        """The tokens on the first two components, and what each component explains."""
        from interp import markup
        from interp.page import Plot, Section

        shares = [[i + 1, f"{share:.2%}"] for i, share in enumerate(self.explained)]
        figure = self.plot().update_layout(title=None)
        blocks = (Plot(figure), markup.table(["component", "explained variance"], shares))
        return (Section(self.title, blocks, self.shows, self.caveat),)


@torch.no_grad()
def embedding_pca(model: HookedModel | Any, tokens: Sequence[Token] | None = None, k: int = 10) -> EmbeddingPCA:
    """Tokens (by default all) on the `k` first principal components of their vectors: `.values[token, component]`.

    Raises:
        LabError: fewer than two different tokens, what `nearest_tokens` refuses, vectors that are all the same.
    """
    ids = list(range(model.cfg.d_vocab)) if tokens is None else token_ids(model, tokens)
    if len(set(ids)) < 2:
        raise LabError(f"{len(set(ids))} tokens; expected at least two different ones, which can differ in something.")
    coordinates, directions, explained = principal(token_vectors(model)[ids], k)
    return EmbeddingPCA(
        to_numpy(coordinates),
        to_numpy(explained),
        to_numpy(directions),
        labels={"token": texts_of(model, np.array(ids)).tolist()},
        provenance=provenance.of(model, settings={"tokens": "all" if tokens is None else ids}),
    )


def principal(
    vectors: Float[Tensor, "point d_model"], k: int
) -> tuple[Float[Tensor, "point component"], Float[Tensor, "component d_model"], Float[Tensor, "component"]]:
    """Coordinates, directions and shares of the variance of the `k` first principal components, in float64.

    Fewer where the vectors do not vary in so many directions.

    Raises:
        LabError: a k below 1, or vectors that are all the same.
    """
    if k < 1:
        raise LabError(f"k={k}; expected at least one component.")
    centred = vectors.double() - vectors.double().mean(0)
    variance = centred.square().sum()
    if not variance > 0:
        raise LabError("the vectors are all the same, so they have no principal components.")
    _, strength, directions = torch.linalg.svd(torch.linalg.qr(centred, mode="r").R, full_matrices=False)
    k = min(k, int((strength > 1e-9 * strength[0]).sum()))  # points in a plane have no third component
    coordinates, directions = centred @ directions[:k].mT, directions[:k]
    furthest = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))[0]
    signs = torch.where(furthest < 0, -1.0, 1.0).to(coordinates)
    return (
        coordinates * signs,
        directions * rearrange(signs, "component -> component 1"),
        strength[:k].square() / variance,
    )
