"""What a model is given, checked at its door: before any work, with what was given and what was expected."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError


def token_input(model: Any, tokens: Tensor) -> Int[Tensor, "batch pos"]:
    """The ids as [batch pos] on the model's device.

    Raises:
        LabError: another shape or dtype, no token, or, where it would be too late afterwards, ids out of range.
    """
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
        raise LabError(
            f"the input has shape {tuple(tokens.shape)} and dtype {tokens.dtype}; expected token ids [batch pos], "
            "at least one; a residual stream needs start_at_layer."
        )
    # An id out of range raises in the embedding on a CPU, but on a GPU it ends the process's use of the device.
    if tokens.is_cuda and not model.training and not torch.compiler.is_compiling():
        check_ids(tokens, model.cfg.d_vocab)
    return tokens.to(model.device)


def check_ids(tokens: Int[Tensor, "*axes"], d_vocab: int) -> None:
    """Raises:
    LabError: ids outside of the vocabulary.
    """
    lowest, highest = (int(end) for end in tokens.aminmax())
    if lowest < 0 or highest >= d_vocab:
        raise LabError(f"token ids run from {lowest} to {highest}; expected 0 to {d_vocab - 1} (d_vocab={d_vocab}).")


def mask_input(
    model: Any, mask: Bool[Tensor, "..."] | Int[Tensor, "..."] | None, resumes: bool = False
) -> Bool[Tensor, "..."] | None:
    """The mask as booleans on the model's device. resumes: it is of a part of a run, which may be padding alone.

    Looking at a mask makes a GPU wait, so one that lies there is looked at in evaluation mode only, as token ids are.

    Raises:
        LabError: it hides all tokens of a row, which would then have nothing to attend to.
    """
    if mask is None:
        return None
    real = mask.to(torch.bool)
    if not resumes and real.ndim and not torch.compiler.is_compiling() and not (real.is_cuda and model.training):
        check_seen(real)
    return real.to(model.device)


def check_seen(real: Bool[Tensor, "*axes pos"]) -> None:
    """Raises:
    LabError: all tokens of a row are hidden; the message names the first such row.
    """
    hidden = (~real.any(-1)).nonzero()
    if len(hidden):
        raise LabError(
            f"attention_mask hides all tokens of row {int(hidden[0, -1])} (False or 0 is padding); expected at least "
            "one real token in each row."
        )


def stream_input(resid: Any, d_model: int) -> Float[Tensor, "batch pos d_model"]:
    """Raises:
    LabError: what was given with start_at_layer is no residual stream.
    """
    if not isinstance(resid, Tensor) or resid.ndim != 3 or resid.shape[-1] != d_model:
        what = tuple(resid.shape) if isinstance(resid, Tensor) else type(resid).__name__
        raise LabError(f"start_at_layer was given {what}; expected a residual stream [batch pos {d_model}].")
    return resid


def layers_between(start: int | None, stop: int | None, n_layers: int) -> tuple[int, int]:
    """The first layer to run and the one to stop before; negative numbers count from the end.

    Raises:
        LabError: there are no such layers.
    """
    first, last = start or 0, n_layers if stop is None else stop
    first, last = (n + n_layers if n < 0 else n for n in (first, last))
    if not 0 <= first <= last <= n_layers:
        raise LabError(
            f"start_at_layer={start}, stop_at_layer={stop}; expected 0 <= start <= stop <= {n_layers} (n_layers)."
        )
    return first, last


def check_returned(return_type: str | None, finish: Tensor | None) -> None:
    """Raises:
    LabError: an unknown return_type, or a loss of some positions alone.
    """
    if return_type not in ("logits", "loss", "both", None):
        raise LabError(f"return_type={return_type!r}; expected 'logits', 'loss', 'both' or None.")
    if finish is not None and return_type in ("loss", "both"):
        raise LabError("a loss needs every position; give no finish= with it.")
