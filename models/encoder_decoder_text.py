"""Sources and targets as tokens: text in and out of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import LabError
from models.inputs import mask_input, token_input
from models.text import TextMethods, pad

if TYPE_CHECKING:
    from models.encoder_decoder_config import EncoderDecoderConfig

Source = str | list[str] | Int[Tensor, "batch source_pos"] | Int[Tensor, "source_pos"]
SourceMask = Bool[Tensor, "batch source_pos"] | Int[Tensor, "batch source_pos"]
Target = str | list[str] | Int[Tensor, "batch pos"] | Int[Tensor, "pos"]
Mask = Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"]
Masked = tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"] | None]


class SourceAndTargetText(TextMethods):
    """`to_tokens` and its kin are of sources, to which the tokenizer's own rule adds special tokens (T5: the end).

    prepend_bos=False leaves them out.
    """

    if TYPE_CHECKING:

        @property
        def cfg(self) -> EncoderDecoderConfig: ...

    def source_tokens(self, input: Target, mask: Tensor | None = None) -> Masked:
        """The ids of the sources, and which are real (None: all).

        Raises:
            LabError: no tokens, ids out of range, or a text and no tokenizer.
        """
        if isinstance(input, Tensor):
            return token_input(self, input), mask_input(self, mask)
        tokens, real = self.to_tokens_and_mask(input, truncate=False)
        if mask is None and not bool(real.all()):
            mask = real
        return tokens, mask_input(self, mask)

    def target_tokens(self, input: Target, mask: Tensor | None = None) -> Masked:
        """The ids of the targets, and which are real. Texts get the start token; ids are taken as they are.

        Raises:
            LabError: as `source_tokens`.
        """
        if isinstance(input, Tensor):
            return token_input(self, input), mask_input(self, mask)
        texts = [input] if isinstance(input, str) else list(input)
        rows = [[self.cfg.decoder_start_token_id, *self._tokenizer().encode(text)] for text in texts]
        tokens, real = pad(rows, self.padding_id, "right")
        if mask is None and not bool(real.all()):
            mask = real
        return tokens.to(self.device), mask_input(self, mask)

    def target_text(self, ids: Sequence[int], stop_tokens: Collection[int] = ()) -> str:
        """A row of a target as text: without the start token, and only up to a stop token."""
        new = list(ids[1:] if ids[:1] == [self.cfg.decoder_start_token_id] else ids)
        end = next((i for i, token in enumerate(new) if token in stop_tokens), len(new))
        return self._tokenizer().decode(new[:end])

    @property
    def padding_id(self) -> int:
        """What fills up shorter rows."""
        if self.cfg.pad_token_id is not None:
            return self.cfg.pad_token_id
        return self.cfg.decoder_start_token_id if self.tokenizer is None else self._padding_id()

    def _encode(self, text: str, prepend_bos: bool | None) -> list[int]:
        ids = self._tokenizer().encode(text, add_special_tokens=prepend_bos is not False)
        if not ids:
            raise LabError("an empty text gives no tokens; expected at least one token, try a source with words.")
        return ids
