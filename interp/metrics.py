"""Metrics: one number per prompt from the logits, and what of the logits it reads.

A metric is called as `metric(logits, pairs)` and gives one number per prompt. It says what it reads, so that a sweep
computes nothing else: `positions(pairs)` and `tokens(pairs)`, None for all. Every metric but `cross_entropy`
reads one position, the last real token of each prompt, where the answer is predicted. Several right or wrong answers
count together, as each metric says. Probabilities and logarithms are natural, computed in float32 at least.

Any callable on logits is a metric too: `fn(logits)` or `fn(logits, pairs)`, one number per prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import LabError, choose
from interp.prompts import PromptPairs

Read = Float[Tensor, "batch n_read"]  # the logits that a metric reads, position by position
Score = Float[Tensor, "batch"]


@dataclass(frozen=True)
class Metric:
    """A named metric that reads the last position.

    name, unit: for labels. score: from the logits that it reads and the pairs to one number per prompt. tokens: which
    vocabulary entries those are, [batch n] filled up with -1, or None for all of them in order.
    stationary: its gradient is zero at the run it compares with, so gradient methods must refuse it.
    """

    name: str
    unit: str
    score: Callable[[Read, PromptPairs], Score]
    tokens: Callable[[PromptPairs], Int[Tensor, "batch n"] | None]
    stationary: bool = False

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Score:
        last, tokens = at_last(logits, pairs), self.tokens(pairs)
        return self.score(last if tokens is None else last.gather(-1, tokens.to(last.device).clamp(min=0)), pairs)

    def positions(self, pairs: PromptPairs) -> Int[Tensor, "batch n"]:
        """The positions that it reads."""
        return rearrange(pairs.answered, "batch -> batch 1")

    def take(self, prompts: Int[Tensor, "batch"]) -> Metric:
        """The metric for some of the prompts; it is the same for all."""
        return self


@dataclass(frozen=True)
class CustomMetric:
    """A plain callable on the full logits; `takes_pairs` tells its signature."""

    name: str
    fn: Callable[..., Any]
    takes_pairs: bool
    unit: str = ""
    stationary: bool = False

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Score:
        """Raises:
        LabError: the callable did not give one number per prompt.
        """
        values = self.fn(logits, pairs) if self.takes_pairs else self.fn(logits)
        if not isinstance(values, Tensor) or tuple(values.shape) != (len(pairs),):
            got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise LabError(
                f"metric {self.name!r} gave {got}; expected one number per prompt, a tensor of shape [{len(pairs)}]. "
                "Do not average over the batch: the sweep does."
            )
        return values

    def positions(self, pairs: PromptPairs) -> None:
        """It may read every position."""

    def tokens(self, pairs: PromptPairs) -> None:
        """It may read the whole vocabulary."""

    def take(self, prompts: Int[Tensor, "batch"]) -> CustomMetric:
        """The metric for some of the prompts; it is the same for all."""
        return self


@dataclass(frozen=True)
class Divergence:
    """KL(reference || run) at the last position, in nats. reference: log-probabilities, a row per prompt."""

    reference: Read
    name: str = "kl"
    unit: str = "nats"
    stationary: bool = True

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Score:
        return self.score(at_last(logits, pairs), pairs)

    def score(self, read: Read, pairs: PromptPairs) -> Score:
        """From the last position's logits."""
        target = self.reference.to(read.device)
        return (target.exp() * (target - read.log_softmax(-1))).sum(-1)

    def positions(self, pairs: PromptPairs) -> Int[Tensor, "batch n"]:
        """The positions that it reads."""
        return rearrange(pairs.answered, "batch -> batch 1")

    def tokens(self, pairs: PromptPairs) -> None:
        """It reads the whole vocabulary."""

    def take(self, prompts: Int[Tensor, "batch"]) -> Divergence:
        """The metric for some of the prompts, whose references it keeps."""
        return Divergence(self.reference[prompts.to(self.reference.device)])


AnyMetric = Metric | CustomMetric | Divergence


