"""What an analysis may ask of a model: the Protocols `HookedModel` and `ResumableModel`.

The from-scratch GPT and TransformerLens's bridge (through `models.bridge`) both satisfy `HookedModel`. Names
and calling conventions are HookedTransformer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    """A model whose forward can start at a layer, stop at one, and go on after cached positions.

    `model(resid, start_at_layer=l)` continues from the stream at the input of block l;
    `model(tokens, stop_at_layer=l)` returns that stream; `past_kv_cache` holds the positions before.
    """

    def embedding(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "#batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]: ...
