"""Rotary positions for contexts longer than a model was first trained on: how the frequencies are changed.

linear   every frequency divided by `factor` (Chen et al. 2023, arXiv:2306.15595)
llama3   low frequencies divided, high ones kept, those between blended (Llama 3.1, arXiv:2407.21783)
yarn     the same by the number of turns within the first context, and the rotated vectors lengthened
         (Peng et al. 2023, arXiv:2309.00071)
longrope every frequency divided by a factor of its own, and the rotated vectors lengthened (Ding et al. 2024,
         arXiv:2402.13753). Its checkpoints have two sets of factors, the second for inputs longer than the first
         context. There the same token at the same place turns otherwise as soon as a longer prompt is in the batch, so
         that neither caches nor padding could be trusted: the lab runs the first set, within the first context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import LabError, choose

KINDS = ("linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RotaryScaling:
    """kind: see the module. factor: how much longer the context is. original_n_ctx: the first context (not linear).

    low_freq_factor, high_freq_factor: the blend's ends, in wavelengths per first context (llama3). beta_fast,
    beta_slow: the same in turns (yarn). frequency_factors: what each frequency is divided by (longrope).
    attention_factor: of the rotated vectors; None stands for 0.1 ln(factor) + 1 with yarn,
    sqrt(1 + ln(factor) / ln(original_n_ctx)) with longrope, and 1 else, also where factor is at most 1.

    Raises:
        LabError: an unknown kind, or numbers that make no sense.
    """

    kind: str
    factor: float
    original_n_ctx: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    frequency_factors: Sequence[float | int] | None = None

    def __post_init__(self) -> None:
        choose("rotary scaling", self.kind, KINDS)
        if self.frequency_factors is not None:  # JSON has no tuples
            object.__setattr__(self, "frequency_factors", tuple(float(each) for each in self.frequency_factors))
        if self.factor <= 0 or (self.kind != "linear" and self.original_n_ctx < 2):
            raise LabError(
                f"rotary scaling {self.kind!r} with factor={self.factor} and original_n_ctx={self.original_n_ctx}; "
                "expected positive numbers."
            )
        if self.kind == "longrope" and not (self.frequency_factors and min(self.frequency_factors) > 0):
            raise LabError(
                f"rotary scaling 'longrope' with frequency_factors={self.frequency_factors}; "
                "expected a positive number for each frequency."
            )

    @property
    def length(self) -> float:
        """What cosines and sines are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        if self.kind == "longrope":
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_n_ctx))
        return 0.1 * math.log(self.factor) + 1.0 if self.kind == "yarn" else 1.0

    def scaled(self, frequencies: Float[Tensor, "half"], base: float) -> Float[Tensor, "half"]:
        """The changed frequencies, in radians a position. base: of the unchanged ones."""
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "longrope":
            return frequencies / frequencies.new_tensor(self.frequency_factors)
        kept = self._kept_llama3(frequencies) if self.kind == "llama3" else self._kept_yarn(frequencies, base)
        return frequencies / self.factor * (1 - kept) + frequencies * kept

    def _kept_llama3(self, frequencies: Float[Tensor, "half"]) -> Float[Tensor, "half"]:
        """The share of each frequency that is kept: 1 for the high ones, 0 for the low ones."""
        turns = self.original_n_ctx * frequencies / (2 * math.pi)
        return ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)

    def _kept_yarn(self, frequencies: Float[Tensor, "half"], base: float) -> Float[Tensor, "half"]:
        """The same along the index of the frequency, between those with beta_fast and beta_slow turns."""
        half = len(frequencies)

        def index(turns: float) -> float:
            return half * math.log(self.original_n_ctx / (turns * 2 * math.pi)) / math.log(base)

        first = max(math.floor(index(self.beta_fast)), 0)
        last = min(math.ceil(index(self.beta_slow)), 2 * half - 1)
        places = torch.arange(half, dtype=frequencies.dtype, device=frequencies.device)
        return 1 - ((places - first) / max(last - first, 0.001)).clamp(0, 1)
