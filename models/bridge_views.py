"""The config and the weights of a `TransformerBridge` in the lab's words, and where its arithmetic departs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from interp.errors import LabError
from models.config import TransformerConfig


@dataclass(frozen=True)
class BridgeConfig(TransformerConfig):
    """What a bridge says of its model. Nothing is checked: the model is there, whatever its parts are called."""

    def __post_init__(self) -> None:
        self._derive()


def config_of(cfg: Any) -> BridgeConfig:
    """The bridge's config in the lab's words."""
    norm = str(cfg.normalization_type)
    positions = {"standard": "learned", "rotary": "rotary"}.get(cfg.positional_embedding_type, "none")
    return BridgeConfig(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_model=cfg.d_model,
        d_vocab=cfg.d_vocab,
        n_ctx=cfg.n_ctx,
        d_head=cfg.d_head,
        d_mlp=cfg.d_mlp,
        n_key_value_heads=cfg.n_key_value_heads,
        act_fn=cfg.act_fn,
        gated_mlp=cfg.gated_mlp,
        parallel_attn_mlp=cfg.parallel_attn_mlp,
        normalization_type="RMS" if norm.startswith("RMS") else "LN" if norm.startswith("LN") else None,
        eps=cfg.eps,
        positional_embedding_type=positions,
        d_vocab_out=cfg.d_vocab_out,
        default_prepend_bos=cfg.default_prepend_bos,
        model_name=cfg.model_name,
    )


def weights_of(block: Any, cfg: TransformerConfig) -> SimpleNamespace:
    """A block's norms and weights.

    Raises:
        LabError: a block without attention.
    """
    if not hasattr(block, "attn") or not hasattr(block, "mlp"):
        raise LabError(f"{cfg.model_name!r} has blocks without attention or MLP; expected a plain transformer.")
    heads, kv_heads = (cfg.n_heads, cfg.head_size), (cfg.n_kv_heads, cfg.head_size)
    attn = {"b_Q": heads, "b_K": kv_heads, "b_V": kv_heads, "b_O": (cfg.d_model,)}
    mlp = {"b_in": (cfg.mlp_size,), "b_out": (cfg.d_model,)}
    return SimpleNamespace(
        ln1=getattr(block, "ln1", None),
        attn=_Weights(block.attn, attn, "W_O"),
        ln2=getattr(block, "ln2", None),
        mlp=_Weights(block.mlp, mlp, "W_out"),
    )


class _Weights:
    """The weights of one component, where a bias that the checkpoint lacks reads as zeros."""

    def __init__(self, part: Any, biases: Mapping[str, tuple[int, ...]], like: str) -> None:
        self._part, self._biases, self._like = part, biases, like

    def __getattr__(self, name: str) -> Tensor:
        value = getattr(self._part, name, None)
        if value is not None:
            return value
        if name not in self._biases:
            raise AttributeError(f"this model has no {name}.")
        return getattr(self._part, self._like).new_zeros(self._biases[name])


@torch.no_grad()
def departures(model: Any) -> list[str]:
    """What the wrapped architecture adds to the arithmetic that analyses rely on, in words; by a run on a few tokens.

    Some normalise or scale what attention writes, or the logits: there the weights alone no longer say what a
    head contributed.
    """
    tokens = torch.arange(3, device=model.device)[None] % model.cfg.d_vocab
    layer = model.cfg.n_layers - 1
    z, written = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out"
    streams = [f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_mlp_out", f"blocks.{layer}.hook_resid_post"]
    missing = [name for name in (z, written, *streams) if name not in model.hook_dict]
    if missing:
        return [f"it has no {', '.join(missing)}, so what reads them does not work"]
    logits, cache = model.run_with_cache(tokens, names_filter=[z, written, *streams])
    pre, mlp_out, post = (cache[name] for name in streams)
    attn = model.blocks[layer].attn
    found = []
    heads = einsum(cache[z], attn.W_O, "b pos head d, head d model -> b pos model") + attn.b_O
    if not _close(heads, cache[written]):
        found.append("it rescales what heads write, so their outputs and attribution to heads do not add up")
    if not _close(pre + cache[written] + mlp_out, post):
        found.append("its stream is no sum of attention and MLP outputs, so decompositions do not add up")
    if not _close(model.unembed(model.ln_final(post)), logits):
        found.append("it rescales the logits, so the lens and attribution miss that step")
    return found


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(b.dtype).eps ** 0.5  # far above rounding, far below any rescaling worth the name
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())
