"""The weights of a `HookedTransformer`: under HookedTransformer's names, processed in place, drawn as there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from models.gpt import GPT
from models.hooked_transformer.weights import from_hooked, to_hooked, unmatched
from models.processing import process_weights


class Keys(NamedTuple):
    """Names that `load_state_dict` could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class HookedState(GPT):
    """The part of `HookedTransformer` that has to do with its weights."""

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """The weights under HookedTransformer's names, in its shapes; as a part of another module under our own."""
        if args or prefix or kwargs.get("destination") is not None:
            return super().state_dict(*args, prefix=prefix, **kwargs)
        return to_hooked(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Weights under HookedTransformer's names; its buffers (`attn.mask`, `attn.IGNORE`, ...) are left out.

        Raises:
            LabError: tensors are missing or unexpected (unless strict=False, which returns their names), or of other
                shapes; nothing was changed then.
        """
        nn.Module.load_state_dict(self, from_hooked(state_dict, self.cfg, strict), strict=False, assign=assign)
        return Keys(*unmatched(state_dict, self.cfg))

    def load_and_process_state_dict(self, state_dict: Mapping[str, Tensor], **steps: bool) -> None:
        """`load_state_dict`, then `process_weights_`."""
        self.load_state_dict(state_dict)
        self.process_weights_(**steps)

    def process_weights_(self, **steps: bool) -> None:
        """The weights rewritten in place with the same predictions; see `models.processing.process_weights`."""
        process_weights(self, **steps)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights: every matrix normal(0, cfg.init_range), every bias 0, every gain as it is.

        From `cfg.seed`, or torch's own state without one. The draws are not HookedTransformer's, their law is.
        """
        cfg = self.cfg
        if self.device.type == "meta":
            return
        source = None if cfg.seed is None else torch.Generator(self.device).manual_seed(cfg.seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, cfg.init_range, generator=source)
            elif name.endswith("bias"):
                parameter.zero_()

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        return self._of_each_head(super().W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        return self._of_each_head(super().W_V)

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        return self._of_each_head(super().b_K)

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        return self._of_each_head(super().b_V)

    def _of_each_head(self, stacked: Float[Tensor, "layer kv_head *axes"]) -> Float[Tensor, "layer head *axes"]:
        return repeat(stacked, "layer kv ... -> layer (kv group) ...", group=self.cfg.n_heads // self.cfg.n_kv_heads)

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_and_n_ctx d_model"]:
        return torch.cat([self.W_E, self.W_pos])
