"""`HookedTokenizer`: the lab's tokenizer with what scripts written for HookedTransformer ask of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import LabError, choose
from models.tokenizers import END, Tokenizer


class HookedTokenizer(Tokenizer):
    """A tokenizer that always has an end, a start and a padding token, and a side to pad on.

    A start or padding token that is missing is the end-of-text token, as HookedTransformer has it. Only
    `padding_side` ("left" or "right") can be assigned.
    """

    padding_side: str = "right"

    @classmethod
    def of(cls, tokenizer: Any, padding_side: str | None = None) -> HookedTokenizer:
        """From the lab's tokenizer, or from one of transformers that the Rust library backs.

        Raises:
            LabError: a tokenizer of another kind, or an unknown side.
        """
        core = tokenizer.core if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
        if core is None:
            raise LabError(
                f"a tokenizer of type {type(tokenizer).__name__}; expected a models.tokenizers.Tokenizer, or a fast "
                "one of transformers (which has a backend_tokenizer)."
            )
        end: str | None = tokenizer.eos_token or (END if core.token_to_id(END) is not None else None)
        made = cls(core, tokenizer.bos_token or end, end, tokenizer.pad_token or end)
        made.padding_side = padding_side or str(getattr(tokenizer, "padding_side", "right"))
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "padding_side":
            raise LabError(f"tokenizer.{name} cannot be assigned; only padding_side can. Make another tokenizer.")
        vars(self)[name] = choose("padding side", value, ("left", "right"))

    def decode(self, ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of some ids: a number, a list or a tensor."""
        numbers = torch.as_tensor(ids).flatten().tolist()
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return super().decode([number for number in numbers if number not in special])

    def batch_decode(self, rows: Sequence[Any] | Tensor, **options: Any) -> list[str]:
        return [self.decode(row, **options) for row in rows]

    @property
    def vocab(self) -> dict[str, int]:
        return self.core.get_vocab(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    @property
    def vocab_size(self) -> int:
        return len(self)

    def real_tokens(self, tokens: Int[Tensor, "batch pos"], has_bos: bool) -> Bool[Tensor, "batch pos"]:
        """Which tokens of left-padded rows are not padding: all but leading padding tokens.

        has_bos: where the start token is the padding token, the last of the leading ones is the start.
        """
        leading = tokens.ne(self.pad_token_id or 0).cumsum(-1) == 0
        if has_bos and self.bos_token_id == self.pad_token_id:
            leading = leading & ~(leading.cumsum(-1) == leading.sum(-1, keepdim=True))
        return ~leading
