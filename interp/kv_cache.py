"""Keys and values of the positions that were already run, so that a run resumes after them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class LayerCache:
    """One layer's keys and values; keys are stored rotated when positions are rotary."""

    def __init__(self, k: Tensor | None = None, v: Tensor | None = None) -> None:
        self.k: Float[Tensor, "batch pos kv_head d_head"] | None = k
        self.v: Float[Tensor, "batch pos kv_head d_head"] | None = v
        self.frozen = False

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these keys and values after the earlier ones unless frozen, and return all of them."""
        k = k if self.k is None else torch.cat([self.k, k], 1)
        v = v if self.v is None else torch.cat([self.v, v], 1)
        if not self.frozen:
            self.k, self.v = k, v
        return k, v


class KeyValueCache:
    """The layers' caches, and which of the positions so far are real tokens (not padding).

    Give an empty one to a forward and the same one to the next, which then takes only the new tokens. One that is
    made with a mask and given the layers' keys and values resumes after the positions of some other run.
    """

    def __init__(self, mask: Bool[Tensor, "batch pos"] | None = None) -> None:
        self.layers: defaultdict[int, LayerCache] = defaultdict(LayerCache)
        self.mask = mask
        self.unpadded = True
        self.frozen = False

    @classmethod
    def init_cache(cls, cfg: Any = None, device: Any = None, batch_size: int = 1) -> KeyValueCache:
        """An empty cache; HookedTransformer's way to ask for one. It grows with what it is given, so all is ignored."""
        return cls()

    def freeze(self) -> None:
        """From now on read only: a forward sees what was kept, and keeps nothing itself."""
        self._set_frozen(True)

    def unfreeze(self) -> None:
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        self.frozen = frozen
        for layer in self.layers.values():
            layer.frozen = frozen

    def __len__(self) -> int:
        return 0 if self.mask is None else self.mask.shape[1]

    def append_mask(self, mask: Bool[Tensor, "batch new_pos"], unpadded: bool) -> Bool[Tensor, "batch pos"]:
        """Record which of the new positions are real, and return this for all positions.

        unpadded: known to be all real so far, so that attention needs no mask.
        """
        whole = mask if self.mask is None else torch.cat([self.mask, mask], 1)
        if not self.frozen:
            self.unpadded, self.mask = unpadded, whole
        return whole

    def select_batch(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (an index or Bool tensor)."""
        if self.mask is not None:
            self.mask = self.mask[rows]
        for layer in self.layers.values():
            if layer.k is not None and layer.v is not None:
                layer.k, layer.v = layer.k[rows], layer.v[rows]
