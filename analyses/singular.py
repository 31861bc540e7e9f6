"""Singular directions of a weight matrix, read as tokens.

    W = U S V^T;   a direction d of the stream as tokens: the largest and the smallest entries of  d · W_U

Millidge & Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices are Highly Interpretable".
Of W_OV the columns of U are what is read and those of V what is written for it; of W_QK the query's and the key's side;
of an MLP's W_in what neurons read, of its W_out what they write. Norms are folded as in `analyses.weights`, and what is
read goes through the same W_U.

The sign of a singular vector is arbitrary, but that of a pair is not: the "+" end of one side goes with the "+" end of
the other, "-" with "-".

Cost: no forward; a decomposition of factors, [d_model d_head] for heads.
It does not show: whether inputs have these directions. Singular values weigh all inputs alike, and vectors of nearly
the same singular value mix freely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from analyses.labels import token_texts
from analyses.stream_weights import read, written
from analyses.weights import layer_ov, layer_qk
from interp import markup, provenance, text
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import AMOUNT

if TYPE_CHECKING:
    from interp.page import Section

SIDES = {"OV": ("read", "written"), "QK": ("query", "key"), "mlp_in": ("read",), "mlp_out": ("written",)}
ENDS = ("+", "-")


@dataclass(frozen=True, eq=False, repr=False)
class SingularDirections(Result):
    """Singular values, the largest first, with the tokens at both ends of each direction.

    tokens, ids: the tokens furthest towards each end, the furthest first. logits: how far, for a vector of length one.
    of: OV, QK, mlp_in or mlp_out. layer, head: whose; head is None for MLPs.
    """

    title = "Singular directions"
    shows = "the strength of each direction that the weights read or write, and the tokens that it stands for"
    caveat = "Whether inputs have these directions is not seen; signs are arbitrary, but the same on both sides."
    unit = "singular value"
    scale = AMOUNT

    values: Float[np.ndarray, "direction"]
    tokens: Shaped[np.ndarray, "direction side end rank"]
    ids: Int[np.ndarray, "direction side end rank"]
    logits: Float[np.ndarray, "direction side end rank"]
    of: str
    layer: int
    head: int | None

    def sections(self) -> tuple[Section, ...]:
        """Its page shows the singular values, and a table of the tokens at the ends of every direction."""
        from interp.page import Plot, Section

        rows = [
            [i, str(self.labels["side"][side]), ENDS[end], " ".join(map(text.visible, self.tokens[i, side, end]))]
            for i, side, end in np.ndindex(self.tokens.shape[:3])
        ]
        listing = markup.table(["direction", "side", "end", "tokens"], rows)
        figure = self.plot().update_layout(title=None)
        return (Section(self.title, (Plot(figure), listing), self.shows, self.caveat),)


@torch.no_grad()
def singular_directions(
    model: HookedModel | Any, of: str = "OV", layer: int = 0, head: int | None = None, n: int = 10, k: int = 8
) -> SingularDirections:
    """The `n` strongest singular directions of one matrix, or all, each with `k` tokens at both ends: `.tokens`.

    of: "OV" or "QK" of a head, "mlp_in" or "mlp_out" of a layer.

    Raises:
        LabError: an unknown matrix, a head where none belongs or the other way round, one that the model does not have,
            an n or k below 1.
    """
    sides = _checked(model, of, layer, head, n, k)
    unembed = read(model, Site("unembed.out"))
    values, vectors = _decomposed(model, of, layer, head)
    logits = torch.stack([vectors[side][:, :n].mT @ unembed for side in sides])
    ends = torch.stack([logits, -logits]).topk(min(k, unembed.shape[1]), -1)
    order = "end side direction rank -> direction side end rank"
    ids = to_numpy(rearrange(ends.indices, order))
    signed = ends.values * rearrange(torch.tensor([1, -1], device=logits.device), "end -> end 1 1 1")
    texts = token_texts(model, ids) if model.tokenizer is not None else ids.astype(str)
    return SingularDirections(
        to_numpy(values[:n]),
        texts,
        ids,
        to_numpy(rearrange(signed, order)),
        of,
        layer,
        head,
        labels={"side": list(sides), "end": list(ENDS)},
        provenance=provenance.of(model, settings={"of": of, "layer": layer, "head": head}),
    )


def _checked(model: HookedModel | Any, of: str, layer: int, head: int | None, n: int, k: int) -> tuple[str, ...]:
    sides = SIDES[choose("matrix", of, SIDES)]
    cfg = model.cfg
    if (head is None) != of.startswith("mlp"):
        raise LabError(f"of={of!r} with head={head}; expected a head for OV and QK, and none for mlp_in and mlp_out.")
    if not 0 <= layer < cfg.n_layers or not 0 <= (head or 0) < cfg.n_heads:
        raise LabError(
            f"layer {layer}, head {head}: {cfg.model_name!r} has layers 0 to {cfg.n_layers - 1} with heads 0 to "
            f"{cfg.n_heads - 1}."
        )
    if n < 1 or k < 1:
        raise LabError(f"n={n}, k={k}; expected at least one direction and one token.")
    return sides


def _decomposed(
    model: HookedModel | Any, of: str, layer: int, head: int | None
) -> tuple[Float[Tensor, "direction"], dict[str, Float[Tensor, "d_model direction"]]]:
    """Singular values, and the vectors of each side that lies in the stream."""
    if of in ("OV", "QK"):
        U, S, V = (layer_ov if of == "OV" else layer_qk)(model, layer)[head].svd()
        return S, dict(zip(SIDES[of], (U, V), strict=True))
    if of == "mlp_in":
        U, S, _ = torch.linalg.svd(read(model, Site("mlp_pre", layer)), full_matrices=False)
        return S, {"read": U}
    _, S, Vh = torch.linalg.svd(written(model, Site("mlp_post", layer)), full_matrices=False)
    return S, {"written": Vh.mT}
