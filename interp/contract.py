"""What an analysis may ask of a model: the Protocols `HookedModel` and `ResumableModel`.

The from-scratch GPT and TransformerLens's bridge (through `models.bridge`) both satisfy `HookedModel`. Names
and calling conventions are HookedTransformer's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.kv_cache import KeyValueCache

NamedHook = tuple[str | Callable[[str], bool], Callable[..., Any]]


class ModelSizes(Protocol):
    """The part of a model's config that analyses read."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int | None
    d_model: int
    d_head: Any
    d_mlp: Any
    d_vocab: int
    n_ctx: int
    attn_only: bool
    normalization_type: Any
    model_name: str


@runtime_checkable
class HookedModel(Protocol):
    """What every analysis needs: a forward with hooks, tokens, and the way from the stream to the logits.

    `ln_final` and `unembed` are the modules that a residual stream goes through to become logits; `ln_final`
    has the gain `w` and, for layer norm, the bias `b`, where there are any.
    """

    hook_dict: Any
    blocks: Any
    ln_final: Any
    unembed: Any
    tokenizer: Any

    @property
    def cfg(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]: ...
    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]: ...

    def __call__(
        self, input: Int[Tensor, "batch pos"], *, attention_mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]: ...

    def hooks(
        self, fwd_hooks: Sequence[NamedHook] = (), bwd_hooks: Sequence[NamedHook] = ()
    ) -> AbstractContextManager[Any]: ...

    def run_with_hooks(self, *model_args: Any, fwd_hooks: Sequence[NamedHook] = (), **model_kwargs: Any) -> Any: ...

    def run_with_cache(self, *model_args: Any, names_filter: Any = None, **model_kwargs: Any) -> tuple[Any, Any]: ...

    def to_tokens(
        self, input: Any, prepend_bos: bool | None = None, *, truncate: bool = True
    ) -> Int[Tensor, "batch pos"]: ...

    def to_str_tokens(self, input: Any, prepend_bos: bool | None = None) -> Any: ...

    def to_single_token(self, string: str) -> int: ...

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]: ...


@runtime_checkable
class ResumableModel(HookedModel, Protocol):
    """A model whose forward resumes: from a layer, from a position, and for the positions asked for alone.

    Its call also takes `start_at_layer=l` (the input is the stream [batch pos d_model] at the input of block l),
    `stop_at_layer=l` (gives that stream back), `past_kv_cache` (an `interp.kv_cache.KeyValueCache` with the keys and
    values of the positions before), `finish` (Int[Tensor, "batch n"]: the positions of the input that leave the last
    block that is run), and `known` (of the first block that is run "attn_out", or "q", "k" and "v", to be taken instead
    of computed; not together with `finish` in one block). Its keys and values are at `hook_k` (or `hook_rot_k`, where
    there is one) and `hook_v`.
    """

    def __call__(
        self,
        input: Any,
        *,
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KeyValueCache | None = None,
        finish: Int[Tensor, "batch n"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Any: ...

    def embedding(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "#batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]: ...

    def logits_at(
        self, resid: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch pos n_or_d_vocab"]:
        """The logits of final streams, for some tokens (each row its own) or, with None, for all."""
        ...
