"""Metrics: one number per prompt from the logits, and what of the logits it reads.

A metric is called as `metric(logits, pairs)` and gives one number per prompt. Every metric but `cross_entropy`
reads one position, the last real token of each prompt, where the answer is predicted; `tokens(pairs)` says
which vocabulary entries it reads there (None: all of them). Several right or wrong answers count together, as
each metric says. Probabilities and logarithms are natural, computed in float32 at least.

Any callable on logits is a metric too: `fn(logits)` or `fn(logits, pairs)`, one number per prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError, choose
from interp.prompts import PromptPairs

LastLogits = Float[Tensor, "batch d_vocab"]
Score = Float[Tensor, "batch"]


@dataclass(frozen=True)
class Metric:
    """A named metric that reads the last position.

    name, unit: for labels. score: from the logits at the last position and the pairs to one number per prompt.
    tokens: the vocabulary entries that the score reads, [batch n] filled up with -1, or None for all.
    stationary: its gradient is zero at the run it compares with, so gradient methods must refuse it.
    """

    name: str
    unit: str
    score: Callable[[LastLogits, PromptPairs], Score]
    tokens: Callable[[PromptPairs], Int[Tensor, "batch n"] | None]
    stationary: bool = False

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Score:
        return self.score(at_last(logits, pairs), pairs)

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

    def take(self, prompts: Int[Tensor, "batch"]) -> CustomMetric:
        """The metric for some of the prompts; it is the same for all."""
        return self


@dataclass(frozen=True)
class Divergence:
    """KL(reference || run) at the last position, in nats. reference: log-probabilities, a row per prompt."""

    reference: LastLogits
    name: str = "kl"
    unit: str = "nats"
    stationary: bool = True

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> Score:
        target = self.reference.to(logits.device)
        return (target.exp() * (target - at_last(logits, pairs).log_softmax(-1))).sum(-1)

    def take(self, prompts: Int[Tensor, "batch"]) -> Divergence:
        """The metric for some of the prompts, whose references it keeps."""
        return Divergence(self.reference[prompts.to(self.reference.device)])


AnyMetric = Metric | CustomMetric | Divergence


def at_last(logits: Float[Tensor, "batch pos d_vocab"], pairs: PromptPairs) -> LastLogits:
    """The logits at each prompt's last real token, in float32 at least."""
    last = logits[torch.arange(len(pairs), device=logits.device), pairs.last.to(logits.device)]
    return last.float() if last.itemsize < 4 else last


def _answers(
    values: LastLogits, ids: Int[Tensor, "batch n"]
) -> tuple[Float[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
    """The values of the answers, 0 where a short row is filled up, and which are answers."""
    ids = ids.to(values.device)
    given = ids >= 0
    return values.gather(-1, ids.clamp(min=0)).masked_fill(~given, 0.0), given


def _mean(values: LastLogits, ids: Int[Tensor, "batch n"]) -> Score:
    picked, given = _answers(values, ids)
    return picked.sum(-1) / given.sum(-1)


def _sum(values: LastLogits, ids: Int[Tensor, "batch n"]) -> Score:
    return _answers(values, ids)[0].sum(-1)


def _log_prob(logits: LastLogits, pairs: PromptPairs) -> Score:
    values = logits.log_softmax(-1)
    ids = pairs.right.to(values.device)
    return values.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).logsumexp(-1)


def _rank(logits: LastLogits, pairs: PromptPairs) -> Score:
    picked, given = _answers(logits, pairs.right)
    best = picked.masked_fill(~given, -torch.inf).amax(-1, keepdim=True)
    return (logits > best).sum(-1).to(logits.dtype)


def _both(pairs: PromptPairs) -> Int[Tensor, "batch n"]:
    return torch.cat([pairs.right, pairs.wrong], -1)


def _everything(pairs: PromptPairs) -> None:
    return None


logit_diff = Metric("logit_diff", "logit difference", lambda x, p: _mean(x, p.right) - _mean(x, p.wrong), _both)
"""Mean logit of the right answers minus mean logit of the wrong ones."""

logit = Metric("logit", "logit", lambda x, p: _mean(x, p.right), lambda p: p.right)
"""Mean logit of the right answers."""

prob = Metric("prob", "probability", lambda x, p: _sum(x.softmax(-1), p.right), _everything)
"""Probability of the right answers, added up."""

prob_diff = Metric(
    "prob_diff",
    "probability difference",
    lambda x, p: _sum(x.softmax(-1), p.right) - _sum(x.softmax(-1), p.wrong),
    _everything,
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
