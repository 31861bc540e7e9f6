"""What the lab's own models have in common: a config that says where they are, and their own format on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.hooks import HookedModule

if TYPE_CHECKING:
    from models.tokenizers import Tokenizer


class LabModel(HookedModule):
    """A hooked model with a config, a token embedding, and perhaps a tokenizer.

    revision: the version of loaded weights, when it is known.
    """

    revision: str | None = None
    tokenizer: Tokenizer | None
    _cfg: Any
    embed: Any

    @property
    def cfg(self) -> Any:
        """The config, with the current device and dtype."""
        if (self._cfg.device, self._cfg.dtype) != (self.device, self.dtype):
            self._cfg = replace(self._cfg, device=self.device, dtype=self.dtype)
        return self._cfg

    @property
    def device(self) -> torch.device:
        return self.embed.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.W_E.dtype

    def save(self, directory: str | Path) -> Path:
        """Write config.json, model.safetensors and the tokenizer; `load(directory)` gives the same model back.

        Raises:
            LabError: the directory cannot be written to, or holds another model.
        """
        from models.pretrained.native import save

        return save(self, directory)
