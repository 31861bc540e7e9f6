"""The two ends of an encoder-decoder: from vectors of tokens into the first block, and from the last to logits."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.hook_point import HookPoint
from models.config import TransformerConfig
from models.embedding import Unembed
from models.encoder_decoder_config import EncoderDecoderConfig
from models.norm import NoNorm, make_post_norm
from models.positions import LearnedPositions, SinusoidalPositions
from models.relative_positions import RelativePositionBias


class Positions(nn.Module):
    """Where the tokens of one side stand: a vector added to each token's, and a bias on scores by distance.

    Either may be absent. ln: the norm on the sum (BART). hook_pos_embed: [batch pos d_model].
    """

    def __init__(self, cfg: EncoderDecoderConfig, side: TransformerConfig) -> None:
        super().__init__()
        kinds = {"learned": LearnedPositions, "sinusoidal": SinusoidalPositions}
        self.pos_embed = kinds[cfg.positional_embedding_type](side) if cfg.positional_embedding_type in kinds else None
        if self.pos_embed is not None:
            self.hook_pos_embed = HookPoint()
        self.ln = make_post_norm(cfg) if cfg.embed_norm else NoNorm()
        self.rel_pos_bias = None
        if cfg.relative_attention_num_buckets is not None:
            buckets = cfg.relative_attention_num_buckets, cfg.relative_attention_max_distance
            self.rel_pos_bias = RelativePositionBias(*buckets, side.n_heads, bidirectional=not side.causal)

    def forward(
        self, embed: Float[Tensor, "batch pos d_model"], positions: Int[Tensor, "#batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream at the input of the first block."""
        if self.pos_embed is not None:
            embed = embed + self.hook_pos_embed(self.pos_embed(positions).expand(embed.shape).to(embed.dtype))
        return self.ln(embed)

    def bias(self, n_queries: int, n_keys: int) -> Float[Tensor, "1 head q_pos k_pos"] | None:
        """What is added to the scores of every layer; the queries are the last of the positions."""
        return None if self.rel_pos_bias is None else self.rel_pos_bias(n_queries, n_keys)


class ScaledUnembed(Unembed):
    """Logits from the normalised stream times `unembed_scale`; `W_U` says what the stream itself is multiplied with.

    T5 has 1/sqrt(d_model) where the embedding matrix unembeds (Raffel et al. 2020, arXiv:1910.10683).
    """

    def __init__(self, cfg: EncoderDecoderConfig, weight: nn.Parameter | None = None) -> None:
        super().__init__(cfg, weight)
        self.scale = cfg.unembed_scale

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        return super().forward(x if self.scale is None else x * self.scale)

    def at(self, x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch n"]) -> Float[Tensor, "batch pos n"]:
        return super().at(x if self.scale is None else x * self.scale, tokens)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return super().W_U if self.scale is None else super().W_U * self.scale
