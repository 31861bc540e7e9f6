"""Beam search: the likeliest continuations, several at a time (Sutskever et al. 2014, arXiv:1409.3215, §3.2).

At every step each beam of a source is continued with every token, and the likeliest continuations become the new
beams. One that ends, and is among the best `num_beams` continuations when it does, is finished: its score is its log
probability / length^length_penalty (after Wu et al. 2016, arXiv:1609.08144, §7). A source is done when it has
`num_beams` finished ones and its best open beam, scored at its present length, is below all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError

Step = Callable[[Int[Tensor, "row"], Int[Tensor, "row"]], Float[Tensor, "row d_vocab"]]
"""(each row's newest token, the row before that each row continues) -> logits of the token after it."""


@dataclass(frozen=True)
class Beams:
    """Continuations of every source and their scores, the best one first; -inf where there is none yet."""

    tokens: Int[Tensor, "batch beam pos"]
    scores: Float[Tensor, "batch beam"]

    def best(self, n: int, scores: Float[Tensor, "batch beam"]) -> tuple[Beams, Int[Tensor, "batch n"]]:
        """The n that score highest by these scores, and which they were."""
        top = scores.topk(n, -1)
        return Beams(_chosen(self.tokens, top.indices), top.values), top.indices

    def joined(self, other: Beams) -> Beams:
        return Beams(torch.cat([self.tokens, other.tokens], 1), torch.cat([self.scores, other.scores], 1))

    def padded(self, filler: int) -> Beams:
        """One position longer."""
        return replace(self, tokens=F.pad(self.tokens, (0, 1), value=filler))


@torch.no_grad()
def beam_search(
    step: Step,
    start: Int[Tensor, "batch"],
    num_beams: int,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    padding: int,
    length_penalty: float = 1.0,
) -> Int[Tensor, "batch pos"]:
    """The best finished continuation of each source, start token first, filled up with `padding`.

    step: the model; it is called with batch · num_beams rows, a source's beams next to each other. A continuation also
    ends at `max_new_tokens`. length_penalty: above 0 favours long ones.

    Raises:
        LabError: fewer than one beam.
    """
    if num_beams < 1:
        raise LabError(f"num_beams={num_beams}; expected at least 1 (1: always the likeliest token).")
    if max_new_tokens < 1:
        return rearrange(start, "batch -> batch 1")
    batch, stops = len(start), torch.tensor(sorted(stop_tokens), dtype=start.dtype, device=start.device)
    tokens = repeat(start, "batch -> batch beam 1", beam=num_beams)
    finished = Beams(tokens.clone(), torch.full((batch, num_beams), -torch.inf, device=start.device))
    # All beams are the same at first, so only one may be continued.
    running = replace(finished, scores=finished.scores.index_fill(1, torch.tensor([0], device=start.device), 0.0))
    parents = torch.arange(batch * num_beams, device=start.device)
    improvable = torch.ones(batch, 1, dtype=torch.bool, device=start.device)
    keep = num_beams * max(2, 1 + len(stops))  # so many that enough of them go on, whichever end
    for length in range(1, max_new_tokens + 1):
        logits = step(rearrange(running.tokens[..., -1], "batch beam -> (batch beam)"), parents)
        candidates, origin = _continued(running, logits, keep)
        ends = torch.isin(candidates.tokens[..., -1], stops) | (length == max_new_tokens)
        found = replace(candidates, scores=candidates.scores / length**length_penalty)
        finished = _with_finished(finished.padded(padding), found, ends, improvable)
        running, chosen = candidates.best(num_beams, candidates.scores.masked_fill(ends, -torch.inf))
        parents = _rows(origin.gather(1, chosen), num_beams)
        worst = finished.scores[:, -1:]
        improvable = improvable & (running.scores[:, :1] / length**length_penalty > worst)
        if not bool(improvable.any()):
            break
    best = finished.tokens[:, 0]
    return best[:, : _longest(best, stops)]


def _continued(running: Beams, logits: Float[Tensor, "row d_vocab"], keep: int) -> tuple[Beams, Int[Tensor, "batch n"]]:
    """The `keep` likeliest continuations of each source's beams, and which beam each continues."""
    wide = logits.float() if logits.itemsize < 4 else logits
    log_probs = rearrange(wide.log_softmax(-1), "(batch beam) vocab -> batch beam vocab", batch=len(running.scores))
    scores = rearrange(running.scores[..., None] + log_probs, "batch beam vocab -> batch (beam vocab)")
    top = scores.topk(min(keep, scores.shape[-1]), -1)
    origin, token = top.indices // logits.shape[-1], top.indices % logits.shape[-1]
    tokens = torch.cat([_chosen(running.tokens, origin), token[..., None].to(running.tokens.dtype)], -1)
    return Beams(tokens, top.values), origin


def _with_finished(
    finished: Beams, found: Beams, ends: Bool[Tensor, "batch n"], improvable: Bool[Tensor, "batch 1"]
) -> Beams:
    """The best of those finished before and those that end now; only the first `beam` candidates may."""
    num_beams = finished.scores.shape[1]
    counted = ends & improvable & (torch.arange(ends.shape[1], device=ends.device) < num_beams)
    found = replace(found, scores=found.scores.masked_fill(~counted, -torch.inf))
    both = finished.joined(found)
    return both.best(num_beams, both.scores)[0]


def _chosen(tokens: Int[Tensor, "batch beam pos"], index: Int[Tensor, "batch n"]) -> Int[Tensor, "batch n pos"]:
    return tokens.gather(1, repeat(index, "batch n -> batch n pos", pos=tokens.shape[-1]))


def _rows(beams: Int[Tensor, "batch beam"], num_beams: int) -> Int[Tensor, "row"]:
    """The rows of beams among those of all sources."""
    first = num_beams * torch.arange(len(beams), device=beams.device)
    return rearrange(beams + first[:, None], "batch beam -> (batch beam)")


def _longest(tokens: Int[Tensor, "batch pos"], stops: Int[Tensor, "n"]) -> int:
    """Where the longest row ends: after its first stop token, if it has one."""
    ended = torch.isin(tokens[:, 1:], stops)
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 2, tokens.shape[1])
    return int(lengths.max())
