"""Eigenvalues of the full circuits of a head: whether it copies tokens, and whether tokens attend to their equals.

    copying  = Σ λ / Σ |λ|  of  W_E W_V W_O W_U     1: attending to a token raises that token; -1: lowers it
    matching = Σ λ / Σ |λ|  of  W_E W_Q W_K^T W_E^T   1: a token attends to its equals; -1: away from them

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Summarizing OV/QK Matrices". The matrices are
[d_vocab d_vocab] of rank d_head. Their nonzero eigenvalues are those of the cyclic products W_O (W_U W_E) W_V and
W_K^T (W_E^T W_E) W_Q, [d_head d_head] each, so nothing of size d_vocab² is formed. Norms are folded as in
`analyses.weights`. Where a model has more inputs than outputs or the other way round, the tokens that are both count.

Cost: no forward.
It does not show: whether a head is used so. A positive sum of eigenvalues can go with tokens that are not copied, and
the embedding is not all that a head reads; `copying_scores` asks the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from analyses.stream_weights import read, written
from analyses.weights import layer_ov, layer_qk
from interp import provenance
from interp.contract import HookedModel
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import Scale


@dataclass(frozen=True, eq=False, repr=False)
class CircuitEigenvalues(Result):
    """Σ λ / Σ |λ| of every head's full OV circuit ("copying") and full QK circuit ("matching").

    real, imaginary: the eigenvalues themselves, those of the largest size first.
    """

    title = "Eigenvalues of heads' circuits"
    shows = "whether each head copies the tokens that it attends to, and whether tokens attend to their equals"
    caveat = "Read off the weights from the embedding alone: what a head does in a run may be something else."
    unit = "sum of eigenvalues over sum of their sizes"
    scale = Scale("RdBu", middle=0.0, lowest=-1.0, highest=1.0)

    values: Float[np.ndarray, "circuit layer head"]
    real: Float[np.ndarray, "circuit layer head eigenvalue"]
    imaginary: Float[np.ndarray, "circuit layer head eigenvalue"]

    @property
    def copying(self) -> Float[np.ndarray, "layer head"]:
        return self.values[0]

    @property
    def matching(self) -> Float[np.ndarray, "layer head"]:
        return self.values[1]


@torch.no_grad()
def circuit_eigenvalues(model: HookedModel | Any) -> CircuitEigenvalues:
    """The eigenvalue summaries of all heads: `.copying[layer, head]`, `.matching[layer, head]`.

    A head whose circuit is zero has no eigenvalues to compare, and scores NaN.

    Raises:
        LabError: a model in which the weights do not say what reaches the stream (`interp.shares`).
    """
    embed, unembed = written(model, Site("embed")), read(model, Site("unembed.out"))
    both = min(len(embed), unembed.shape[1])
    again, alike = unembed[:, :both] @ embed[:both], embed.mT @ embed  # from what is written to what would be read
    circuits = [(layer_ov(model, layer), layer_qk(model, layer)) for layer in range(model.cfg.n_layers)]
    copying = torch.stack([ov.B @ again @ ov.A for ov, _ in circuits])
    matching = torch.stack([qk.B @ alike @ qk.A for _, qk in circuits])
    values = torch.stack([_largest_first(torch.linalg.eigvals(matrix)) for matrix in (copying, matching)])
    return CircuitEigenvalues(
        to_numpy(values.sum(-1).real / values.abs().sum(-1)),
        to_numpy(values.real),
        to_numpy(values.imag),
        labels={"circuit": ["copying", "matching"]},
        provenance=provenance.of(model),
    )


def _largest_first(values: Complex[Tensor, "*heads eigenvalue"]) -> Complex[Tensor, "*heads eigenvalue"]:
    return values.gather(-1, values.abs().sort(dim=-1, descending=True, stable=True).indices)
