"""Whether the shares of components add up in a model, and what its norms multiply with.

A component has a share of the stream or of a logit because all that lies between is a sum or, with the scale of a norm
held (`interp.held_norms`), linear. A cap on the logits is not linear, and an architecture that is not the lab's own may
have steps that it does not know: there shares would not add up, so they are refused.
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


def norms_what_is_written(model: Any) -> bool:
    """Whether a norm lies between what attention and MLPs compute and the stream (`ln1_post`, `ln2_post`)."""
    places = getattr(model.cfg, "norm_places", "pre")
    return places in ("post", "both") and model.cfg.normalization_type is not None


def norms_the_stream(cfg: Any) -> bool:
    """Whether norms stand on the stream itself, after each addition (Vaswani et al. 2017; BERT)."""
    return getattr(cfg, "norm_places", "pre") == "stream" and cfg.normalization_type is not None


def check_stream_is_a_sum(model: Any) -> None:
    """Refuse what takes the stream for the sum of what attention and MLPs wrote to it, where it is none.

    Raises:
        LabError: norms stand on the stream, or something else writes to it (`model.unaccounted`).
    """
    if norms_the_stream(model.cfg):
        raise LabError(
            f"in {model.cfg.model_name!r} a norm stands on the stream after each addition (norm_places='stream'), so "
            "the stream is no sum of what components wrote.  Try activation_patching, ablation or logit_lens, which "
            "take any model."
        )
    if other := getattr(model, "unaccounted", {}).get("sum"):
        raise LabError(
            f"in {model.cfg.model_name!r} {other}.  Try activation_patching or ablation, which take any model."
        )


def sides_of(model: Any) -> str:
    """For a message: the views of a model of two sequences, which is none that analyses see as one stack of blocks."""
    views = {"decoder_given": "model.decoder_given(source)", "encoder_given": "model.encoder_given(target)"}
    known = [view for name, view in views.items() if hasattr(model, name)]
    return f"  It has two sides; try {' or '.join(known)}." if known else ""


def check_parts_reach_the_stream(model: Any) -> None:
    """Refuse to split what attention or an MLP writes where the weights do not say what reaches the stream.

    Raises:
        LabError: norms stand on the stream, the model found a step there that the lab does not know
            (`model.unaccounted`), or it has no blocks.
    """
    if not hasattr(model, "blocks"):
        raise LabError(
            f"{model.cfg.model_name!r} has no blocks that write to a residual stream: no parts, no shares."
            f"{sides_of(model)}"
        )
    check_stream_is_a_sum(model)
    found = {where: what for where, what in getattr(model, "unaccounted", {}).items() if where != "logits"}
    if found:
        raise LabError(
            f"in {model.cfg.model_name!r} {'; '.join(found.values())}.  Try whole layers (accumulated_resid) or "
            "activation_patching, which takes any model."
        )


def check_logits_are_linear(model: Any) -> None:
    """Refuse shares of logits that are capped, or scaled by what the lab does not know.

    Raises:
        LabError: the model caps its logits, or found a step there that the lab does not know (`model.unaccounted`).
    """
    cap = getattr(model.cfg, "output_logits_soft_cap", None)
    if cap is not None and cap > 0:
        raise LabError(
            f"{model.cfg.model_name!r} caps its logits (output_logits_soft_cap={cap}), so components' shares do not "
            "add up to them.  Try logit_lens, which caps them too, or activation_patching, which takes any model."
        )
    if unknown := getattr(model, "unaccounted", {}).get("logits"):
        raise LabError(
            f"in {model.cfg.model_name!r} {unknown}.  Try activation_patching or ablation, which take any model."
        )


def shares_add_up(model: Any) -> bool:
    """Whether components have shares of the stream and of the logits."""
    try:
        check_parts_reach_the_stream(model)
        check_logits_are_linear(model)
    except LabError:
        return False
    return True
