"""The objective of an encoder: words are hidden, and guessed from both sides (Devlin et al. 2019, §3.1).

Of each row 15 % of the tokens are to be guessed. Of these 80 % are replaced by the mask token, 10 % by a random token
and 10 % stay as they are, so that the model cannot trust what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import LabError
from models.batches import UNCOUNTED, Batch, Batches, step_generator
from models.tokenizers import Tokenizer

SHARE = 0.15
MASKED, RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """Which tokens are hidden, and by what. mask_token: its id. special: ids that are never hidden and never put in.

    Raises:
        LabError: a share that is not between 0 and 1, or no ordinary token.
    """

    mask_token: int
    d_vocab: int
    special: Sequence[int] = ()
    share: float = SHARE
    _ordinary: Int[Tensor, "token"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise LabError(f"share={self.share}; expected a part of the tokens, more than 0 and up to 1.")
        hidden = {*self.special, self.mask_token}
        ordinary = torch.tensor([token for token in range(self.d_vocab) if token not in hidden])
        if not len(ordinary):
            raise LabError(f"all {self.d_vocab} tokens are special; expected some that can be guessed.")
        object.__setattr__(self, "_ordinary", ordinary)

    @classmethod
    def of(cls, tokenizer: Tokenizer, share: float = SHARE) -> Masking:
        """By a tokenizer's own mask and special tokens.

        Raises:
            LabError: it has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise LabError("the tokenizer has no mask token; expected one such as '[MASK]' (mask_token).")
        return cls(tokenizer.mask_token_id, len(tokenizer), tokenizer.all_special_ids, share)

    def hide(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with tokens hidden, and these as its targets. Padding and special tokens are never hidden.

        Raises:
            LabError: a row has nothing but special tokens.
        """
        chosen = self._chosen(batch, generator)
        fate = torch.rand(batch.tokens.shape, generator=generator)
        places = torch.randint(len(self._ordinary), batch.tokens.shape, generator=generator)
        tokens = torch.where(chosen & (fate < MASKED), self.mask_token, batch.tokens)
        random = chosen & (fate >= MASKED) & (fate < MASKED + RANDOM)
        tokens = torch.where(random, self._ordinary[places], tokens)
        return Batch(tokens, torch.where(chosen, batch.tokens, UNCOUNTED), batch.mask)

    def _chosen(self, batch: Batch, generator: torch.Generator) -> Bool[Tensor, "batch pos"]:
        """As many of each row's tokens as the share says, at least one."""
        can = torch.isin(batch.tokens, self._ordinary)
        can = can if batch.mask is None else can & batch.mask
        counts = can.sum(1, keepdim=True)
        if not bool(counts.all()):
            raise LabError(f"row {int((counts == 0).nonzero()[0, 0])} of a batch has no token that can be hidden.")
        order = torch.rand(can.shape, generator=generator).masked_fill(~can, 2.0).argsort(1).argsort(1)
        return order < (self.share * counts).round().clamp(min=1)


@dataclass(frozen=True)
class MaskedBatches:
    """Batches of whole texts, in which tokens are hidden anew at every step."""

    batches: Batches
    masking: Masking
    seed: int = 0

    def batch(self, step: int) -> Batch:
        """The batch of a step, some of its tokens hidden."""
        found = self.batches.batch(step)
        whole = found if isinstance(found, Batch) else Batch(found)
        return self.masking.hide(Batch(whole.tokens, None, whole.mask), step_generator(self.seed + 1, step))
