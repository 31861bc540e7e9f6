"""Similarity of what two models' layers hold, whatever their widths and bases: centred kernel alignment.

    CKA(X, Y) = HSIC(XX^T, YY^T) / sqrt(HSIC(XX^T, XX^T) · HSIC(YY^T, YY^T))

Kornblith et al. 2019 (arXiv:1905.00414), linear kernel. HSIC is the unbiased estimator of Song et al. 2012 (Feature
selection via dependence maximization, eq. 5), as Nguyen, Raghu & Kornblith 2020 (arXiv:2010.15327) use it: the biased
one approaches 1 for any two layers when they have more dimensions than there are tokens. 1 for streams that are equal
up to rotation, scale and shift; about 0 (also a little below) for unrelated ones.

Each text's first position is left out, as its stream is an outlier that would decide the number alone; a beginning that
several texts share counts once.

Cost: one forward of each model, and a matrix of tokens by tokens for each layer.
It does not show: whether the shared structure is what either model uses; a few large directions can dominate it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.same_text import SameText, Texts, of_both, same_text
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.stream_points import stream_names
from interp.style import SHARE

if TYPE_CHECKING:
    from interp.results import Extreme

FEWEST = 4
"""Tokens without which the unbiased estimator is not defined."""
LEAST_SPREAD = 1e-6
"""Vectors that differ by less than this share of their length are the same, but for rounding."""
MOST = 1000
"""Tokens that are used: of more, these many, evenly spread."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerSimilarity(Result):
    """CKA of every stream of one model with every stream of the other; row 0 is the embedding, row l + 1 after block l.

    tokens: how many positions it was computed on. NaN where a layer holds the same at every position.
    """

    title = "Similarity of layers"
    shows = "how alike the residual streams of two models are, up to rotation and scale: debiased linear CKA"
    caveat = "Shared structure need not be used by either model, and a few large directions can dominate it."
    unit = "CKA"
    scale = SHARE

    values: Float[np.ndarray, "layer_a layer_b"]
    tokens: int

    def best(self) -> tuple[Extreme, ...]:
        """For each layer of the first model, the most similar layer of the second."""
        cells = {cell.index: cell for cell in self.highest(self.values.size)}
        known = [i for i, row in enumerate(self.values) if not np.isnan(row).all()]
        return tuple(cells[i, int(np.nanargmax(self.values[i]))] for i in known)


def layer_similarity(a: HookedModel | Any, b: HookedModel | Any, texts: Texts) -> LayerSimilarity:
    """CKA between all layers of two models on the same text: `.values[layer_a, layer_b]`.

    Raises:
        LabError: texts that the models do not read alike (see `same_text`), or too few tokens.
    """
    text = same_text(a, b, texts)
    kept = sampled(text)
    found_a, found_b = [], []
    with torch.inference_mode():
        for places, rows_a, rows_b in text.batches():
            here = torch.stack([kept[place] for place in places])
            found_a.append(streams(a, rows_a, here))
            found_b.append(streams(b, rows_b, here))
    grams_a, grams_b = (centred_grams(torch.cat(found, 1)) for found in (found_a, found_b))
    return LayerSimilarity(
        to_numpy(cka_of_grams(grams_a, grams_b)),
        grams_a.shape[-1],
        labels={"layer_a": layer_names(a), "layer_b": layer_names(b)},
        provenance=of_both(a, b, text, site="resid_post"),
    )


def sampled(text: SameText) -> tuple[Bool[Tensor, "_"], ...]:
    """The positions of each text that CKA is computed on.

    Raises:
        LabError: too few.
    """
    distinct = torch.cat(text.distinct)
    places = distinct.nonzero()[:, 0]
    if len(places) < FEWEST:
        raise LabError(
            f"CKA needs at least {FEWEST} different positions beside the first of each text; the texts have "
            f"{len(places)}.  Give longer texts, or more."
        )
    if len(places) > MOST:
        places = places[torch.linspace(0, len(places) - 1, MOST).round().long()]
    kept = torch.zeros_like(distinct)
    kept[places] = True
    return kept.split([len(row) for row in text.rows_a])


def streams(
    model: HookedModel | Any, rows: Int[Tensor, "batch pos"], kept: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "layer token d_model"]:
    """The residual stream before the first block and after each, at some positions, in float64 on the CPU."""
    names = stream_names(model.cfg)
    _, cache = model.run_with_cache(rows.to(model.device), names_filter=names)
    return torch.stack([cache[name].cpu()[kept].double() for name in names])


def layer_names(model: HookedModel | Any) -> list[str]:
    return ["embed", *map(str, range(model.cfg.n_layers))]


def debiased_cka(x: Float[Tensor, "token d_x"], y: Float[Tensor, "token d_y"]) -> Float[Tensor, ""]:
    """CKA of two sets of vectors for the same tokens, at least four.

    Raises:
        LabError: fewer tokens, or not as many of each.
    """
    if len(x) != len(y) or len(x) < FEWEST:
        raise LabError(f"CKA needs as many vectors of each kind, at least {FEWEST}; given {len(x)} and {len(y)}.")
    return cka_of_grams(centred_grams(x[None]), centred_grams(y[None]))[0, 0]


def centred_grams(vectors: Float[Tensor, "layer token d"]) -> Float[Tensor, "layer token token2"]:
    """XX^T with a zero diagonal, centred so that products of two such matrices estimate HSIC without bias.

    U-centring (Székely & Rizzo 2014): sum(U_X · U_Y) = n (n - 3) HSIC(X, Y) for Song's estimator. The mean is taken off
    first, which changes nothing but the rounding.
    """
    n = vectors.shape[1]
    spread = vectors - vectors.mean(1, keepdim=True)
    rounding = spread.norm(dim=(1, 2), keepdim=True) <= LEAST_SPREAD * vectors.norm(dim=(1, 2), keepdim=True)
    spread = spread.masked_fill(rounding, 0.0)
    gram = einsum(spread, spread, "layer i d, layer j d -> layer i j")
    diagonal = torch.eye(n, dtype=torch.bool, device=gram.device)
    gram = gram.masked_fill(diagonal, 0.0)
    sums = gram.sum(-1)
    rows, columns = rearrange(sums, "layer i -> layer i 1"), rearrange(sums, "layer j -> layer 1 j")
    whole = rearrange(sums.sum(-1), "layer -> layer 1 1")
    centred = gram - (rows + columns) / (n - 2) + whole / ((n - 1) * (n - 2))
    return centred.masked_fill(diagonal, 0.0)


def cka_of_grams(
    a: Float[Tensor, "layer_a token token2"], b: Float[Tensor, "layer_b token token2"]
) -> Float[Tensor, "layer_a layer_b"]:
    """The cosine between matrices that `centred_grams` made; NaN where one is zero."""
    together = einsum(a, b, "layer_a i j, layer_b i j -> layer_a layer_b")
    norm_a, norm_b = (einsum(g, g, "layer i j, layer i j -> layer").sqrt() for g in (a, b))
    return together / einsum(norm_a, norm_b, "layer_a, layer_b -> layer_a layer_b")
