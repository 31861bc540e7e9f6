"""A norm with its scale held as it was in a run: the linear map that it was for the whole stream.

    norm(Σ_c x_c) = Σ_c centre(x_c) · gain / scale + bias

so every component of what a norm reads has an exact part in what it gives (Wang et al. 2022, arXiv:2211.00593, §3.1).
That holds for the final norm, and as well for the norms of some families on what attention and MLPs write
(`ln1_post` and `ln2_post`; Gemma 2, arXiv:2408.00118, §2; OLMo 2, arXiv:2501.00656, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.shares import gain_of


@dataclass(frozen=True, eq=False)
class HeldNorm:
    """x -> centre(x) · gain / scale, and the bias apart, which belongs to no component.

    scale: one for every vector. gain, bias: None where the norm has none. centres: whether it takes the mean off
    (layer norm).
    """

    scale: Float[Tensor, "*#axes 1"]
    gain: Float[Tensor, "d_model"] | None
    bias: Float[Tensor, "d_model"] | None
    centres: bool

    def part(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*all_axes d_model"]:
        """What a component of the input is of the output; axes before the scale's own are broadcast."""
        if self.centres:
            x = x - x.mean(-1, keepdim=True)
        scaled = x / self.scale
        return scaled if self.gain is None else scaled * self.gain

    def seen_through(self, direction: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*all_axes d_model"]:
        """The direction r with x · r = part(x) · direction for every x: the same map from the other side.

        centre(x) · gain / scale · u = x · centre(gain · u) / scale, as centring is symmetric.
        """
        if self.gain is not None:
            direction = direction * self.gain
        if self.centres:
            direction = direction - direction.mean(-1, keepdim=True)
        return direction / self.scale

    def at(self, scale: Tensor) -> HeldNorm:
        """The same norm with the scales of other vectors."""
        return replace(self, scale=scale)


def hold(model: Any, norm: Any, scale: Float[Tensor, "*axes 1"]) -> HeldNorm:
    """One of the model's norms, with the scale that was cached at its `hook_scale`."""
    centres = model.cfg.normalization_type.startswith("LN")
    return HeldNorm(scale, gain_of(norm), getattr(norm, "b", None), centres)
