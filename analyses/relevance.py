"""Relevance patching: attribution patching with the coefficients of layer-wise relevance propagation.

Jafari et al. 2025 (RelP, arXiv:2508.21258). The forward is the model's own; the backward passes what these rules say
instead of the derivative:

    norm (LN-rule)                   its scale is a constant: x̂ = (x - mean) / scale passes g / scale, less its mean
    activation (identity rule)       y = f(x) passes g y/x in place of g f'(x)
    gated product (half-rule)        y = f(x) z passes g y/(2x) to x, and g y/(2z) to z
    all else (0-rule)                linear maps, the softmax and the products of attention: the derivative

A factor that is 0 is passed 0. So a norm does not damp what lies along the stream, and a neuron that is saturated, or
off, passes the share of its output that its input makes up. The authors' further rule for attention (their AH-rule,
as in CP-LRP and unlike AttnLRP, arXiv:2402.05602, takes the pattern as a constant) is not among these, as in their own
demonstration on GPT-2: with it every edge into queries and keys would have the score 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analyses.edge_products import EdgeProducts
from interp.contract import HookedModel, NamedHook
from interp.errors import LabError
from interp.markers import pure
from interp.sites import Site


class RelevanceProducts(EdgeProducts):
    """The products where the scale of the norm before queries, keys and values is a constant."""

    def _normalised(self, block: Any, stream: Tensor) -> tuple[Tensor | None, Tensor]:
        """What the scale's own derivative goes along, which is nothing, and the scale."""
        normed, scale = super()._normalised(block, stream)
        return (None if normed is None else torch.zeros_like(normed)), scale


def rules(model: HookedModel | Any) -> list[NamedHook]:
    """Hooks that leave the forward as it is and make the backward follow the rules.

    Raises:
        LabError: the model lacks a hook point where one of them is made.
    """
    scales = [name for name in model.hook_dict if name.endswith(".hook_scale")]
    layers = () if model.cfg.attn_only else range(model.cfg.n_layers)
    products = [(_factors(model, layer), Site("mlp_post", layer).hook_name) for layer in layers]
    missing = [name for names, post in products for name in (*names, post) if name not in model.hook_dict]
    if model.cfg.normalization_type is not None and not scales:
        missing.append("ln_final.hook_scale")
    if missing:
        raise LabError(
            f"RelP has its rules at {', '.join(missing[:3])}, which {model.cfg.model_name!r} lacks; try method='EAP'."
        )
    hooks: list[NamedHook] = [(name, _constant) for name in scales]
    for names, post in products:
        hooks += _shared(names, post)
    return hooks


def _factors(model: Any, layer: int) -> list[str]:
    """The hook names of what the neurons are computed from: the pre-activation, and what it gates."""
    pre, linear = Site("mlp_pre", layer).hook_name, Site("mlp_pre_linear", layer).hook_name
    return [pre, linear] if linear in model.hook_dict else [pre]


@pure
def _constant(scale: Tensor, hook: Any) -> Tensor:
    return scale.detach()


def _shared(factors: Sequence[str], product: str) -> list[NamedHook]:
    """Hooks by which a product passes the same share of itself to each of its factors."""
    known: dict[str, Tensor] = {}

    @pure
    def keep(factor: Tensor, hook: Any) -> None:
        known[hook.name] = factor

    @pure
    def share(product: Tensor, hook: Any) -> Tensor:
        value = passed = product.detach()
        for factor in known.values():
            fixed = factor.detach()
            ratio = torch.where(fixed == 0, 0.0, value / (len(factors) * fixed))
            passed = passed + ratio * (factor - fixed)  # which is 0
        known.clear()
        return passed

    return [*((name, keep) for name in factors), (product, share)]
