"""`EncoderDecoderConfig`: a `TransformerConfig` for two stacks of blocks, and what they share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from interp.errors import LabError
from models.config import TransformerConfig


@dataclass(frozen=True)
class EncoderDecoderConfig(TransformerConfig):
    """The shape of an encoder-decoder. What is said of blocks holds on both sides; `encoder` and `decoder` give each.

    n_layers, n_heads, d_mlp: of the encoder. n_decoder_layers, n_decoder_heads, d_mlp_decoder: by default the same;
    the decoder's heads together are as wide as the encoder's.
    n_ctx: the longest source and the longest target. The vocabulary and the embedding matrix are shared.
    relative_attention_num_buckets, relative_attention_max_distance: T5's relative positions (see
    `models.relative_positions`), on the self-attention of both sides; None for none.
    embed_norm: a norm on the embeddings. final_norm: a norm after the last block of each side.
    unembed_scale: what the final stream is multiplied with before the unembedding.
    decoder_start_token_id: what a target begins with. eos_token_id: what ends it; None takes the tokenizer's.
    pad_token_id: what fills up shorter rows; None takes the tokenizer's, or else the start token.

    Raises:
        LabError: sizes that contradict each other, or parts that such a model does not have.
    """

    attention_dir: str = "bidirectional"
    positional_embedding_type: str = "sinusoidal"
    n_decoder_layers: int | None = None
    n_decoder_heads: int | None = None
    d_mlp_decoder: int | None = None
    relative_attention_num_buckets: int | None = None
    relative_attention_max_distance: int = 128
    embed_norm: bool = False
    final_norm: bool = True
    unembed_scale: float | None = None
    decoder_start_token_id: int = 0
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    model_name: str = "encoder-decoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in (("n_decoder_layers", self.n_layers), ("n_decoder_heads", self.n_heads)):
            self._default(name, default)
        self._default("d_mlp_decoder", self.mlp_size)
        self._check_parts()
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.d_vocab:
                raise LabError(f"{name}={token}; expected a token id, 0 to {self.d_vocab - 1}.")
        self.decoder  # noqa: B018 built here so that sizes which do not fit it are refused now

    def _default(self, name: str, value: int) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)
        self._check_positive(name)

    def _check_parts(self) -> None:
        if self.attention_dir != "bidirectional":
            raise LabError(f"attention_dir={self.attention_dir!r}; expected 'bidirectional', as the encoder attends.")
        if self.attn_types is not None or self.parallel_attn_mlp or self.attn_only:
            raise LabError("an encoder-decoder has no local layers and no parallel or attention-only blocks.")
        if self.norm_places == "both" or self.norm_places == "post":
            raise LabError(f"norm_places={self.norm_places!r}; expected 'pre' or 'stream' in an encoder-decoder.")
        buckets = self.relative_attention_num_buckets
        if buckets is not None and (buckets < 4 or buckets % 4):
            raise LabError(
                f"relative_attention_num_buckets={buckets}; expected a multiple of 4, two halves a direction."
            )
        if buckets is not None and self.relative_attention_max_distance <= buckets // 2:
            raise LabError(
                f"relative_attention_max_distance={self.relative_attention_max_distance}; expected more than "
                f"{buckets // 2}, the distances that have a bucket each."
            )

    @property
    def encoder(self) -> TransformerConfig:
        """The encoder's blocks."""
        return self._side()

    @property
    def decoder(self) -> TransformerConfig:
        """The decoder's blocks, whose self-attention is causal."""
        width = self.n_heads * self.head_size
        if self.n_decoder_heads is None or width % self.n_decoder_heads:
            raise LabError(f"n_decoder_heads={self.n_decoder_heads} does not divide the width of all heads, {width}.")
        return self._side(
            n_layers=self.n_decoder_layers,
            n_heads=self.n_decoder_heads,
            d_head=width // self.n_decoder_heads,
            d_mlp=self.d_mlp_decoder,
            attention_dir="causal",
        )

    def _side(self, **own: Any) -> TransformerConfig:
        shared = {field.name: getattr(self, field.name) for field in fields(TransformerConfig)}
        return TransformerConfig(**shared | own)
