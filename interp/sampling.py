"""What the next token is drawn from: pure functions on logits.

    distribution = softmax(top_p(top_k(logits) / temperature))

Top-k keeps the k likeliest tokens (Fan et al. 2018, arXiv:1805.04833), top-p the fewest that together hold the
probability p (Holtzman et al. 2020, arXiv:1904.09751). Temperature 0 is the limit: all of the likeliest token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import LabError

Logits = Float[Tensor, "batch d_vocab"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; by default from the model's own probabilities.

    temperature: 0 takes the likeliest token each time. top_k: only from the k likeliest. top_p: only from the
    likeliest that together hold the probability p.

    Raises:
        LabError: a setting out of range.
    """

    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise LabError(
                f"temperature={self.temperature}; expected a number of at least 0 (0: always the likeliest token)."
            )
        if self.top_k is not None and self.top_k < 1:
            raise LabError(f"top_k={self.top_k}; expected at least 1, or None for the whole vocabulary.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise LabError(f"top_p={self.top_p}; expected a probability above 0 and up to 1, or None.")

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        limits = {"top-k": self.top_k, "top-p": self.top_p}
        told = [f"{name} {limit:g}" for name, limit in limits.items() if limit is not None]
        return ", ".join([f"temperature {self.temperature:g}"] * (self.temperature != 1 or not told) + told)


def next_token(
    logits: Logits,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    source: torch.Generator | None = None,
) -> Int[Tensor, "batch"]:
    """One token per row; at temperature 0 the likeliest (the first of equals), else a draw from `distribution`."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(distribution(logits, temperature, top_k, top_p), 1, generator=source)[:, 0]


def distribution(
    logits: Logits, temperature: float | int = 1.0, top_k: int | None = None, top_p: float | int | None = None
) -> Logits:
    """The probabilities from which a token is drawn, in float32 at least; at temperature 0 one token has them all."""
    wide = logits.float() if logits.itemsize < 4 else logits
    if temperature == 0:
        return torch.zeros_like(wide).scatter(-1, wide.argmax(-1, keepdim=True), 1.0)
    if top_k is not None:
        wide = keep_top_k(wide, top_k)
    # Shifting by the maximum first keeps a tiny temperature from overflowing.
    cooled = (wide - wide.amax(-1, keepdim=True)) / temperature
    if top_p is not None:
        cooled = keep_top_p(cooled, top_p)
    return cooled.softmax(-1)


def keep_top_k(logits: Logits, k: int) -> Logits:
    """All but the k highest of each row set to -inf; of equals at the border, all stay."""
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k, -1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Logits, p: float | int) -> Logits:
    """All but the fewest highest whose probabilities reach p set to -inf; the highest always stays."""
    if p >= 1:
        return logits
    sorted_logits, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    probabilities = sorted_logits.softmax(-1)
    # A token is left out when those before it already reach p.
    out = probabilities.cumsum(-1) - probabilities >= p
    out[:, 0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


def entropy(probabilities: Float[Tensor, "*axes d_vocab"]) -> Float[Tensor, "*axes"]:
    """-sum p log p, in nats; nothing for tokens of probability 0."""
    return torch.special.entr(probabilities).sum(-1)
