"""Preference optimisation: a model learns which of two answers is liked, without a reward model in between.

Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): the policy is its own reward model,

    reward(x, y) = β (log π(y | x) - log π_ref(y | x))
    loss         = -log σ(reward(x, chosen) - reward(x, rejected))                                   (eq. 7)

where π_ref is the model as it was before, and log π(y | x) sums over the tokens of the answer, its end included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.batches import UNCOUNTED, Batch, shuffled
from models.examples import Preference
from models.fine_tuning import Turn, answer, as_batch, check_writes, turn

Pair = tuple[Turn, Turn]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Preferences:
    """Batches of pairs: the chosen answers in the first half of the rows, the rejected ones, in their order, after."""

    pairs: tuple[Pair, ...]
    batch_size: int = 32
    seed: int = 0

    def batch(self, step: int) -> Batch:
        """The pairs of one step."""
        return paired([self.pairs[i] for i in shuffled(len(self.pairs), self.batch_size, step, self.seed)])


@dataclass(frozen=True)
class DPO:
    """The loss of a model on batches of `Preferences`.

    reference: a `frozen` copy of the model, on its device. beta: how dear it is to part from it.
    """

    reference: nn.Module
    beta: float = 0.1

    def __call__(self, model: Callable[..., Tensor], batch: Batch) -> Float[Tensor, ""]:
        return dpo_loss(self.margins(model, batch))

    def margins(self, model: Callable[..., Tensor], batch: Batch) -> Float[Tensor, "pair"]:
        """How much higher the reward of the chosen answer is than that of the rejected one, for each pair."""
        with torch.no_grad():
            before = log_probs(self.reference, batch)
        rewards = self.beta * (log_probs(model, batch) - before)
        chosen, rejected = rearrange(rewards, "(side pair) -> side pair", side=2)
        return chosen - rejected


@dataclass(frozen=True)
class PreferenceScores:
    """Measures a policy on pairs that it is not trained on.

    held_out_loss, margin: means of the loss and of the rewards' difference. accuracy: share of pairs whose chosen
    answer has the higher reward (of equals half). chosen: mean probability of the chosen answer among the two. kl:
    KL(π || π_ref) of whole answers, in nats, over one answer that the policy gives to each prompt.
    """

    pairs: tuple[Pair, ...]
    loss: DPO
    batch_size: int = 32
    seed: int = 0

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        margins, chosen = [], []
        for first in range(0, len(self.pairs), self.batch_size):
            batch = paired(self.pairs[first : first + self.batch_size]).to(model.device)
            margins.append(self.loss.margins(model, batch))
            ours = rearrange(log_probs(model, batch), "(side pair) -> side pair", side=2)
            chosen.append(ours.softmax(0)[0])
        margin = torch.cat(margins)
        prompts = list(dict.fromkeys(better.prompt for better, _ in self.pairs))
        longest = max(len(each.answer) for pair in self.pairs for each in pair)
        return {
            "held_out_loss": float(dpo_loss(margin)),
            "margin": float(margin.mean()),
            "accuracy": float((margin > 0).float().mean() + 0.5 * (margin == 0).float().mean()),
            "chosen": float(torch.cat(chosen).mean()),
            "kl": answer_kl(model, self.loss.reference, prompts, longest, self.seed, self.batch_size),
        }


def dpo_loss(margins: Float[Tensor, "pair"]) -> Float[Tensor, ""]:
    """-log σ of the difference of the rewards, averaged over pairs (arXiv:2305.18290, eq. 7)."""
    return -F.logsigmoid(margins).mean()


def log_probs(model: Callable[..., Tensor], batch: Batch) -> Float[Tensor, "batch"]:
    """The log-probability of each row's targets, summed over those that count; in float32 at least."""
    targets = batch.with_targets().targets
    assert targets is not None
    logits = rearrange(_wide(batch.logits(model)), "batch pos vocab -> batch vocab pos")
    return -F.cross_entropy(logits, targets, ignore_index=UNCOUNTED, reduction="none").sum(-1)


@torch.no_grad()
def answer_kl(
    model: Any, reference: Any, prompts: Sequence[tuple[int, ...]], longest: int, seed: int = 0, batch_size: int = 32
) -> float:
    """KL(π || π_ref) of the answers to some prompts, in nats an answer.

    An answer is drawn from the policy for each prompt; along it the KL of the next token is exact and summed, which
    is unbiased and varies less than log-ratios of the drawn tokens.
    """
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for first in range(0, len(prompts), batch_size):
        some = prompts[first : first + batch_size]
        drawn = answer(model, some, longest, temperature=1.0, seed=seed + first, batch_size=batch_size)
        batch = as_batch([Turn(*each) for each in zip(some, drawn, strict=True)]).to(model.device)
        ours, theirs = (_wide(batch.logits(each)).log_softmax(-1) for each in (model, reference))
        kl = (ours.exp() * (ours - theirs)).sum(-1)
        total += kl[batch.targets != UNCOUNTED].sum()
    return float(total) / len(prompts)


def pairs(model: Any, preferences: Sequence[Preference]) -> tuple[Pair, ...]:
    """The preferences as token ids of a model.

    Raises:
        LabError: as `models.fine_tuning.turns`.
    """
    check_writes(model)
    return tuple(
        (turn(model, each.prompt, each.chosen), turn(model, each.prompt, each.rejected)) for each in preferences
    )


def paired(pairs: Sequence[Pair]) -> Batch:
    """The chosen answers, then the rejected ones, as rows of one batch."""
    return as_batch([*(chosen for chosen, _ in pairs), *(rejected for _, rejected in pairs)])


def frozen(model: M) -> M:
    """A copy that no training changes."""
    return deepcopy(model).requires_grad_(False).eval()


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.itemsize < 4 else logits