def at_last(logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Float[Tensor, "batch d_vocab"]:
    """The logits where each prompt's answer is read, by default at its last real token, in float32 at least."""
    last = logits[torch.arange(len(pairs), device=logits.device), pairs.answered.to(logits.device)]
    return last.float() if last.itemsize < 4 else last


def _mean(values: Read, ids: Int[Tensor, "batch n"]) -> Score:
    given = ids.to(values.device) >= 0
    return values.masked_fill(~given, 0.0).sum(-1) / given.sum(-1)


def _difference(read: Read, pairs: PromptPairs) -> Score:
    right, wrong = read.split([pairs.right.shape[1], pairs.wrong.shape[1]], -1)
    return _mean(right, pairs.right) - _mean(wrong, pairs.wrong)


def _answers(
    values: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, "batch n"], filler: float
) -> Float[Tensor, "batch n"]:
    """The values of the answers, `filler` where a short row is filled up."""
    ids = ids.to(values.device)
    return values.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, filler)


def _prob(logits: Read, ids: Int[Tensor, "batch n"]) -> Score:
    return _answers(logits.softmax(-1), ids, 0.0).sum(-1)


def _log_prob(logits: Read, pairs: PromptPairs) -> Score:
    return _answers(logits.log_softmax(-1), pairs.right, -torch.inf).logsumexp(-1)


def _rank(logits: Read, pairs: PromptPairs) -> Score:
    best = _answers(logits, pairs.right, -torch.inf).amax(-1, keepdim=True)
    return (logits > best).sum(-1).to(logits.dtype)


def _both(pairs: PromptPairs) -> Int[Tensor, "batch n"]:
    return torch.cat([pairs.right, pairs.wrong], -1)


def _everything(pairs: PromptPairs) -> None:
    return None


logit_diff = Metric("logit_diff", "logit difference", _difference, _both)
"""Mean logit of the right answers minus mean logit of the wrong ones."""

logit = Metric("logit", "logit", lambda x, p: _mean(x, p.right), lambda p: p.right)
"""Mean logit of the right answers."""

prob = Metric("prob", "probability", lambda x, p: _prob(x, p.right), _everything)
"""Probability of the right answers, added up."""

prob_diff = Metric(
    "prob_diff", "probability difference", lambda x, p: _prob(x, p.right) - _prob(x, p.wrong), _everything
)
"""Probability of the right answers minus that of the wrong ones (Hanna et al. 2023, arXiv:2305.00586)."""

log_prob = Metric("log_prob", "log probability (nats)", _log_prob, _everything)
"""Logarithm of the right answers' total probability."""

rank = Metric("rank", "rank", _rank, _everything)
"""How many tokens have a higher logit than the best right answer; 0 is the top."""


def _next_token_loss(logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Score:
    log_probs = (logits.float() if logits.itemsize < 4 else logits)[:, :-1].log_softmax(-1)
    targets, mask = pairs.clean.to(logits.device), pairs.mask.to(logits.device)
    losses = -log_probs.gather(-1, targets[:, 1:, None])[..., 0]
    counted = mask[:, 1:] & mask[:, :-1]
    return (losses * counted).sum(-1) / counted.sum(-1)


cross_entropy = CustomMetric("cross_entropy", _next_token_loss, True, "nats per token")
"""Mean cross-entropy of the prompt's own tokens, each given those before it. Reads every position."""


def kl(reference: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Divergence:
    """Kullback-Leibler divergence, in nats, of a run from a reference run's logits at the last position.

    Zero, with zero gradient, at the reference itself. Row i of `reference` belongs to prompt i of `pairs`.
    """
    return Divergence(at_last(reference, pairs).log_softmax(-1))


NAMED = {m.name: m for m in (logit_diff, logit, prob, prob_diff, log_prob, rank)} | {cross_entropy.name: cross_entropy}


def get(metric: str | AnyMetric | Callable[..., Any]) -> AnyMetric:
    """The metric of that name, or the one given; a plain callable becomes a metric.

    Raises:
        LabError: an unknown name, with the near misses; "kl", which needs a run to compare with.
    """
    if metric == "kl":
        raise LabError('"kl" compares with a run: give metrics.kl(logits, pairs), with that run\'s logits.')
    if isinstance(metric, str):
        return NAMED[choose("metric", metric, [*NAMED, "kl"])]
    if isinstance(metric, Metric | CustomMetric | Divergence):
        return metric
    if not callable(metric):
        raise LabError(f"a metric is a name or a callable on logits; given {type(metric).__name__}.")
    parameters = inspect.signature(metric).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
    return CustomMetric(getattr(metric, "__name__", "custom"), metric, takes_pairs=len(required) > 1)
