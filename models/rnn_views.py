"""A recurrent encoder-decoder as a model of its sources, for analyses that run prompts: `model.encoder_given(target)`.

    view = model.encoder_given(torch.tensor([0, 7]))            # the start token, and what has been written so far
    activation_patching(view, pairs, site="encoder.hidden")     # which state holds what the next token needs

Prompts are sources, answers the next token of the target. The decoder answers once it has read the whole source, so
there are logits at the source's last real position, and no numbers (NaN) at the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.hook_point import HookPoint
from models.answered import at_last
from models.rnn_config import not_defined

if TYPE_CHECKING:
    from models.rnn import RNNEncoderDecoder

ANY_LENGTH = 2**31
"""A recurrent model has no longest input."""


@dataclass(frozen=True)
class ViewSizes:
    """What analyses read of a config; one layer, which is as wide as the hidden state."""

    model_name: str
    d_vocab: int
    d_model: int
    n_layers: int = 1
    n_heads: int = 1
    n_key_value_heads: int | None = None
    d_mlp: int = 0
    n_ctx: int = ANY_LENGTH
    attn_only: bool = True
    normalization_type: str | None = None

    @property
    def d_head(self) -> int:
        return self.d_model


class EncoderGivenTarget:
    """source -> logits of the token after `target`; hook points and hooks are the model's own."""

    tokenizer = None

    def __init__(self, model: RNNEncoderDecoder, target: Int[Tensor, "pos"]) -> None:
        """Raises:
        LabError: not one row of ids of the model's vocabulary.
        """
        if target.ndim != 1:
            raise LabError(f"target has shape {tuple(target.shape)}; expected one row of ids [pos], for all sources.")
        self.model, self.target = model, model.checked_ids("the target", target[None])
        self.cfg = ViewSizes(model.cfg.model_name, model.cfg.d_vocab, model.cfg.d_hidden)

    def __call__(
        self, input: Int[Tensor, "batch pos"], *, attention_mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Raises:
        LabError: as the model's forward.
        """
        return at_last(
            self.model(*self._arguments(input), attention_mask=attention_mask)[:, -1:], input, attention_mask
        )

    def run_with_hooks(
        self,
        input: Int[Tensor, "batch pos"],
        *,
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        **hooks: Any,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """As `interp.hooks.HookedModule.run_with_hooks`."""
        logits = self.model.run_with_hooks(*self._arguments(input), attention_mask=attention_mask, **hooks)
        return at_last(logits[:, -1:], input, attention_mask)

    def run_with_cache(
        self,
        input: Int[Tensor, "batch pos"],
        *,
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        **settings: Any,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
        """As `interp.hooks.HookedModule.run_with_cache`."""
        logits, cache = self.model.run_with_cache(*self._arguments(input), attention_mask=attention_mask, **settings)
        return at_last(logits[:, -1:], input, attention_mask), cache

    def to_str_tokens(self, input: Int[Tensor, "pos"], prepend_bos: bool | None = None) -> list[str]:
        """The ids as text; the model knows no other."""
        return [str(token) for token in input.tolist()]

    def hooks(self, *named: Any, **settings: Any) -> Any:
        """As `interp.hooks.HookedModule.hooks`."""
        return self.model.hooks(*named, **settings)

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        return self.model.hook_dict

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def W_U(self) -> Float[Tensor, "d_hidden d_vocab"]:
        return self.model.W_U

    def _arguments(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return input, repeat(self.target, "1 pos -> batch pos", batch=len(input))

    def __getattr__(self, name: str) -> Any:
        raise not_defined(name, type(self).__name__)
