"""Multi-head attention with its weights, and every intermediate on a hook point.

Until scores or pattern are hooked the softmax runs inside `scaled_dot_product_attention`; then it is explicit. The two
agree. A mask is as in `models.attention`, but None stands for "causality alone" in a causal model.
"""

from __future__ import annotations

from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.factored_matrix import FactoredMatrix
from interp.hook_point import HookPoint
from interp.kv_cache import LayerCache
from models.attention import (
    Bias,
    Mask,
    at_positions,
    attention_scores,
    causal_mask,
    fused_attention,
    mix_values,
    queries_at,
)
from models.config import TransformerConfig
from models.norm import RMSNorm, WidthNorm
from models.positions import RotaryPositions

Stream = Float[Tensor, "batch pos d_model"] | Float[Tensor, "batch pos _ d_model"]  # _: head or kv_head
Queries = Float[Tensor, "batch n d_model"] | Float[Tensor, "batch n head d_model"]


class Attention(nn.Module):
    """Queries, keys, values, pattern, and each head's output back into the stream.

    Inputs are the normalised stream, one for queries, keys and values each; an input with a head axis gives
    every head its own. Weights live in Linear layout, and `W_Q` [head d_model d_head] and its kin are views.
    """

    def __init__(self, cfg: TransformerConfig, layer: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        width, kv_width = cfg.n_heads * cfg.head_size, cfg.n_kv_heads * cfg.head_size
        self.q = nn.Linear(cfg.d_model, width, bias=cfg.attn_bias)
        self.k = nn.Linear(cfg.d_model, kv_width, bias=cfg.attn_bias)
        self.v = nn.Linear(cfg.d_model, kv_width, bias=cfg.attn_bias)
        self.o = nn.Linear(width, cfg.d_model, bias=cfg.out_bias)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        rotary = cfg.positional_embedding_type == "rotary"
        self.rotary = RotaryPositions(cfg, cfg.layer_type(layer) == "local") if rotary else None
        if self.rotary is not None:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        if cfg.qk_norm is not None:
            whole = cfg.qk_norm == "width"
            self.q_norm = WidthNorm(cfg, width) if whole else RMSNorm(cfg, cfg.head_size)
            self.k_norm = WidthNorm(cfg, kv_width) if whole else RMSNorm(cfg, cfg.head_size)
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z = HookPoint()
        self.hook_result = HookPoint(on_demand=True)

    def forward(
        self,
        query_input: Queries,
        key_input: Stream,
        value_input: Stream,
        mask: Mask | None = None,
        rotation: Float[Tensor, "#batch pos 2 half"] | None = None,
        past: LayerCache | None = None,
        finish: Int[Tensor, "batch n"] | None = None,
        bias: Bias | None = None,
    ) -> Float[Tensor, "batch n d_model"]:
        """finish: the position of each query among the keys' inputs, where there are fewer queries.

        mask, bias: of all queries, also where only some go on.
        """
        q = _project(query_input, self.q, self.cfg.n_heads)
        k = _project(key_input, self.k, self.cfg.n_kv_heads)
        v = _project(value_input, self.v, self.cfg.n_kv_heads)
        return self.mix(q, k, v, mask, rotation, past, finish, bias)

    def mix(
        self,
        q: Float[Tensor, "batch q_pos head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
        mask: Bool[Tensor, "#batch 1 pos k_pos"] | None = None,
        rotation: Float[Tensor, "#batch pos 2 half"] | None = None,
        past: LayerCache | None = None,
        finish: Int[Tensor, "batch q_pos"] | None = None,
        bias: Float[Tensor, "#batch #head pos k_pos"] | None = None,
    ) -> Float[Tensor, "batch q_pos d_model"]:
        """From queries, keys and values to what is written to the stream."""
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if self.cfg.qk_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        n_new = k.shape[1]
        if self.rotary is not None:
            turned = rotation if finish is None or rotation is None else at_positions(rotation, finish)
            q = self.hook_rot_q(self.rotary(q, turned))
            k = self.hook_rot_k(self.rotary(k, rotation))
        if past is not None:
            k, v = past.append(k, v)
        if finish is not None:
            mask = self.mask_of(mask, finish, n_new, k.shape[1])
            bias = None if bias is None else queries_at(bias, finish)
        return self.write(self.hook_z(self.attend(q, k, v, mask, bias)))

    def mask_of(
        self, mask: Mask | None, finish: Int[Tensor, "batch n"], n_queries: int, n_keys: int
    ) -> Bool[Tensor, "batch 1 n k_pos"] | None:
        """The rows of the mask that belong to some of the queries."""
        if mask is None and not self.cfg.causal:
            return None
        mask = causal_mask(n_queries, n_keys, finish.device) if mask is None else mask
        return queries_at(mask, finish)

    def attend(
        self,
        q: Float[Tensor, "batch q_pos head d_head"],
        k: Float[Tensor, "batch k_pos kv_head d_head"],
        v: Float[Tensor, "batch k_pos kv_head d_head"],
        mask: Mask | None,
        bias: Bias | None = None,
    ) -> Float[Tensor, "batch q_pos head d_head"]:
        """z, by the fused kernel or, when scores or pattern are hooked, step by step."""
        n_queries, n_keys = q.shape[1], k.shape[1]
        cfg = self.cfg
        explicit = self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks() or cfg.attn_scores_soft_cap
        # The kernel's own causal mask needs as many keys as queries, and no bias; one query at the end sees all keys.
        own = not explicit and bias is None and n_queries == n_keys
        if mask is None and cfg.causal and n_queries > 1 and not own:
            mask = causal_mask(n_queries, n_keys, q.device)
        if not explicit:
            return fused_attention(q, k, v, mask, cfg.causal and n_queries == n_keys, cfg.attn_scale, bias)
        scores = attention_scores(q, k, mask, cfg.attn_scale, cfg.attn_scores_soft_cap, bias)
        return mix_values(self.hook_pattern(self.hook_attn_scores(scores).softmax(-1)), v)

    def write(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """Each head's z through its part of W_O, summed, plus b_O."""
        if self.hook_result.has_hooks():
            result = self.hook_result(einsum(z, self.W_O, "b pos head d, head d model -> b pos head model"))
            if not self.hook_result.is_only_read():
                return result.sum(2) + self.b_O
        return self.o(rearrange(z, "batch pos head d -> batch pos (head d)"))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return rearrange(self.q.weight, "(head d) model -> head model d", head=self.cfg.n_heads)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return rearrange(self.k.weight, "(head d) model -> head model d", head=self.cfg.n_kv_heads)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return rearrange(self.v.weight, "(head d) model -> head model d", head=self.cfg.n_kv_heads)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return rearrange(self.o.weight, "model (head d) -> head d model", head=self.cfg.n_heads)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q @ W_K^T [head d_model d_model], by which a query weighs keys; shared keys are repeated."""
        return FactoredMatrix(self.W_Q, self._of_each_head(self.W_K).mT)

    @property
    def OV(self) -> FactoredMatrix:
        """W_V @ W_O [head d_model d_model], what a head writes of what it reads; shared values are repeated."""
        return FactoredMatrix(self._of_each_head(self.W_V), self.W_O)

    def _of_each_head(self, weight: Float[Tensor, "kv_head *axes"]) -> Float[Tensor, "head *axes"]:
        return repeat(weight, "kv ... -> (kv group) ...", group=self.cfg.n_heads // self.cfg.n_kv_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return rearrange(_bias(self.q), "(head d) -> head d", head=self.cfg.n_heads)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return rearrange(_bias(self.k), "(head d) -> head d", head=self.cfg.n_kv_heads)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return rearrange(_bias(self.v), "(head d) -> head d", head=self.cfg.n_kv_heads)

    @property
    def b_O(self) -> Float[Tensor, "d_model"]:
        return _bias(self.o)


def _project(stream: Stream, linear: nn.Linear, heads: int) -> Float[Tensor, "batch pos head d_head"]:
    if stream.ndim == 3:
        return rearrange(linear(stream), "batch pos (head d) -> batch pos head d", head=heads)
    weight = rearrange(linear.weight, "(head d) model -> head d model", head=heads)
    own = einsum(stream, weight, "batch pos head model, head d model -> batch pos head d")
    return own + rearrange(_bias(linear), "(head d) -> head d", head=heads)


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
