"""Models of several sizes, each trained on several amounts of one text: the losses that a scaling law is fitted to.

A run has its own learning-rate schedule that ends with it: the loss on the way of a longer run would be too high
(Hoffmann et al. 2022, arXiv:2203.15556, §3.1). Widths share depth, window, batch and data; the learning rate falls as
1 / d_model and weights are drawn with a spread of 1 / sqrt(d_model), so that all are trained about equally well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import nn

from interp.errors import LabError
from interp.files import read_text
from models.batches import Windows
from models.config import TransformerConfig
from models.gpt import GPT
from models.tokenizers import Tokenizer, characters_of
from models.training import TrainingConfig, train
from models.zoo.plain_text import HeldOutLoss

HELD_OUT = 0.1
MEASURED = 512
"""Windows of the held-out end that the loss is measured on."""


@dataclass(frozen=True)
class Run:
    """One trained model. parameters: without embeddings. tokens: that it was trained on. loss: held out, in nats."""

    d_model: int
    parameters: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class ScalingStudy:
    """What the runs share, and what they vary.

    file: a text in UTF-8, read character by character. widths: d_model. steps: of training, each of `batch_size`
    windows of `n_ctx` characters.

    Raises:
        LabError: widths that heads do not divide.
    """

    file: str | os.PathLike[str]
    widths: tuple[int, ...] = (16, 24, 32, 48, 64, 96)
    steps: tuple[int, ...] = (64, 128, 256, 512)
    n_layers: int = 2
    head_size: int = 8
    n_ctx: int = 64
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [width for width in self.widths if width < 1 or width % self.head_size]
        if wrong:
            raise LabError(f"widths {wrong}; expected multiples of head_size={self.head_size}.")

    def runs(self, device: torch.device | str | None = None, progress: bool = False) -> Iterator[Run]:
        """Every width with every number of steps, each as it is done.

        Raises:
            LabError: the text cannot be read, or is too short for a window.
        """
        for width, steps in product(self.widths, self.steps):
            yield self.run(width, steps, device, progress)

    def run(self, d_model: int, steps: int, device: torch.device | str | None = None, progress: bool = False) -> Run:
        """Train one model and measure it.

        Raises:
            LabError: as `runs`.
        """
        windows, measure = self._data
        cfg = TransformerConfig(
            n_layers=self.n_layers,
            n_heads=d_model // self.head_size,
            d_model=d_model,
            d_vocab=len(self._tokenizer),
            n_ctx=self.n_ctx,
            tie_embeddings=True,
            init_range=d_model**-0.5,
            default_prepend_bos=False,
            seed=self.seed,
            model_name=f"width-{d_model}",
        )
        model = GPT(cfg, tokenizer=self._tokenizer, device=device)
        settings = TrainingConfig(steps, lr=0.2 / d_model, warmup_steps=steps // 10, betas=(0.9, 0.98), log_every=0)
        train(model, windows, settings, progress=progress)
        return Run(d_model, parameters_of(model), steps * self.batch_size * self.n_ctx, measure(model)["held_out_loss"])

    @cached_property
    def _data(self) -> tuple[Windows, HeldOutLoss]:
        """The beginning of the text to train on, and its end to measure with."""
        ids = torch.tensor(self._tokenizer.encode(self._text))
        cut = len(ids) - int(HELD_OUT * len(ids))
        if len(ids) - cut <= self.n_ctx:
            raise LabError(
                f"{str(self.file)!r} has {len(ids)} characters; expected at least {10 * (self.n_ctx + 2)}, so that a "
                f"tenth of them holds a window of n_ctx={self.n_ctx}."
            )
        rows = ids[cut:].unfold(0, self.n_ctx + 1, self.n_ctx)
        return Windows(ids[:cut], self.n_ctx, self.batch_size, self.seed), HeldOutLoss(rows[:MEASURED], self.batch_size)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return characters_of(self._text)

    @cached_property
    def _text(self) -> str:
        return read_text(self.file)


def parameters_of(model: nn.Module) -> int:
    """The number of parameters without those of tokens and positions (Kaplan et al. 2020, arXiv:2001.08361, §2.1)."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(("W_E", "W_pos")))
