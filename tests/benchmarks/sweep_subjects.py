"""What the benchmarks of sweeps run on: GPT-2 small's shape with random weights, and random prompts."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from interp import PromptPairs
from models import GPT, load
from models.pretrained.bridged import boot


@dataclass(frozen=True)
class Size:
    """How large a benchmark is.

    config: of the GPT-2, beside its defaults. starts: where the two sides of the prompts first differ, early and late.
    layer: the receivers' layer in path patching.
    """

    prompts: int
    positions: int
    starts: tuple[int, int]
    layer: int
    config: dict[str, Any] = field(default_factory=dict)


FULL = Size(prompts=8, positions=16, starts=(1, 10), layer=9)
QUICK = Size(
    prompts=2,
    positions=6,
    starts=(1, 3),
    layer=2,
    config={"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0},
)


def both(size: Size, device: str = "cpu", dtype: str = "float32") -> tuple[GPT, Any]:
    """The same random weights (ours, TransformerLens's bridge as it boots)."""
    with tempfile.TemporaryDirectory() as directory:
        _save(size, directory)
        ours = load(directory, device=device, dtype=dtype)
        bridge = boot(directory, torch.device(device), getattr(torch, dtype)).inner
    return ours, bridge


def random_gpt2(size: Size, device: str = "cpu", dtype: str = "float32") -> GPT:
    """Ours of `both` alone."""
    with tempfile.TemporaryDirectory() as directory:
        _save(size, directory)
        return load(directory, device=device, dtype=dtype)


def _save(size: Size, directory: str) -> None:
    """The weights are 2.5 times as wide as GPT-2's at the start of training, so that no attention pattern is flat and
    every patch has an effect."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(initializer_range=0.05, **size.config)).save_pretrained(directory)


def prompt_pairs(model: GPT, prompts: int, positions: int, start: int) -> PromptPairs:
    """Random prompts; clean and corrupted are the same before position `start` and differ everywhere from it on."""
    source = torch.Generator().manual_seed(1)
    d_vocab = model.cfg.d_vocab
    clean = torch.randint(d_vocab, (prompts, positions), generator=source)
    shift = torch.randint(1, d_vocab, (prompts, positions), generator=source)
    shift[:, :start] = 0
    right, wrong = torch.randperm(d_vocab, generator=source)[: 2 * prompts].reshape(2, prompts)
    return PromptPairs.from_tokens(clean, (clean + shift) % d_vocab, right, wrong, model=model).to(model.device)


def sampled(sizes: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """n of the places of a grid, at random but always the same; all of them where there are no more."""
    places = list(product(*(range(size) for size in sizes)))
    return sorted(random.Random(0).sample(places, min(n, len(places))))
