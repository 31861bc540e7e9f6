"""Devices and dtypes as a user names them, checked before any work."""

from __future__ import annotations

import torch

from interp.errors import LabError
from models.config import dtype_named


def available(device: torch.device | str | None) -> torch.device:
    """The device that was asked for; None is the CPU.

    Raises:
        LabError: no such device on this machine.
    """
    try:
        wanted = torch.device(device or "cpu")
    except RuntimeError as error:
        raise LabError(f"unknown device {device!r}; expected 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    if wanted.type == "cuda" and (not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count()):
        raise LabError(f"device {str(device)!r} is not there: torch sees {_gpus()} on this machine; try 'cpu'.")
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise LabError(f"device {str(device)!r} is not there on this machine; try 'cpu'.")
    return wanted


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype, or the dtype of that name.

    Raises:
        LabError: not one that a model runs in.
    """
    return dtype_named(str(dtype).removeprefix("torch."))


def _gpus() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return "no CUDA device" if count == 0 else f"{count} CUDA device{'s' if count > 1 else ''}"
