"""What a model loses when it sees only the last tokens of a text: the worth of context, and a way past its window.

    loss(i, w) = -log p(token i | the last w tokens before it)        in nats

A model has positions for n_ctx tokens and refuses more. A longer text is read through a window that slides along with
it: only the last w <= n_ctx tokens are kept, counted from position 0 anew. `sinks` keeps the first tokens of the text
in front of every window, as many models lean on them whatever they are (attention sinks: Xiao et al. 2023,
arXiv:2309.17453).

Cost: for each window w and each text of n tokens n - w runs of w tokens.
It does not show: what a model could do that were trained on longer texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from analyses.losses import mean_and_error
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.prompt_text import prompt_ids
from interp.results import Result, to_numpy

if TYPE_CHECKING:
    import plotly.graph_objects as go

AT_ONCE = 4096
"""Tokens in one run."""


@dataclass(frozen=True, eq=False, repr=False)
class ContextLosses(Result):
    """The mean loss on the token at each position for each window, in nats, with its standard error over texts.

    The axis `window` is labelled with how many tokens before it were kept, `pos` with the position in the text; as far
    as the window reaches back to the start, everything was. error: NaN where there is one text.
    """

    title = "Loss by context"
    shows = "how well each token is predicted when only the last tokens before it are kept"
    caveat = "A window starts its positions anew, which a model that was trained on whole texts alone may mind."
    unit = "nats"

    values: Float[np.ndarray, "window pos"]
    error: Float[np.ndarray, "window pos"]
    sinks: int

    def mean_from(self, position: int = 1) -> Float[np.ndarray, "window"]:
        """The mean loss of each window on the tokens from `position` on.

        Raises:
            LabError: the texts end before it.
        """
        late = np.asarray(self.labels["pos"]) >= position
        if not late.any():
            raise LabError(f"position {position}; the texts end at {self.labels['pos'][-1]}.")
        return self.values[:, late].mean(-1)

    def plot(self) -> go.Figure:
        """A line over positions for each window."""
        from interp import pictures
        from interp.pictures import Axis

        positions = self.labels["pos"]
        series = {f"last {window}": row for window, row in zip(self.labels["window"], self.values, strict=True)}
        return pictures.lines(series, Axis("pos", len(positions), positions), title=self.title, unit=self.unit)


@torch.inference_mode()
def context_losses(
    model: HookedModel | Any,
    text: str | Int[Tensor, "pos"] | Int[Tensor, "batch pos"],
    windows: Sequence[int] | None = None,
    sinks: int = 0,
) -> ContextLosses:
    """The loss at each position when only the last tokens are kept: `.values[window, pos]`, `.mean_from(pos)`.

    text: one text, or token ids: a row, or rows of one length. It may be longer than the context window. windows: how
    many tokens to keep; by default the powers of two that fit, and the most that does. sinks: how many tokens from the
    start of the text stay in front of every window.

    Raises:
        LabError: fewer than two tokens, ids that the model does not have or never predicts, windows that are empty or
            do not fit, a model that does not predict the next token.
    """
    check_reads_onward(model)
    rows = torch.tensor([prompt_ids(model, text)]) if isinstance(text, str) else text
    rows = (rows[None] if rows.ndim == 1 else rows).to(model.device)
    most = model.cfg.n_ctx - sinks
    kept = [2**i for i in range(most.bit_length()) if 2**i < most] + [most] if windows is None else list(windows)
    _check(model, rows, kept, sinks)
    losses = np.stack([to_numpy(_losses(model, rows, window, sinks)) for window in kept])
    mean, error = mean_and_error(rearrange(losses, "window batch pos -> window pos batch"))
    return ContextLosses(
        mean,
        error,
        sinks,
        labels={"window": kept, "pos": list(range(1, rows.shape[1]))},
        provenance=provenance.of(model, prompts=rows, metric="cross_entropy", settings={"sinks": sinks}),
    )


def check_reads_onward(model: HookedModel | Any) -> None:
    """Raises:
    LabError: the model does not predict each token from those before it.
    """
    direction = getattr(model.cfg, "attention_dir", None)
    if direction != "causal":
        why = f"its attention is {direction}" if direction else f"{type(model).__name__} reads sources"
        raise LabError(
            f"the model {model.cfg.model_name!r} does not predict each token from those before it: {why}.  "
            "Try a GPT, or of an encoder-decoder model.decoder_given(source)."
        )


def _losses(
    model: HookedModel | Any, rows: Int[Tensor, "batch pos"], window: int, sinks: int
) -> Float[Tensor, "batch later_pos"]:
    """The loss on every token but the first."""
    whole = min(sinks + window, rows.shape[1] - 1)  # up to here everything that came before is kept
    early = [_surprise(model(part[:, :whole]), part[:, 1 : whole + 1]) for part in rows.split(_at_once(whole))]
    if whole == rows.shape[1] - 1:
        return torch.cat(early)
    recent = rows[:, sinks + 1 : -1].unfold(1, window, 1)
    first = repeat(rows[:, :sinks], "batch sink -> batch late sink", late=recent.shape[1])
    kept = rearrange(torch.cat([first, recent], -1), "batch late seen -> (batch late) seen")
    targets = rearrange(rows[:, whole + 1 :], "batch late -> (batch late) 1")
    parts = zip(kept.split(_at_once(whole)), targets.split(_at_once(whole)), strict=True)
    late = torch.cat([_surprise(model(part)[:, -1:], target) for part, target in parts])
    return torch.cat([torch.cat(early), rearrange(late, "(batch late) 1 -> batch late", batch=len(rows))], 1)


def _surprise(
    logits: Float[Tensor, "batch pos d_vocab"], targets: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """-log p of the targets, in float32 at least."""
    wide = logits.float() if logits.itemsize < 4 else logits
    return cross_entropy(rearrange(wide, "batch pos d_vocab -> batch d_vocab pos"), targets, reduction="none")


def _at_once(length: int) -> int:
    """How many rows of this length make one run."""
    return max(1, AT_ONCE // length)


def _check(model: HookedModel | Any, rows: Int[Tensor, "batch pos"], windows: Sequence[int], sinks: int) -> None:
    cfg = model.cfg
    if rows.shape[0] < 1 or rows.shape[1] < 2:
        raise LabError(f"token ids of shape {list(rows.shape)}; expected at least one text of two tokens or more.")
    known = min(cfg.d_vocab, model.W_U.shape[-1])
    if int(rows.min()) < 0 or int(rows.max()) >= known:
        raise LabError(f"token ids run from {int(rows.min())} to {int(rows.max())}; expected 0 to {known - 1}.")
    if sinks < 0 or not windows or min(windows) < 1 or max(windows) + sinks > cfg.n_ctx:
        raise LabError(
            f"windows of {list(windows)} tokens behind {sinks} sinks; expected at least one window, of at least one "
            f"token, and with the sinks no more than fit into the context window of {cfg.n_ctx}."
        )
