"""`ActivationCache`: the activations of one run, by hook name, and what can be computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.collector import as_range, without_batch
from interp.errors import LabError, UnknownHookError
from interp.residual import ResidualArithmetic
from interp.sites import Site, hook_name

if TYPE_CHECKING:
    from interp.contract import HookedModel

Key = str | tuple[Any, ...] | Site


class ActivationCache(ResidualArithmetic, Mapping[str, Tensor]):
    """A mapping from hook name to activation, with the residual-stream arithmetic of `ResidualArithmetic`.

    Three ways to ask: `cache["blocks.3.hook_resid_post"]`, `cache["resid_post", 3]`, or
    `cache[Site("z", 3, head=1, pos=5)]`, which also indexes. A key in short form with -1 as its layer means
    the last layer. Iterating gives the names in the order of the forward pass.

    model: the model that ran; the residual arithmetic reads its weights. has_batch_dim: False once the batch
    axis was removed.
    """

    def __init__(self, tensors: dict[str, Tensor], model: HookedModel | Any, has_batch_dim: bool = True) -> None:
        self.cache_dict = tensors
        self.model = model
        self.has_batch_dim = has_batch_dim

    def __getitem__(self, key: Key) -> Tensor:
        """Raises:
        UnknownHookError: nothing cached under that name; the message lists the nearest cached names.
        """
        if isinstance(key, Site):
            index = key.index if self.has_batch_dim else key.index[1:]
            return self._get(key.hook_name)[index]
        return self._get(self._name(key))

    def _name(self, key: str | tuple[Any, ...]) -> str:
        if isinstance(key, str) and (key in self.cache_dict or "." in key or key.startswith("hook_")):
            return key
        try:
            return self._name_of_short_form((key,) if isinstance(key, str) else key)
        except LabError as error:
            raise UnknownHookError(str(error)) from None

    def _name_of_short_form(self, key: tuple[Any, ...]) -> str:
        kind, layer, *rest = key if len(key) > 1 else (*key, None)
        if rest and rest[0] in ("ln1", "ln2", "ln_final"):  # HookedTransformer's ("scale", 3, "ln1")
            kind = f"{rest[0]}.{kind}"
        elif rest and rest[0] == "mlp":  # ("pre", 3, "mlp")
            kind = {"pre": "mlp_pre", "post": "mlp_post"}.get(kind, kind)
        if layer is not None and layer < 0:
            layer += self.model.cfg.n_layers
        return hook_name(kind, layer)

    def _get(self, name: str) -> Tensor:
        try:
            return self.cache_dict[name]
        except KeyError:
            error = UnknownHookError.near(name, self.cache_dict)
            raise UnknownHookError(
                str(error).replace("this model has", "this cache holds").replace("model.hook_dict", "cache.keys()")
            ) from None

    def __contains__(self, key: object) -> bool:
        if isinstance(key, Site):
            return key.hook_name in self.cache_dict
        try:
            return isinstance(key, str | tuple) and self._name(key) in self.cache_dict
        except UnknownHookError:
            return False

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __repr__(self) -> str:
        megabytes = sum(t.numel() * t.element_size() for t in self.cache_dict.values()) / 2**20
        return f"ActivationCache({len(self)} activations, {megabytes:.1f} MiB)"

    def to(self, device: torch.device | str, move_model: bool = False) -> ActivationCache:
        """This cache with its tensors on `device`; the original stays as it was."""
        if move_model:
            self.model.to(device)
        return self._with({name: tensor.to(device) for name, tensor in self.cache_dict.items()})

    def remove_batch_dim(self) -> ActivationCache:
        """This cache without its batch axis.

        Raises:
            LabError: the batch holds more than one prompt.
        """
        if not self.has_batch_dim:
            return self
        tensors = {name: without_batch(tensor, name) for name, tensor in self.cache_dict.items()}
        return type(self)(tensors, self.model, has_batch_dim=False)

    def apply_slice_to_batch_dim(self, batch_slice: int | slice | list[int] | tuple) -> ActivationCache:
        """This cache for some of the prompts; an integer picks one and removes the batch axis, a tuple bounds a slice.

        Raises:
            LabError: there is no batch axis any more.
        """
        if not self.has_batch_dim:
            raise LabError("this cache has no batch axis to slice; slice before remove_batch_dim.")
        tensors = {name: tensor[as_range(batch_slice)] for name, tensor in self.cache_dict.items()}
        return type(self)(tensors, self.model, has_batch_dim=not isinstance(batch_slice, int))

    def stack_activation(self, activation_name: str, layer: int = -1, sublayer_type: str | None = None) -> Tensor:
        """One kind of activation of all layers below `layer` (-1: all), stacked on a new first axis."""
        n_layers = self.model.cfg.n_layers if layer in (-1, None) else layer
        key = (activation_name,) if sublayer_type is None else (activation_name, sublayer_type)
        return torch.stack([self[(key[0], each, *key[1:])] for each in range(n_layers)])

    def _with(self, tensors: dict[str, Tensor]) -> ActivationCache:
        return type(self)(tensors, self.model, self.has_batch_dim)
