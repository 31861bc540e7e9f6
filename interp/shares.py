"""Whether the shares of components add up in a model, and what its norms multiply with.

A component has a share of the stream or of a logit because all that lies between is a sum or, with the scale of the
final norm held, linear. A norm on what attention writes mixes its heads by a scale of its own, and a cap on the logits
is not linear: there shares would not add up, so they are refused.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.errors import LabError


def gain_of(norm: Any) -> Float[Tensor, "d_model"] | None:
    """What a norm multiplies the normalised stream with; None for one without a gain.

    It is not always the weight `w`: Gemma's norms add 1 to that.
    """
    gain = getattr(norm, "gain", None)
    return getattr(norm, "w", None) if gain is None else gain


def check_parts_reach_the_stream(model: Any) -> None:
    """Refuse to split what attention or an MLP writes where a norm comes after it.

    Raises:
        LabError: the model normalises what they write.
    """
    cfg = model.cfg
    places = getattr(cfg, "norm_places", "pre")
    if places != "pre" and cfg.normalization_type is not None:
        raise LabError(
            f"{cfg.model_name!r} normalises what attention and MLPs write (norm_places={places!r}), so a head or a "
            "neuron has no share of the stream of its own.  Try whole layers (decompose_resid, "
            "component_lens('attn_out')) or activation_patching, which takes any model."
        )


def check_logits_are_linear(model: Any) -> None:
    """Refuse shares of logits that are capped.

    Raises:
        LabError: the model caps its logits.
    """
    cap = getattr(model.cfg, "output_logits_soft_cap", None)
    if cap is not None and cap > 0:
        raise LabError(
            f"{model.cfg.model_name!r} caps its logits (output_logits_soft_cap={cap}), so components' shares do not "
            "add up to them.  Try logit_lens, which caps them too, or activation_patching, which takes any model."
        )
