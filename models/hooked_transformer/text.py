"""Text in and out of a `HookedTransformer`: the arguments and the habits of HookedTransformer's own methods."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import LabError, choose
from interp.kv_cache import KeyValueCache
from models.generation import generate_tokens
from models.gpt import GPT
from models.hooked_transformer.tokenizer import HookedTokenizer
from models.text import Input


class HookedText(GPT):
    """The part of `HookedTransformer` that reads and writes text.

    Padding goes on `tokenizer.padding_side` unless an argument says otherwise; where that is the left, rows of ids
    are taken to be padded too, and their leading padding tokens are masked.
    """

    @property  # type: ignore[override]
    def tokenizer(self) -> HookedTokenizer | None:
        """Of the lab or of transformers when it is set; always a `HookedTokenizer` when it is read."""
        return vars(self)["hooked_tokenizer"]

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        made = None if tokenizer is None else HookedTokenizer.of(tokenizer)
        vars(self)["hooked_tokenizer"] = tokenizer if isinstance(tokenizer, HookedTokenizer) else made

    def set_tokenizer(self, tokenizer: Any, default_padding_side: str | None = None) -> None:
        """Use the lab's tokenizer, or a fast one of transformers.

        Raises:
            LabError: a tokenizer of another kind, or an unknown side.
        """
        self.tokenizer = HookedTokenizer.of(tokenizer, default_padding_side)

    @property
    def default_padding_side(self) -> str:  # type: ignore[override]
        return "right" if self.tokenizer is None else self.tokenizer.padding_side

    def _with_start(self, ids: list[int], bos: int) -> list[int]:
        return [bos, *ids]  # also before a start token that the text spells out, as HookedTransformer has it

    def forward(  # type: ignore[override]  # HookedTransformer's order of arguments
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Any = None,
        attention_mask: Any = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KeyValueCache | None = None,
        **resumed: Any,
    ) -> Any:
        """As `GPT.forward`. shortformer_pos_embed: None, since the lab has no such positions.

        Raises:
            LabError: as there.
        """
        if shortformer_pos_embed is not None:
            raise LabError("shortformer_pos_embed is for positions that the lab's models do not have; expected None.")
        if attention_mask is None and start_at_layer is None and isinstance(input, Tensor) and not past_kv_cache:
            attention_mask = self._mask_of(input, prepend_bos, padding_side)
        return super().forward(
            input,
            return_type=return_type,
            loss_per_token=loss_per_token,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            start_at_layer=start_at_layer,
            tokens=tokens,
            attention_mask=attention_mask,
            stop_at_layer=stop_at_layer,
            past_kv_cache=past_kv_cache,
            **resumed,
        )

    def _mask_of(self, tokens: Tensor, prepend_bos: bool | None, padding_side: str | None) -> Tensor | None:
        """Which ids are real, where padding goes on the left; None where all are."""
        if self.tokenizer is None or (padding_side or self.default_padding_side) != "left":
            return None
        has_bos = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        real = self.tokenizer.real_tokens(tokens[None] if tokens.ndim == 1 else tokens, has_bos)
        return None if bool(real.all()) else real

    def input_to_embed(
        self,
        input: Input,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        attention_mask: Any = None,
        past_kv_cache: KeyValueCache | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Int[Tensor, "batch pos"], None, Any]:
        """(the stream before the first block, the ids, None, the mask or None).

        A later forward with start_at_layer=0 takes the stream, with tokens= the ids and attention_mask= the mask.
        """
        if isinstance(input, Tensor):
            tokens = input[None] if input.ndim == 1 else input
            mask = self._mask_of(tokens, prepend_bos, padding_side) if attention_mask is None else attention_mask
        else:
            tokens, real = self.to_tokens_and_mask(input, prepend_bos, padding_side, truncate=False)
            mask = attention_mask if attention_mask is not None else None if bool(real.all()) else real
        resid = super().forward(tokens, attention_mask=mask, past_kv_cache=past_kv_cache, stop_at_layer=0)
        return resid, tokens, None, mask

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*batch d_model"]:
        """As `GPT.tokens_to_residual_directions`, but one token, however it is given, has one direction [d_model]."""
        directions = super().tokens_to_residual_directions(tokens)
        return directions.flatten() if directions.numel() == self.cfg.d_model else directions

    def get_token_position(
        self,
        single_token: str | int | Tensor,
        input: Any,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token stands in a text or in one row of ids; the first or the last time.

        Raises:
            LabError: it is not there, or there are several rows, or an unknown mode.
        """
        choose("mode", mode, ("first", "last"))
        row = self.to_tokens(input, prepend_bos, padding_side) if isinstance(input, str) else torch.as_tensor(input)
        if row.ndim == 2 and len(row) != 1:
            raise LabError(f"{len(row)} rows of tokens; expected one row to look for a token in.")
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        found = (row.flatten() == token).nonzero().flatten().tolist()
        if not found:
            raise LabError(f"the token {single_token!r} is not among {self.to_str_tokens(row)}.")
        return found[0] if mode == "first" else found[-1]

    def generate(  # type: ignore[override]
        self,
        input: Input = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Collection[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | int | None = None,
        temperature: float | int = 1.0,
        freq_penalty: float | int = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        return_type: str = "input",
        verbose: bool = True,
    ) -> Any:
        """The prompt and what the model writes after it; as text or ids, as given or as return_type ("str", "tokens").

        do_sample: False takes the likeliest token each time. freq_penalty: taken from a token's logit for each time
        that it was there. top_p: of no effect beside top_k. Draws follow torch's own random state, which
        `torch.manual_seed` sets; they are not the very draws of HookedTransformer. Keys and values are always kept,
        texts always padded on the left, and no progress is shown: use_past_kv_cache, padding_side (of texts) and
        verbose change nothing.

        Raises:
            LabError: as `models.generation.generate`; stop_at_eos without an end-of-text token.
        """
        choose("return_type", return_type, ("input", "str", "tokens"))
        as_ids = return_type == "tokens" or (return_type == "input" and isinstance(input, Tensor))
        tokenizer = None if as_ids else HookedTokenizer.of(self._tokenizer())
        stops = self._stops(eos_token_id) if stop_at_eos else ()
        if isinstance(input, Tensor):
            rows = (input[None] if input.ndim == 1 else input).to(self.device)
            real = self._mask_of(rows, prepend_bos, padding_side)
        else:
            rows, real = self.to_tokens_and_mask(input, prepend_bos, "left", truncate=False)
        seed = int(torch.randint(2**62, ())) if do_sample else None
        sampling = (temperature if do_sample else 0, top_k, None if top_k else top_p)
        written = generate_tokens(self, rows, max_new_tokens, *sampling, stops, seed, real, freq_penalty)
        if tokenizer is None:
            return written
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts[0] if len(texts) == 1 else texts

    def _stops(self, eos_token_id: int | Collection[int] | None) -> Collection[int]:
        end = None if self.tokenizer is None else self.tokenizer.eos_token_id
        given = end if eos_token_id is None else eos_token_id
        if given is None:
            raise LabError("stop_at_eos=True without an end-of-text token; give eos_token_id, or stop_at_eos=False.")
        return (given,) if isinstance(given, int) else given
