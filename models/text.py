"""Text in and out of a model that has a tokenizer; names and arguments are HookedTransformer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError

if TYPE_CHECKING:
    from models.config import TransformerConfig
    from models.tokenizers import Tokenizer

Tokens = Int[Tensor, "batch pos"]
Input = str | list[str] | Int[Tensor, "batch pos"] | Int[Tensor, "pos"]


class TextMethods:
    """`to_tokens`, `to_string`, `to_str_tokens`, `to_single_token`, and what they share.

    prepend_bos: put the start token first; None takes `cfg.default_prepend_bos`. A model without a start token
    never gets one. padding_side: "left" or "right"; None takes `default_padding_side`.
    """

    default_padding_side: str = "right"

    if TYPE_CHECKING:

        @property
        def cfg(self) -> TransformerConfig: ...
        @property
        def device(self) -> torch.device: ...
        @property
        def W_U(self) -> Tensor: ...

    tokenizer: Tokenizer | None

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tokens:
        """Token ids, [batch pos] also for one text. Shorter texts are padded; longer than n_ctx are cut.

        Raises:
            LabError: the model has no tokenizer, or a text is empty.
        """
        return self.to_tokens_and_mask(input, prepend_bos, padding_side, move_to_device, truncate)[0]

    def to_tokens_and_mask(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> tuple[Tokens, Bool[Tensor, "batch pos"]]:
        """`to_tokens`, and which positions hold real tokens rather than padding.

        Raises:
            LabError: as `to_tokens`.
        """
        side = self.default_padding_side if padding_side is None else padding_side
        if side not in ("left", "right"):
            raise LabError(f"padding_side={side!r}; expected 'left' or 'right'.")
        texts = [input] if isinstance(input, str) else list(input)
        if not texts:
            raise LabError("an empty list of texts; expected at least one text.")
        rows = [self._encode(text, prepend_bos) for text in texts]
        if truncate:
            rows = [row[: self.cfg.n_ctx] for row in rows]
        tokens, mask = pad(rows, self._padding_id(), side)
        device = self.device if move_to_device else None
        return tokens.to(device), mask.to(device)

    def text_input(
        self,
        texts: str | list[str],
        prepend_bos: bool | None,
        padding_side: str | None,
        mask: Bool[Tensor, "batch pos"] | None,
    ) -> tuple[Tokens, Bool[Tensor, "batch pos"] | None]:
        """The whole of some texts as ids, and which are real unless the caller says so; None for all.

        Raises:
            LabError: as `to_tokens`.
        """
        tokens, real = self.to_tokens_and_mask(texts, prepend_bos, padding_side, truncate=False)
        return tokens, mask if mask is not None else None if bool(real.all()) else real

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of one row of ids; for a batch, a list of texts."""
        ids = torch.as_tensor(tokens)
        if ids.ndim == 2:
            return [self._tokenizer().decode(row.tolist()) for row in ids]
        return self._tokenizer().decode(rearrange(ids, "... -> (...)").tolist())

    def to_str_tokens(self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None) -> list[Any]:
        """Each token's own text, for a text or a row of ids; for a list of texts or rows or a batch, a list of lists.

        A batch of one row counts as that row. Without a tokenizer the ids stand for themselves. padding_side: of no
        effect, since each text is split by itself.
        """
        if isinstance(input, str):
            input = self._encode(input, prepend_bos)
        elif isinstance(input, list) and input and not isinstance(input[0], int):
            return [self.to_str_tokens(each, prepend_bos) for each in input]
        ids = torch.as_tensor(input)
        if ids.ndim == 2 and ids.shape[0] > 1:
            return [self.to_str_tokens(row) for row in ids]
        numbers = rearrange(ids, "... -> (...)").tolist()
        if self.tokenizer is None:
            return [str(number) for number in numbers]
        return self.tokenizer.strings(numbers)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises:
            LabError: it is several; they are named.
        """
        ids = self._tokenizer().encode(string)
        if len(ids) != 1:
            pieces = [self._tokenizer().decode([i]) for i in ids]
            hint = "" if string.startswith(" ") else f" A leading space may help: {' ' + string!r}."
            raise LabError(f"{string!r} is {len(ids)} tokens {pieces}, expected one.{hint}")
        return ids[0]

    def to_single_str_token(self, token: int) -> str:
        return self._tokenizer().decode([token])

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*batch d_model"]:
        """The column of W_U for each token: the direction in the normalised stream that raises its logit."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        return self.W_U.T[torch.as_tensor(tokens, device=self.W_U.device)]

    def _encode(self, text: str, prepend_bos: bool | None) -> list[int]:
        tokenizer = self._tokenizer()
        ids = tokenizer.encode(text)
        bos = tokenizer.bos_token_id
        wanted = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        if wanted and bos is not None:
            ids = self._with_start(ids, bos)
        if not ids:
            raise LabError("an empty text gives no tokens; expected at least one token, try a prompt with words.")
        return ids

    def _with_start(self, ids: list[int], bos: int) -> list[int]:
        """The ids after the start token, which a text that spells it out has already."""
        return ids if ids[:1] == [bos] else [bos, *ids]

    def _padding_id(self) -> int:
        tokenizer = self._tokenizer()
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
        return next(i for i in ids if i is not None)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise LabError(
                f"the model {self.cfg.model_name!r} has no tokenizer, so it takes token ids and no text; "
                "give ids, or set model.tokenizer (models.tokenizers.Tokenizer.from_dir)."
            )
        return self.tokenizer


def pad(rows: list[list[int]], padding_id: int, side: str) -> tuple[Tokens, Bool[Tensor, "batch pos"]]:
    """Rows of ids as one tensor, and which entries are real."""
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), padding_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        tokens[i, where] = torch.tensor(row)
        mask[i, where] = True
    return tokens, mask
