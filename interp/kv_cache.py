"""Keys and values of the positions that were already run, so that a run resumes after them."""

from __future__ import annotations

from collections import defaultdict

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class LayerCache:
    """One layer's keys and values; keys are stored rotated when positions are rotary."""

    def __init__(self, k: Tensor | None = None, v: Tensor | None = None) -> None:
        self.k: Float[Tensor, "batch pos kv_head d_head"] | None = k
        self.v: Float[Tensor, "batch pos kv_head d_head"] | None = v

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these keys and values after the earlier ones, and return all of them."""
        self.k = k if self.k is None else torch.cat([self.k, k], 1)
        self.v = v if self.v is None else torch.cat([self.v, v], 1)
        return self.k, self.v


class KeyValueCache:
    """The layers' caches, and which of the positions so far are real tokens (not padding).

    Give an empty one to a forward and the same one to the next, which then takes only the new tokens. One that is
    made with a mask and given the layers' keys and values resumes after the positions of some other run.
    """

    def __init__(self, mask: Bool[Tensor, "batch pos"] | None = None) -> None:
        self.layers: defaultdict[int, LayerCache] = defaultdict(LayerCache)
        self.mask = mask
        self.unpadded = True

    def __len__(self) -> int:
        return 0 if self.mask is None else self.mask.shape[1]

    def append_mask(self, mask: Bool[Tensor, "batch new_pos"], unpadded: bool) -> Bool[Tensor, "batch pos"]:
        """Record which of the new positions are real, and return this for all positions.

        unpadded: known to be all real so far, so that attention needs no mask.
        """
        self.unpadded = unpadded
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], 1)
        return self.mask

    def select_batch(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (an index or Bool tensor)."""
        if self.mask is not None:
            self.mask = self.mask[rows]
        for layer in self.layers.values():
            if layer.k is not None and layer.v is not None:
                layer.k, layer.v = layer.k[rows], layer.v[rows]
