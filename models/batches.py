"""What a training run reads: batches of token ids, each a function of the step alone.

Because a batch depends on nothing but the step (and a seed), a run that resumes at step n sees what it would have
seen, and there is no iterator whose state would have to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import LabError

UNCOUNTED = -100
"""The target of a position that counts for nothing (the ignored index of PyTorch's cross-entropy)."""


@dataclass(frozen=True)
class Batch:
    """tokens, what is to be predicted at each of them, and which are real.

    targets: None stands for "the next token"; `UNCOUNTED` where nothing is to be predicted.
    mask: True for real tokens, False for padding; None: all are real.
    """

    tokens: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"] | None = None
    mask: Bool[Tensor, "batch pos"] | None = None

    def with_targets(self) -> Batch:
        """The same batch, its targets written out."""
        if self.targets is not None:
            return self
        targets = torch.full_like(self.tokens, UNCOUNTED)
        targets[:, :-1] = self.tokens[:, 1:]
        if self.mask is not None:
            targets[:, :-1].masked_fill_(~(self.mask[:, 1:] & self.mask[:, :-1]), UNCOUNTED)
        return replace(self, targets=targets)

    def logits(self, model: Callable[..., Tensor]) -> Float[Tensor, "batch pos d_vocab"]:
        """What the model makes of the batch, one prediction for each target."""
        padding = {} if self.mask is None else {"attention_mask": self.mask}
        return model(self.tokens, **padding)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; to a GPU without waiting for the copy."""
        if self.tokens.device == device:
            return self
        tensors = {each.name: getattr(self, each.name) for each in fields(self)}
        there: dict[str, Any] = {name: t if t is None else _moved(t, device) for name, t in tensors.items()}
        return replace(self, **there)


@dataclass(frozen=True)
class SourceBatch(Batch):
    """For encoder-decoders: the sources, and in `tokens` what the decoder reads (teacher forcing).

    source_mask: True for the sources' real tokens; None: all are real. The decoder looks back only, so padding at the
    end of `tokens` needs no mask, only targets that do not count.
    """

    source: Int[Tensor, "batch source_pos"] = field(kw_only=True)
    source_mask: Bool[Tensor, "batch source_pos"] | None = field(default=None, kw_only=True)

    def logits(self, model: Callable[..., Tensor]) -> Float[Tensor, "batch pos d_vocab"]:
        """What the decoder predicts at each of its tokens, given the sources."""
        padding = {} if self.source_mask is None else {"attention_mask": self.source_mask}
        return model(self.source, self.tokens, **padding)


@runtime_checkable
class Batches(Protocol):
    """A source of batches: the rows of step 0, 1, 2, ... without end."""

    def batch(self, step: int) -> Batch | Int[Tensor, "batch pos"]: ...


@dataclass(frozen=True)
class Windows:
    """Random windows of one long row of ids, each with the token after it as the last target.

    tokens: the corpus (a memory-mapped array's tensor is read window by window). n_ctx: tokens in a window.

    Raises:
        LabError: a corpus shorter than a window and its last target.
    """

    tokens: Int[Tensor, "corpus"]
    n_ctx: int
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.n_ctx:
            raise LabError(
                f"the corpus has {len(self.tokens)} tokens, expected at least {self.n_ctx + 1} "
                f"(a window of n_ctx={self.n_ctx} and the token after it); give more text or a smaller n_ctx."
            )

    def batch(self, step: int) -> Batch:
        """The windows of one step."""
        generator = step_generator(self.seed, step)
        starts = torch.randint(len(self.tokens) - self.n_ctx, (self.batch_size,), generator=generator)
        rows = torch.stack([self.tokens[start : start + self.n_ctx + 1] for start in starts.tolist()]).long()
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())


def shuffled(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which of n examples the batch of a step holds: each once in an epoch, every epoch in an order of its own."""
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: torch.randperm(n, generator=step_generator(seed, epoch)) for epoch in {p // n for p in places}}
    return [int(orders[place // n][place % n]) for place in places]


def step_generator(seed: int, step: int) -> torch.Generator:
    """A random generator for one step of one seed; neighbouring steps and seeds are unrelated."""
    mixed = torch.Generator().manual_seed(seed).initial_seed() * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03
    return torch.Generator().manual_seed(mixed % 2**63)


def batch_of(batches: Batches, step: int, d_vocab: int | None, d_vocab_out: int | None, n_ctx: int | None) -> Batch:
    """The batch of a step, targets written out, checked against the sizes of the model.

    Ids that are already on a GPU are not looked at: that would make the step wait for it.

    Raises:
        LabError: no tokens, too many positions, ids or targets out of range.
    """
    found = batches.batch(step)
    given = found if isinstance(found, Batch) else Batch(found)
    _check_tokens(given.tokens, step, d_vocab, n_ctx)
    if isinstance(given, SourceBatch):
        _check_tokens(given.source, step, d_vocab, n_ctx)
    batch = given.with_targets()
    assert batch.targets is not None
    if batch.targets.device.type == "cpu":
        _check_ids("targets", batch.targets[batch.targets != UNCOUNTED], step, d_vocab_out)
    return batch


def sizes(model: nn.Module) -> tuple[int | None, int | None, int | None]:
    """d_vocab, d_vocab_out and n_ctx of a model, as far as its config tells."""
    cfg = getattr(model, "cfg", None)
    d_vocab = getattr(cfg, "d_vocab", None)
    return d_vocab, getattr(cfg, "d_vocab_out", None) or d_vocab, getattr(cfg, "n_ctx", None)


def _check_tokens(tokens: Tensor, step: int, d_vocab: int | None, n_ctx: int | None) -> None:
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise LabError(
            f"the batch of step {step} has shape {tuple(tokens.shape)}; expected [batch pos] with at least "
            "one token, is the data empty?"
        )
    if tokens.is_floating_point():
        raise LabError(f"the batch of step {step} holds {tokens.dtype}; expected token ids, that is integers.")
    if n_ctx is not None and tokens.shape[1] > n_ctx:
        raise LabError(
            f"the batch of step {step} has {tokens.shape[1]} positions, but the context window is {n_ctx} (n_ctx); "
            "cut the rows or widen the window."
        )
    if tokens.device.type == "cpu":
        _check_ids("token ids", tokens, step, d_vocab)


def _check_ids(what: str, ids: Tensor, step: int, limit: int | None) -> None:
    if ids.numel() == 0:
        raise LabError(f"the batch of step {step} has no {what} that count; nothing could be learned from it.")
    low, high = ids.aminmax()
    if limit is not None and (low < 0 or high >= limit):
        raise LabError(
            f"the {what} of step {step} run from {low} to {high}; expected 0 to {limit - 1} "
            "(the model's vocabulary). Was the data made with another tokenizer?"
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)
