"""Copying scores: of the tokens that a head may attend to, how many its OV circuit puts first, or last.

    copying(head)     = share of tokens t that are among the k highest entries of  h_t W_V W_O W_U
    suppression(head) = the same of the k lowest

with h_t the stream of token t, alone after the start token, behind the first block; for heads of the first block, its
embedding; norms are folded as in `analyses.weights`. Wang et al. 2022 (arXiv:2211.00593, §3.1, appendix F), where name
movers score above 0.95 of the names; suppression is their negative copy score, high in copy-suppression heads
(McDougall et al. 2023, arXiv:2310.04625). Biases, the same for all tokens, are left out.

Cost: one forward of n short rows through the first block, and for each head n · d_head · d_vocab multiplications, a
chunk of tokens at a time.
It does not show: whether the head attends to such tokens, or whether its output reaches the logits unchanged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from analyses.stream_weights import read
from analyses.weights import layer_ov
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import SHARE
from interp.tasks.repetition import ordinary_tokens, start_tokens

ENDS = ("copying", "suppression")
CHUNK = 2**24
"""Numbers of a table of logits that are held at once."""


@dataclass(frozen=True, eq=False, repr=False)
class CopyingScores(Result):
    """Share of tokens that a head's OV circuit puts among its k highest ("copying") or k lowest ("suppression").

    tokens: the ids that were tried. k: how many count as high or low.
    """

    title = "Copying scores"
    shows = "how many of the tokens a head may attend to it raises, or lowers, more than nearly all others"
    caveat = "Whether a head attends to such tokens in a run is not asked."
    unit = "share of tokens"
    scale = SHARE

    values: Float[np.ndarray, "end layer head"]
    tokens: Int[np.ndarray, "token"]
    k: int

    @property
    def copying(self) -> Float[np.ndarray, "layer head"]:
        return self.values[0]

    @property
    def suppression(self) -> Float[np.ndarray, "layer head"]:
        return self.values[1]


@torch.no_grad()
def copying_scores(
    model: HookedModel | Any, tokens: Int[Tensor, "token"] | None = None, n: int = 512, k: int = 5, seed: int = 0
) -> CopyingScores:
    """Copying and suppression scores: `.copying[layer, head]`, `.suppression[layer, head]`.

    tokens: ids to try, such as those of the names in a task; by default all ordinary tokens, or `n` of them drawn with
    `seed` where there are more. k: how many places at the top, or at the bottom, count; at chance a score is
    k / d_vocab.

    Raises:
        LabError: no token, one that is no input and output of the model, a k that is not from 1 to half of the
            outputs, or a model in which the weights do not say what reaches the stream (`interp.shares`).
    """
    unembed = read(model, Site("unembed.out"))
    ids, drawn = (_drawn(model, n, seed), seed) if tokens is None else (tokens, None)
    ids = ids.to(model.device)
    _check(model, ids, k, unembed.shape[1])
    streams = _streams(model, ids)
    values = []
    for layer in range(model.cfg.n_layers):
        stream = streams[min(layer, 1)].to(unembed)  # the norm's scale would change no order
        ov = layer_ov(model, layer)
        outputs = einsum(stream, ov.A, "token model, head model d -> head token d")
        logits = ov.B @ unembed
        values.append([_shares(z, to_logits, ids, k) for z, to_logits in zip(outputs, logits, strict=True)])
    return CopyingScores(
        rearrange(np.array(values), "layer head end -> end layer head"),
        to_numpy(ids),
        k,
        labels={"end": list(ENDS)},
        provenance=provenance.of(model, seed=drawn, settings={"k": k, "n": len(ids)}),
    )


def _drawn(model: HookedModel | Any, n: int, seed: int) -> Int[Tensor, "token"]:
    outputs = getattr(model.cfg, "d_vocab_out", None) or model.cfg.d_vocab
    known = [token for token in ordinary_tokens(model) if token < outputs]
    chosen = known if len(known) <= n else sorted(random.Random(f"copying {seed}").sample(known, n))
    return torch.tensor(chosen, dtype=torch.long)


def _check(model: HookedModel | Any, ids: Int[Tensor, "token"], k: int, outputs: int) -> None:
    highest = min(model.cfg.d_vocab, outputs) - 1
    if ids.ndim != 1 or not ids.numel() or int(ids.min()) < 0 or int(ids.max()) > highest:
        raise LabError(f"tokens of shape {list(ids.shape)}; expected a row of at least one id from 0 to {highest}.")
    if not 1 <= k <= max(1, outputs // 2):
        raise LabError(f"k={k}; expected a number of places from 1 to {max(1, outputs // 2)}, half of the outputs.")


def _streams(model: HookedModel | Any, ids: Int[Tensor, "token"]) -> list[Float[Tensor, "token d_model"]]:
    """Each token's stream at the input of the first and of the second block, alone after the start token."""
    start = torch.tensor(start_tokens(model), dtype=ids.dtype, device=ids.device)
    rows = torch.cat([start.expand(len(ids), -1), ids[:, None]], 1)
    names = [Site("resid_pre", 0).hook_name, Site("resid_post", 0).hook_name]
    _, cache = model.run_with_cache(rows, names_filter=names, stop_at_layer=1)
    return [cache[name][:, -1] for name in names]


def _shares(
    z: Float[Tensor, "token d_head"], to_logits: Float[Tensor, "d_head d_vocab"], ids: Int[Tensor, "token"], k: int
) -> tuple[float, float]:
    """The shares of tokens among their own k highest and k lowest logits; equal logits count as further out."""
    above, below = [], []
    for some, own in zip(*(rows.split(max(1, CHUNK // to_logits.shape[1])) for rows in (z, ids)), strict=True):
        logits = some @ to_logits
        mine = logits.gather(1, own[:, None])
        above.append((logits >= mine).sum(1) - 1)
        below.append((logits <= mine).sum(1) - 1)
    high, low = (float((torch.cat(counts) < k).double().mean()) for counts in (above, below))
    return high, low
