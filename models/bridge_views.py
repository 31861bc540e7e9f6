"""The config and the weights of a `TransformerBridge` in the lab's words, and where its arithmetic departs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.errors import LabError
from models.bridge_points import attached
from models.config import TransformerConfig


@dataclass(frozen=True)
class BridgeConfig(TransformerConfig):
    """What a bridge says of its model. Nothing is checked: the model is there, whatever its parts are called."""

    def __post_init__(self) -> None:
        self._derive()


def config_of(inner: Any) -> BridgeConfig:
    """The bridge's config in the lab's words."""
    cfg, block = inner.cfg, inner.blocks[0]
    norm = str(cfg.normalization_type)
    before, after = hasattr(block, "ln1"), hasattr(block, "ln1_post")
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
        norm_places="pre" if not after else "both" if before else "post",
        eps=cfg.eps,
        attn_scores_soft_cap=_cap(cfg.attn_scores_soft_cap),
        output_logits_soft_cap=_cap(cfg.output_logits_soft_cap),
        positional_embedding_type=positions,
        d_vocab_out=cfg.d_vocab_out,
        default_prepend_bos=cfg.default_prepend_bos,
        model_name=cfg.model_name,
    )


def _cap(value: Any) -> float | None:
    """TransformerLens writes -1 for no cap."""
    return float(value) if value is not None and value > 0 else None


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
    names = ("ln1", "ln1_post", "ln2", "ln2_post")
    norms = {name: BridgeNorm(getattr(block, name)) if hasattr(block, name) else None for name in names}
    return SimpleNamespace(attn=_Weights(block.attn, attn, "W_O"), mlp=_Weights(block.mlp, mlp, "W_out"), **norms)


class BridgeNorm:
    """A norm of the wrapped model, and the gain that it was found to multiply with.

    Some norms multiply with 1 + w. What their class or config says of it is not relied on: both are held to what the
    norm does. known: whether one of them is what it does.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        offsets = [offset for offset in (0.0, 1.0) if _multiplies_with(inner, offset)]
        self.known, self._offset = bool(offsets), offsets[0] if offsets else 0.0

    def __call__(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        return self._inner(x)

    @property
    def w(self) -> Float[Tensor, "d_model"] | None:
        return getattr(self._inner, "w", None)

    @property
    def b(self) -> Float[Tensor, "d_model"] | None:
        return getattr(self._inner, "b", None)

    @property
    def gain(self) -> Float[Tensor, "d_model"] | None:
        """What the normalised stream is multiplied with, in float32 at least; None for nothing."""
        if self.w is None:
            return None
        return self.w.to(torch.promote_types(self.w.dtype, torch.float32)) + self._offset


@torch.no_grad()
def _multiplies_with(norm: Any, offset: float) -> bool:
    """Whether the norm gives normalised · (w + offset) + b for one vector."""
    w, b = getattr(norm, "w", None), getattr(norm, "b", None)
    if w is None:
        return offset == 0.0
    normalized: list[Tensor] = []
    with attached(norm.hook_normalized, lambda x, hook: normalized.append(x)):
        given = norm(torch.linspace(-1.0, 2.0, len(w), device=w.device, dtype=w.dtype)[None, None])
    return bool(normalized) and _close(normalized[0] * (w + offset) + (0 if b is None else b), given)


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
def departures(model: Any) -> dict[str, str]:
    """What the wrapped architecture adds to the arithmetic that analyses rely on, in words; by a run on a few tokens.

    Some scale what attention writes, or the logits: there the weights alone no longer say what a head contributed.
    Keys: "points" that are missing, "norms", "heads", "neurons", the "stream", the "logits".
    """
    tokens = torch.arange(3, device=model.device)[None] % model.cfg.d_vocab
    layer = model.cfg.n_layers - 1
    z, written = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out"
    streams = [f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_mlp_out", f"blocks.{layer}.hook_resid_post"]
    missing = [name for name in (z, written, *streams) if name not in model.hook_dict]
    if missing:
        return {"points": f"it has no {', '.join(missing)}, so what reads them does not work"}
    post, scales = f"blocks.{layer}.mlp.hook_post", [name for name in model.hook_dict if name.endswith("hook_scale")]
    names = [z, written, *streams, *scales, *([post] if post in model.hook_dict else [])]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    block, found = model.blocks[layer], {}
    if not all(norm.known for norm in (model.ln_final, block.ln1, block.ln1_post, block.ln2, block.ln2_post) if norm):
        found["norms"] = "its norms multiply with something else than their weight, so attribution does not add up"

    def reaches(part: str, total: Tensor, bias: Tensor) -> Tensor:
        norm = cache.post_norm(layer, part)
        total = total + bias
        return total if norm is None else norm.part(total) + (0 if norm.bias is None else norm.bias)

    heads = einsum(cache[z], block.attn.W_O, "b pos head d, head d model -> b pos model")
    if not _close(reaches("attn", heads, block.attn.b_O), cache[written]):
        found["heads"] = "it rescales what heads write, so their outputs and attribution to heads do not add up"
    pre, mlp_out, after = (cache[name] for name in streams)
    if post in cache:
        neurons = einsum(cache[post], block.mlp.W_out, "b pos mlp, mlp model -> b pos model")
        if not _close(reaches("mlp", neurons, block.mlp.b_out), mlp_out):
            found["neurons"] = "it rescales what neurons write, so attribution to neurons does not add up"
    if not _close(pre + cache[written] + mlp_out, after):
        found["stream"] = "its stream is no sum of attention and MLP outputs, so decompositions do not add up"
    if not _close(model.logits_of(model.ln_final(after)), logits):
        found["logits"] = "it rescales the logits, so the lens and attribution miss that step"
    return found


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(b.dtype).eps ** 0.5  # far above rounding, far below any rescaling worth the name
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())
