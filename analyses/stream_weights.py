"""What components write to the residual stream and read from it, as matrices, the norms in between folded in.

    written(model, site)   [source d_model]   a row for each thing that is written
    read(model, site)      [d_model target]   a column for each thing that is read

A norm is x -> centre(x) · gain / scale + bias. Its scale is one positive number for each vector, known only in a run;
all else of it that is linear, the centring of a layer norm and the gain, belongs to the weights behind it (Elhage et
al. 2021, "A Mathematical Framework for Transformer Circuits"). So products of the two are right up to a positive
factor, and biases are left out. The model is not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.held_norms import HeldNorm, hold
from interp.shares import check_parts_reach_the_stream, check_stream_is_a_sum
from interp.sites import Site

Weights = Float[Tensor, "*leading rows columns"]

WRITERS = ("embed", "pos_embed", "z", "mlp_post")
READERS = ("q", "k", "v", "mlp_pre", "mlp_pre_linear", "unembed.out")


def written(model: HookedModel | Any, site: Site) -> Float[Tensor, "*leading source d_model"]:
    """What reaches the stream for each unit of an activation: W_E, W_pos, W_O or W_out, in float32 at least.

    site: of kind "embed", "pos_embed", "z" or "mlp_post"; one head's, or with all heads [head d_head d_model]; a neuron
    gives one row. Where a norm comes after what is computed, its gain and centring are in it.

    Raises:
        LabError: a site of another kind, or one that the model does not have.
    """
    choose("kind that writes to the stream", site.kind, WRITERS)
    check_parts_reach_the_stream(model)
    block = _block(model, site)
    if block is None:
        name = {"embed": "W_E", "pos_embed": "W_pos"}[site.kind]
        return _wide(_present(model, site, lambda: getattr(model, name)))
    part, weight, axis = ("attn", "W_O", site.head) if site.kind == "z" else ("mlp", "W_out", site.neuron)
    matrix = _wide(_present(model, site, lambda: getattr(getattr(block, part), weight)))
    norm = _norm(model, getattr(block, "ln1_post" if part == "attn" else "ln2_post", None), matrix)
    return _pick(matrix if norm is None else norm.part(matrix), site, axis, keep=site.kind == "mlp_post")


def read(model: HookedModel | Any, site: Site) -> Float[Tensor, "*leading d_model target"]:
    """What each unit of an activation reads from the stream: W_Q, W_K, W_V, W_in, W_gate or W_U, in float32 at least.

    site: of kind "q", "k", "v", "mlp_pre" (of a gated MLP: W_gate), "mlp_pre_linear" (its W_in) or "unembed.out"; one
    head's (for k and v a key/value head), or with all heads [head d_model d_head]; a neuron gives one column.

    Raises:
        LabError: a site of another kind, one that the model does not have, or norms on the stream.
    """
    choose("kind that reads the stream", site.kind, READERS)
    check_stream_is_a_sum(model)
    block = _block(model, site)
    if block is None:
        matrix, norm = _wide(model.W_U), model.ln_final
    elif site.kind in ("q", "k", "v"):
        name = f"W_{site.kind.upper()}"
        matrix, norm = _wide(_present(model, site, lambda: getattr(block.attn, name))), getattr(block, "ln1", None)
    else:
        name = "W_gate" if site.kind == "mlp_pre" and getattr(model.cfg, "gated_mlp", False) else "W_in"
        matrix, norm = _wide(_present(model, site, lambda: getattr(block.mlp, name))), getattr(block, "ln2", None)
    held = _norm(model, norm, matrix)
    folded = matrix if held is None else held.seen_through(matrix.mT).mT
    if site.neuron is not None:
        return _pick(folded.mT, site, site.neuron, keep=True).mT
    return _pick(folded, site, site.head, keep=False)


def per_query_head(model: HookedModel | Any, shared: Float[Tensor, "kv_head rows columns"]) -> Weights:
    """Weights of key/value heads [head rows columns], repeated for the query heads that share them."""
    return shared.repeat_interleave(model.cfg.n_heads // len(shared), 0)


def _block(model: HookedModel | Any, site: Site) -> Any:
    """The site's block, None for one outside of the blocks.

    Raises:
        LabError: the model has no such layer.
    """
    if site.layer is None:
        return None
    if site.layer >= model.cfg.n_layers:
        raise LabError(f"{site}: {model.cfg.model_name!r} has layers 0 to {model.cfg.n_layers - 1}.")
    return model.blocks[site.layer]


def _present(model: HookedModel | Any, site: Site, get: Callable[[], Tensor]) -> Tensor:
    """Raises:
    LabError: the model has no such weights.
    """
    if site.hook_name not in model.hook_dict:
        raise LabError(f"the model {model.cfg.model_name!r} has no {site.kind!r}, so it has no such weights.")
    return get()


def _norm(model: HookedModel | Any, norm: Any, like: Tensor) -> HeldNorm | None:
    """A norm without its scale; None where there is none."""
    if model.cfg.normalization_type is None or not (hasattr(norm, "hook_scale") or hasattr(norm, "gain")):
        return None
    return hold(model, norm, torch.ones(1, dtype=like.dtype, device=like.device))


def _pick(matrix: Weights, site: Site, index: int | None, keep: bool) -> Tensor:
    """One entry of the first axis; keep: leave that axis in.

    Raises:
        LabError: there is no such entry.
    """
    if index is None:
        return matrix
    if not 0 <= index < len(matrix):
        raise LabError(f"{site}: expected a number from 0 to {len(matrix) - 1}.")
    return rearrange(matrix[index], "width -> 1 width") if keep else matrix[index]


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
