"""The hooks with which `run_with_cache` keeps activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import LabError
from interp.markers import reads_only
from interp.sites import POSITION_AXES, axes_of


class Collector:
    """Keeps activations as they pass: detached, sliced by position, on the device asked for.

    Copies from a GPU to host memory go to pinned buffers without waiting; `finish()` waits once.
    """

    def __init__(
        self,
        device: torch.device | str | None,
        remove_batch_dim: bool,
        pos_slice: slice | int | Sequence[int] | None,
        tensors: dict[str, Tensor] | None = None,
    ) -> None:
        self.device = None if device is None else torch.device(device)
        self.remove_batch_dim = remove_batch_dim
        self.pos_slice = pos_slice
        self.tensors: dict[str, Tensor] = {} if tensors is None else tensors
        self._streams: set[torch.cuda.Stream] = set()

    def keep(self, key: str, name: str | None = None) -> Callable[..., None]:
        """A hook that keeps what passes under `key`; `name` is the hook point's name when it differs."""
        name = name or key

        @reads_only
        def hook(tensor: Tensor, hook: Any = None) -> None:
            self.tensors[key] = self._kept(tensor.detach(), name)

        return hook

    def finish(self) -> dict[str, Tensor]:
        """The kept tensors, every copy complete."""
        for stream in self._streams:
            stream.synchronize()
        self._streams.clear()
        return self.tensors

    def _kept(self, tensor: Tensor, name: str) -> Tensor:
        if self.pos_slice is not None:
            tensor = _slice_positions(tensor, name, as_range(self.pos_slice))
        if self.remove_batch_dim:
            tensor = without_batch(tensor, name)
        if self.device is None or self.device == tensor.device:
            return tensor
        if tensor.is_cuda and self.device.type == "cpu":
            return self._to_host(tensor)
        return tensor.to(self.device, non_blocking=True)

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        self._streams.add(torch.cuda.current_stream(tensor.device))
        return host


def without_batch(tensor: Tensor, name: str) -> Tensor:
    """Drop a batch axis of size 1.

    Raises:
        LabError: the batch holds more than one prompt.
    """
    if tensor.shape[0] != 1:
        raise LabError(
            f"cannot remove the batch axis of {name!r}: it holds {tensor.shape[0]} prompts, expected 1; "
            "index the cached tensors instead."
        )
    return tensor[0]


def as_range(index: Any) -> Any:
    """A tuple as the slice that it bounds, as HookedTransformer has it: (1, 3) is 1:3. Anything else as it is."""
    return slice(*index) if isinstance(index, tuple) else index


def _slice_positions(tensor: Tensor, name: str, pos: slice | int | Sequence[int]) -> Tensor:
    """The chosen positions, in storage of their own so that the rest can be freed; one position keeps its axis."""
    axes = axes_of(name)
    axis = next((i for i, a in enumerate(axes) if a in POSITION_AXES), None) if axes else None
    if axis is None:
        return tensor
    if isinstance(pos, slice):
        return tensor[(slice(None),) * axis + (pos,)].clone()
    wanted = torch.as_tensor([pos] if isinstance(pos, int) else pos, device=tensor.device)
    return tensor[(slice(None),) * axis + (wanted,)]
