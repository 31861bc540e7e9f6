"""A transformer block: two steps along the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.hook_point import HookPoint
from interp.kv_cache import LayerCache
from models.attention import Bias, Mask, at_positions
from models.attention_module import Attention, Stream
from models.config import TransformerConfig
from models.mlp import make_mlp
from models.norm import NoNorm, Norm, make_norm, make_post_norm


class Block(nn.Module):
    """resid + attention(norm(resid)), then resid + mlp(norm(resid)); in parallel blocks both read the same stream.

    `hook_attn_in`, `hook_q_input`, `hook_k_input`, `hook_v_input` give each head a stream of its own, before
    the norm, when something is attached. A stream that a hook may edit (one not marked `markers.reads_only`) is
    normalised by its own statistics, past the hook points of ln1, which fire once, on the shared stream.
    `hook_attn_in` exists where every head has its own keys and values.
    """

    def __init__(self, cfg: TransformerConfig, layer: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        before, after = cfg.norm_places in ("pre", "both"), cfg.norm_places in ("post", "both")
        self.ln1, self.attn = make_norm(cfg) if before else NoNorm(), Attention(cfg, layer)
        self.ln1_post = make_post_norm(cfg) if after else NoNorm()
        self.hook_resid_pre = HookPoint()
        if cfg.n_kv_heads == cfg.n_heads:
            self.hook_attn_in = HookPoint(on_demand=True)
        self.hook_q_input = HookPoint(on_demand=True)
        self.hook_k_input = HookPoint(on_demand=True)
        self.hook_v_input = HookPoint(on_demand=True)
        self.hook_attn_out = HookPoint()
        if not cfg.attn_only:
            self.ln2, self.mlp = make_norm(cfg) if before else NoNorm(), make_mlp(cfg)
            self.ln2_post = make_post_norm(cfg) if after else NoNorm()
            if not cfg.parallel_attn_mlp:
                self.hook_resid_mid = HookPoint()
            self.hook_mlp_in = HookPoint(on_demand=True)
            self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()
        # TransformerLens 4's logit lens asks for it; that knows of no cap on the logits, and so must not read them.
        self.hook_out_is_single_residual_stream = cfg.output_logits_soft_cap is None

    def forward(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        mask: Mask | None = None,
        rotation: Float[Tensor, "#batch pos 2 half"] | None = None,
        past: LayerCache | None = None,
        finish: Int[Tensor, "batch n"] | None = None,
        known: Mapping[str, Tensor] | None = None,
        bias: Bias | None = None,
    ) -> Float[Tensor, "batch pos_or_n d_model"]:
        """finish: the positions that go on; the others give their keys and values, and end here.

        known: "attn_out", or "q", "k" and "v": activations that need not be computed, as they are before their hooks.
        bias: added to the scores.
        """
        resid_pre = self.hook_resid_pre(resid)
        if known is None:
            query, key, value = self.attention_inputs(resid_pre)
            if finish is not None:
                resid_pre, query = at_positions(resid_pre, finish), at_positions(query, finish)
            attn_out = self.ln1_post(self.attn(query, key, value, mask, rotation, past, finish, bias))
        elif "attn_out" in known:
            attn_out = known["attn_out"]
        else:
            attn_out = self.ln1_post(self.attn.mix(known["q"], known["k"], known["v"], mask, rotation, past, bias=bias))
        return self.added(resid_pre, self.hook_attn_out(attn_out))

    def added(
        self, resid_pre: Float[Tensor, "batch pos d_model"], attn_out: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream that leaves the block: what attention and MLP write, added to the stream that they read."""
        resid_mid = resid_pre + attn_out
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_mid)
        if self.cfg.parallel_attn_mlp:
            return self.hook_resid_post(resid_mid + self.mlp_output(resid_pre))
        resid_mid = self.hook_resid_mid(resid_mid)
        return self.hook_resid_post(resid_mid + self.mlp_output(resid_mid))

    def mlp_output(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(self.hook_mlp_in(resid)))))

    def attention_inputs(self, resid_pre: Float[Tensor, "batch pos d_model"]) -> tuple[Stream, Stream, Stream]:
        """What queries, keys and values are computed from: one normalised stream unless a hook splits it."""
        norm = self.read_through
        normalized = norm(resid_pre)
        shared = resid_pre
        if self.cfg.n_kv_heads == self.cfg.n_heads:
            shared = _fork(self.hook_attn_in, resid_pre, self.cfg.n_heads)
        streams = (
            _fork(self.hook_q_input, shared, self.cfg.n_heads),
            _fork(self.hook_k_input, shared, self.cfg.n_kv_heads),
            _fork(self.hook_v_input, shared, self.cfg.n_kv_heads),
        )
        query, key, value = (normalized if s is resid_pre else norm.unhooked(s) for s in streams)
        return query, key, value

    @property
    def read_through(self) -> Norm:
        """The norm between the stream and attention."""
        return self.ln1


class StreamNormBlock(Block):
    """norm(resid + attention(resid)), then norm(resid + mlp(resid)): the block of 2017 (arXiv:1706.03762) and BERT.

    ln1 and ln2 stand on the stream, after each addition. As in TransformerLens's BertBlock, `hook_resid_mid` and
    `hook_resid_post` are the sums before them, and `hook_normalized_resid_post` is what the next block reads.
    `hook_mlp_in` is what the MLP alone reads, after ln1. An attention-only block has ln1 alone.
    """

    def __init__(self, cfg: TransformerConfig, layer: int = 0) -> None:
        super().__init__(cfg, layer)
        self.ln1 = make_post_norm(cfg)
        if not cfg.attn_only:
            self.ln2 = make_post_norm(cfg)
        self.hook_normalized_resid_post = HookPoint()

    def added(
        self, resid_pre: Float[Tensor, "batch pos d_model"], attn_out: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream that leaves the block, normalised after each addition."""
        resid_mid = resid_pre + attn_out
        if self.cfg.attn_only:
            return self.hook_normalized_resid_post(self.ln1(self.hook_resid_post(resid_mid)))
        normalized = self.ln1(self.hook_resid_mid(resid_mid))
        resid_post = self.hook_resid_post(normalized + self.mlp_output(normalized))
        return self.hook_normalized_resid_post(self.ln2(resid_post))

    def mlp_output(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.hook_mlp_out(self.mlp(self.hook_mlp_in(resid)))

    @property
    def read_through(self) -> Norm:
        return _NO_NORM


_NO_NORM = NoNorm()


def make_block(cfg: TransformerConfig, layer: int = 0) -> Block:
    """The block that `cfg.norm_places` names."""
    return StreamNormBlock(cfg, layer) if cfg.norm_places == "stream" else Block(cfg, layer)


def _fork(point: HookPoint, stream: Stream, heads: int) -> Stream:
    """The stream once per head if the hooks on `point` may change it, else the stream itself."""
    if not point.has_hooks():
        return stream
    per_head = stream if stream.ndim == 4 else repeat(stream, "batch pos model -> batch pos head model", head=heads)
    seen = point(per_head)
    return stream if point.is_only_read() else seen
