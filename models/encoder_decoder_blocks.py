"""The decoder's block: self-attention, attention to the source, MLP (Vaswani et al. 2017, arXiv:1706.03762, §3.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hook_point import HookPoint
from interp.kv_cache import LayerCache
from models.attention import Bias, Mask
from models.attention_module import Attention
from models.block import Block
from models.config import TransformerConfig
from models.norm import NoNorm, Norm, make_norm, make_post_norm

Stream = Float[Tensor, "batch pos d_model"]
States = Float[Tensor, "batch source_pos d_model"]


class CrossAttention(Attention):
    """Queries of the target, keys and values of the source's states: a pattern [batch head q_pos source_pos]."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(replace(cfg, attention_dir="bidirectional", positional_embedding_type="none", qk_norm=None))

    def forward(  # type: ignore[override]
        self,
        query_input: Stream,
        memory: States,
        mask: Bool[Tensor, "batch 1 pos source_pos"] | None = None,
        kept: LayerCache | None = None,
    ) -> Stream:
        """kept: where the source's keys and values stay from one step of a generation to the next."""
        q = self.hook_q(rearrange(self.q(query_input), "batch pos (head d) -> batch pos head d", head=self.cfg.n_heads))
        k, v = self._keys_and_values(memory, kept)
        return self.write(self.hook_z(self.attend(q, self.hook_k(k), self.hook_v(v), mask)))

    def _keys_and_values(self, memory: States, kept: LayerCache | None) -> tuple[Tensor, Tensor]:
        """As they are before their hooks."""
        if kept is not None and kept.k is not None and kept.v is not None:
            return kept.k, kept.v
        heads = self.cfg.n_kv_heads
        k, v = (rearrange(w(memory), "batch pos (head d) -> batch pos head d", head=heads) for w in (self.k, self.v))
        return (k, v) if kept is None else kept.append(k, v)


class DecoderBlock(Block):
    """resid + attention, resid + cross-attention, resid + MLP, each reading the stream through a norm.

    ln1, ln2 and ln3 belong to the three steps, and hook_resid_mid, hook_resid_mid_cross and hook_resid_post are the
    sums after them, as in HookedEncoderDecoder. hook_cross_attn_in: what cross-attention alone reads of the target,
    before its norm [batch pos d_model].
    """

    def __init__(self, cfg: TransformerConfig, layer: int = 0) -> None:
        super().__init__(cfg, layer)
        self.ln2, self.ln3 = make_norm(cfg), self.ln2
        self.cross_attn = CrossAttention(cfg)
        self.hook_cross_attn_in = HookPoint(on_demand=True)
        self.hook_cross_attn_out, self.hook_resid_mid_cross = HookPoint(), HookPoint()

    def forward(  # type: ignore[override]
        self,
        resid: Stream,
        memory: States,
        mask: Mask | None = None,
        seen: Bool[Tensor, "batch 1 pos source_pos"] | None = None,
        rotation: Float[Tensor, "#batch pos 2 half"] | None = None,
        bias: Bias | None = None,
        past: LayerCache | None = None,
        kept: LayerCache | None = None,
    ) -> Stream:
        """mask, rotation, bias, past: of the self-attention. seen: which of the source each query may look at."""
        resid_pre = self.hook_resid_pre(resid)
        query, key, value = self.attention_inputs(resid_pre)
        attn_out = self.hook_attn_out(self.attn(query, key, value, mask, rotation, past, bias=bias))
        resid_mid = self.after(self.ln1, self.hook_resid_mid(resid_pre + attn_out))

        asking = self.before(self.ln2, self.hook_cross_attn_in(resid_mid))
        cross_attn_out = self.hook_cross_attn_out(self.cross_attn(asking, memory, seen, kept))
        resid_mid_cross = self.after(self.ln2, self.hook_resid_mid_cross(resid_mid + cross_attn_out))

        mlp_out = self.hook_mlp_out(self.mlp(self.before(self.ln3, self.hook_mlp_in(resid_mid_cross))))
        return self.after(self.ln3, self.hook_resid_post(resid_mid_cross + mlp_out))

    def before(self, norm: Norm, resid: Stream) -> Stream:
        """What a step reads of the stream."""
        return norm(resid)

    def after(self, norm: Norm, resid: Stream) -> Stream:
        """The stream that goes on from a sum."""
        return resid


class StreamNormDecoderBlock(DecoderBlock):
    """The decoder's block of 2017: ln1, ln2 and ln3 stand on the stream, each after a sum, as in `StreamNormBlock`.

    hook_normalized_resid_post: what the next block reads.
    """

    def __init__(self, cfg: TransformerConfig, layer: int = 0) -> None:
        super().__init__(cfg, layer)
        self.ln1, self.ln2, self.ln3 = make_post_norm(cfg), make_post_norm(cfg), make_post_norm(cfg)
        self.hook_normalized_resid_post = HookPoint()

    def forward(self, *inputs: Any, **more: Any) -> Stream:
        return self.hook_normalized_resid_post(super().forward(*inputs, **more))

    @property
    def read_through(self) -> Norm:
        return _NO_NORM

    def before(self, norm: Norm, resid: Stream) -> Stream:
        return resid

    def after(self, norm: Norm, resid: Stream) -> Stream:
        return norm(resid)


_NO_NORM = NoNorm()


def make_decoder_block(cfg: TransformerConfig, layer: int = 0) -> DecoderBlock:
    """The block that `cfg.norm_places` names."""
    return (StreamNormDecoderBlock if cfg.norm_places == "stream" else DecoderBlock)(cfg, layer)
