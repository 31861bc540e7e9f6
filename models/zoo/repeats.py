"""Random blocks of tokens, repeated: what an induction head is needed for (arXiv:2209.11895).

A row is the start token and a block of random letters, repeated until the row is full. The length of the block
changes from row to row, so looking back a fixed distance does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.batches import Batch, step_generator
from models.loss import next_token_loss
from models.tokenizers import characters
from models.zoo.lessons import Lesson, checked

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
START = len(LETTERS)
HELD_OUT_SEED = 1_000_003
"""Of the rows that measure; no recipe trains on it."""


@dataclass(frozen=True)
class Repeats:
    """Blocks of `shortest` to `longest` letters, drawn with replacement, repeated over rows of `n_ctx` positions."""

    n_ctx: int = 65
    batch_size: int = 64
    shortest: int = 8
    longest: int = 32
    seed: int = 0

    def batch(self, step: int) -> Batch:
        """The rows of one step."""
        return Batch(self.rows(step)[0])

    def rows(self, step: int) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch"]]:
        """The rows of one step, and the length of each one's block."""
        generator = step_generator(self.seed, step)
        lengths = torch.randint(self.shortest, self.longest + 1, (self.batch_size,), generator=generator)
        blocks = torch.randint(len(LETTERS), (self.batch_size, self.longest), generator=generator)
        place = torch.arange(self.n_ctx - 1) % rearrange(lengths, "batch -> batch 1")
        letters = blocks.gather(1, place)
        return torch.cat([torch.full((self.batch_size, 1), START), letters], 1), lengths


def lesson(options: Mapping[str, Any], seed: int) -> Lesson:
    """The lesson of a recipe whose data are of the kind "repeats"; options are the fields of `Repeats`."""
    data = Repeats(**{"seed": seed} | checked(Repeats, options, "data"))
    return Lesson(data, measure, characters(LETTERS))


def held_out(n_rows: int = 128) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch"]]:
    """Rows for measuring, and the lengths of their blocks (16 to 32 letters)."""
    return Repeats(batch_size=n_rows, shortest=16, longest=32, seed=HELD_OUT_SEED).rows(0)


def second_time(n_ctx: int, lengths: Int[Tensor, "batch"]) -> Bool[Tensor, "batch pos"]:
    """The positions of a block's second copy, but for the first letter, which nothing announces."""
    pos, length = torch.arange(n_ctx, device=lengths.device), rearrange(lengths, "batch -> batch 1")
    return (pos > length + 1) & (pos <= 2 * length)


def repeat_loss(model: nn.Module, rows: Int[Tensor, "batch pos"], lengths: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Mean loss, in nats, on the second copies."""
    losses = next_token_loss(model(rows), rows, per_token=True)
    return losses[second_time(rows.shape[1], lengths)[:, 1:]].mean()


@torch.no_grad()
def measure(model: Any) -> dict[str, float]:
    """The loss on repeats, how much the best heads look at the previous token and at the induction target, and the
    loss when the z of the best previous-token head is set to zero.

    Induction: from the second copy of a letter to what followed its first copy, A[i, i - length + 1].
    """
    rows, lengths = (tensor.to(model.device) for tensor in held_out())
    second = second_time(rows.shape[1], lengths)
    _, cache = model.run_with_cache(rows, names_filter=lambda name: name.endswith("hook_pattern"), return_type=None)
    patterns = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)])
    previous = _mean_attention(patterns, second, 1)
    layer, head = divmod(int(previous.argmax()), model.cfg.n_heads)
    with model.hooks([(f"blocks.{layer}.attn.hook_z", silence(head))]):
        ablated = repeat_loss(model, rows, lengths)
    return {
        "repeat_loss": float(repeat_loss(model, rows, lengths)),
        "previous_token": float(previous.max()),
        "induction": float(_mean_attention(patterns, second, lengths - 1).max()),
        "loss_without_previous_token_head": float(ablated),
    }


def silence(head: int) -> Callable[..., Tensor]:
    """A hook that sets the z of one head to zero."""

    def edit(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Float[Tensor, "batch pos head d_head"]:
        return z.index_fill(2, torch.tensor([head], device=z.device), 0.0)

    return edit


def _mean_attention(
    patterns: Float[Tensor, "layer batch head q_pos k_pos"],
    queries: Bool[Tensor, "batch q_pos"],
    distance: int | Int[Tensor, "batch"],
) -> Float[Tensor, "layer head"]:
    """Each head's mean attention, over the queries, to the key `distance` positions back."""
    n_layers, n_rows, n_heads, n_ctx, _ = patterns.shape
    back = rearrange(torch.as_tensor(distance, device=patterns.device).expand(n_rows), "batch -> batch 1")
    keys = (torch.arange(n_ctx, device=patterns.device) - back).clamp(min=0)
    keys = repeat(keys, "batch q_pos -> layer batch head q_pos 1", layer=n_layers, head=n_heads)
    attention = rearrange(patterns.gather(4, keys), "layer batch head q_pos 1 -> layer head batch q_pos")
    return attention[:, :, queries].mean(-1)
