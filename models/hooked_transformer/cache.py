"""`HookedCache`: the cache that a `HookedTransformer` gives, with the habits of HookedTransformer's."""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.cache import ActivationCache, Key
from interp.collector import without_batch
from models.hooked_transformer.utils import get_act_name

Direction = Float[Tensor, "d_model"] | Float[Tensor, "d_model n"] | None


class HookedCache(ActivationCache):
    """An `ActivationCache` that changes in place where scripts expect it to, and understands "k6" and "scale4ln1"."""

    @property
    def has_embed(self) -> bool:
        return "hook_embed" in self.cache_dict

    @property
    def has_pos_embed(self) -> bool:
        return "hook_pos_embed" in self.cache_dict

    def to(self, device: torch.device | str, move_model: bool = False) -> HookedCache:
        """Move the tensors to `device`, and give this same cache back."""
        self.cache_dict = dict(super().to(device, move_model))
        return self

    def remove_batch_dim(self) -> HookedCache:
        """Drop the batch axis, and give this same cache back.

        Raises:
            LabError: the batch holds more than one prompt.
        """
        if self.has_batch_dim:
            self.cache_dict = {name: without_batch(tensor, name) for name, tensor in self.cache_dict.items()}
            self.has_batch_dim = False
        return self

    def compute_head_results(self) -> None:
        """Add `hook_result` of every layer, from its z: what each head wrote, [batch pos head d_model]."""
        for layer, block in enumerate(self.model.blocks):
            name = f"blocks.{layer}.attn.hook_result"
            if name not in self.cache_dict:
                z = self["z", layer]
                self.cache_dict[name] = einsum(
                    z, block.attn.W_O, "... head d_head, head d_head model -> ... head model"
                )

    def get_neuron_results(self, *args: Any, project_output_onto: Direction = None, **kwargs: Any) -> Any:
        """As `ActivationCache.get_neuron_results`; project_output_onto: directions that d_model is contracted with."""
        return _projected(super().get_neuron_results(*args, **kwargs), project_output_onto)

    def stack_neuron_results(self, *args: Any, project_output_onto: Direction = None, **kwargs: Any) -> Any:
        """As `ActivationCache.stack_neuron_results`, and as `get_neuron_results` here."""
        return _projected(super().stack_neuron_results(*args, **kwargs), project_output_onto)

    def get_full_resid_decomposition(self, *args: Any, project_output_onto: Direction = None, **kwargs: Any) -> Any:
        """As `ActivationCache.get_full_resid_decomposition`, and as `get_neuron_results` here."""
        return _projected(super().get_full_resid_decomposition(*args, **kwargs), project_output_onto)

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients on or off, for torch as a whole and not for this cache alone."""
        torch.set_grad_enabled(mode)

    def _name(self, key: Key) -> str:
        if isinstance(key, str) and key.isalnum() and not key.isalpha():
            return get_act_name(key)
        return super()._name(key)  # type: ignore[arg-type]  # a Site was taken out before


def _projected(given: Any, directions: Direction) -> Any:
    """A stack, or a stack with its labels, along some directions of the stream."""
    if directions is None:
        return given
    return (given[0] @ directions, given[1]) if isinstance(given, tuple) else given @ directions
