"""The encoder-decoder of 2017 (Vaswani et al., arXiv:1706.03762), which also holds T5's and BART's weights.

    memory = encoder(source)                      every position of the source sees all of it
    logits = decoder(target, memory)              every position of the target sees what came before, and the memory

Hook names are HookedEncoderDecoder's: `encoder.0.attn.hook_pattern`, `decoder.0.cross_attn.hook_pattern`. The analyses
look at one side at a time, through `decoder_given(source)` and `encoder_given(target)`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import LabError, UnknownHookError
from interp.hook_point import HookPoint
from interp.kv_cache import KeyValueCache
from interp.shares import sides_of
from models.attention import padding_mask
from models.block import make_block
from models.embedding import Embed
from models.encoder_decoder_blocks import make_decoder_block
from models.encoder_decoder_config import EncoderDecoderConfig
from models.encoder_decoder_parts import Positions, ScaledUnembed
from models.encoder_decoder_text import Mask, Source, SourceAndTargetText, SourceMask, Target
from models.initialisation import initialise
from models.inputs import check_ids
from models.lab_model import LabModel
from models.loss import LogitsAndLoss, next_token_loss
from models.norm import NoNorm, make_post_norm
from models.tokenizers import Tokenizer
from models.visibility import mask_and_positions

if TYPE_CHECKING:
    from models.encoder_decoder_views import DecoderGiven, EncoderGiven


class Memory(NamedTuple):
    """What the decoder reads of the sources. real: False for padding; None: all positions are real."""

    states: Float[Tensor, "batch source_pos d_model"]
    real: Bool[Tensor, "batch source_pos"] | None = None

    def repeated(self, times: int) -> Memory:
        """Every source so many times, one after the other."""
        real = None if self.real is None else self.real.repeat_interleave(times, 0)
        return Memory(self.states.repeat_interleave(times, 0), real)

    def of(self, batch: int) -> Memory:
        """The one source for so many targets; nothing is copied."""
        real = None if self.real is None else self.real.expand(batch, -1)
        return Memory(self.states.expand(batch, -1, -1), real)


class DecoderCache:
    """What a generation keeps: keys and values of the target so far, and of the source, which stay as they are."""

    def __init__(self) -> None:
        self.target, self.source = KeyValueCache(), KeyValueCache()


class EncoderDecoder(SourceAndTargetText, LabModel):
    """source tokens -> encoder -> memory; target tokens, memory -> decoder -> logits, with a hook point on every step.

    cfg, tokenizer, device, dtype: as for `models.gpt.GPT`; sources and targets share the vocabulary and its vectors.
    There is no dropout. revision: the version of loaded weights, when it is known.
    """

    def __init__(
        self,
        cfg: EncoderDecoderConfig,
        tokenizer: Tokenizer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._cfg = cfg
        self.tokenizer = tokenizer
        self.embed = Embed(cfg)
        self.hook_embed, self.encoder_positions = HookPoint(), Positions(cfg, cfg.encoder)
        self.encoder = nn.ModuleList(make_block(cfg.encoder, layer) for layer in range(cfg.encoder.n_layers))
        self.encoder_final_ln = make_post_norm(cfg) if cfg.final_norm else NoNorm()
        self.hook_decoder_embed, self.decoder_positions = HookPoint(), Positions(cfg, cfg.decoder)
        self.decoder = nn.ModuleList(make_decoder_block(cfg.decoder, layer) for layer in range(cfg.decoder.n_layers))
        self.decoder_final_ln = make_post_norm(cfg) if cfg.final_norm else NoNorm()
        self.unembed = ScaledUnembed(cfg, self.embed.W_E if cfg.tie_embeddings else None)
        self.setup()
        initialise(self, cfg)
        self.to(device=device or cfg.device, dtype=dtype or cfg.dtype)
        self.eval()

    def forward(
        self,
        input: Source,
        decoder_input: Target | None = None,
        return_type: str | None = "logits",
        attention_mask: SourceMask | None = None,
        decoder_attention_mask: Mask | None = None,
    ) -> Any:
        """Logits Float[Tensor, "batch pos d_vocab"] of the token after each of the target's, the loss, both, or None.

        input: the sources. decoder_input: the targets so far (teacher forcing): ids that begin with the start token, or
        texts, which get it. Sources that are texts are answered for the start token alone where no target is given.
        attention_mask, decoder_attention_mask: True (or 1) for real tokens, padding on either side; texts are padded
        and masked by themselves. The loss is of each token of the target given those before it.

        Raises:
            LabError: no target, ids out of range, more positions than `n_ctx`, a mask of another shape or one that
                hides a whole row, another number of sources than of targets, an unknown return_type.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise LabError(f"return_type={return_type!r}; expected 'logits', 'loss', 'both' or None.")
        if decoder_input is None and isinstance(input, Tensor):
            raise LabError(
                "the decoder has no target; expected decoder_input=, ids that begin with the start token "
                f"({self._cfg.decoder_start_token_id}).  Try model.generate(source), which writes one."
            )
        if decoder_input is None:
            decoder_input = "" if isinstance(input, str) else [""] * len(input)
        target, real = self.target_tokens(decoder_input, decoder_attention_mask)
        resid = self.decode(target, self.encode(input, attention_mask), real)
        logits = self.logits_of(resid)
        if return_type in ("logits", None):
            return logits if return_type == "logits" else None
        loss = next_token_loss(logits, target, real)
        return loss if return_type == "loss" else LogitsAndLoss(logits, loss)

    def encode(self, input: Source, attention_mask: SourceMask | None = None) -> Memory:
        """What the decoder reads of the sources.

        Raises:
            LabError: as `forward`, of the sources.
        """
        tokens, mask = self.source_tokens(input, attention_mask)
        real, positions = mask_and_positions(self, tokens.shape, mask, None)
        length = tokens.shape[1]
        attends = None if real is None else padding_mask(real, length, causal=False)
        resid = self.encoder_positions(self.hook_embed(self.vectors(tokens)), positions)
        bias, rotation = self.encoder_positions.bias(length, length), self._rotation(self.encoder, positions)
        for block in self.encoder:
            resid = block(resid, attends, rotation, bias=bias)
        return Memory(self.encoder_final_ln(resid), real)

    def decode(
        self,
        target: Int[Tensor, "batch pos"],
        memory: Memory,
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: DecoderCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The decoder's stream after its last block. cache: of the positions before; `target` holds the new ones.

        Raises:
            LabError: as `forward`, of the targets.
        """
        if len(target) != len(memory.states):
            raise LabError(f"{len(memory.states)} sources and {len(target)} targets; expected one target for each.")
        past = None if cache is None else cache.target
        real, positions = mask_and_positions(self, target.shape, mask, past)
        new = target.shape[1]
        attends = None if real is None else padding_mask(real, new, causal=True)
        seen = None if memory.real is None else repeat(memory.real, "batch source -> batch 1 pos source", pos=new)
        resid = self.decoder_positions(self.hook_decoder_embed(self.vectors(target)), positions)
        bias = self.decoder_positions.bias(new, new if past is None else len(past))
        rotation = self._rotation(self.decoder, positions)
        for layer, block in enumerate(self.decoder):
            kept = (None, None) if cache is None else (cache.target.layers[layer], cache.source.layers[layer])
            resid = block(resid, memory.states, attends, seen, rotation, bias, *kept)
        return resid

    def vectors(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Each token's own vector.

        Raises:
            LabError: ids outside the vocabulary.
        """
        try:
            return self.embed(tokens)
        except IndexError:
            check_ids(tokens, self._cfg.d_vocab)
            raise

    def logits_of(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of the decoder's final stream."""
        return self.unembed(self.decoder_final_ln(resid))

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        per_token: bool = False,
    ) -> Float[Tensor, "*batch_pos"]:
        """The loss of each target token given those before it, in nats; see `models.loss`."""
        return next_token_loss(logits, tokens, attention_mask, per_token)

    def generate(
        self,
        input: Source,
        max_new_tokens: int = 20,
        temperature: float | int = 0.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        stop_tokens: Collection[int] | None = None,
        seed: int | None = None,
        attention_mask: SourceMask | None = None,
        num_beams: int = 1,
        length_penalty: float | int = 1.0,
    ) -> Any:
        """What the decoder writes for each source, as text or ids as given; see `models.encoder_decoder_generation`.

        Raises:
            LabError: as there.
        """
        from models.encoder_decoder_generation import generate

        sampling = (temperature, top_k, top_p, stop_tokens, seed)
        return generate(self, input, max_new_tokens, *sampling, attention_mask, num_beams, length_penalty)

    def decoder_given(self, source: Any, attention_mask: Tensor | None = None) -> DecoderGiven:
        """The decoder as a model of target tokens, for one source; see `models.encoder_decoder_views`.

        Raises:
            LabError: more than one source, or as `encode`.
        """
        from models.encoder_decoder_views import DecoderGiven

        return DecoderGiven(self, source, attention_mask)

    def encoder_given(self, target: Any) -> EncoderGiven:
        """The encoder as a model of source tokens, for one target so far; see `models.encoder_decoder_views`.

        Raises:
            LabError: more than one target, or ids out of range.
        """
        from models.encoder_decoder_views import EncoderGiven

        return EncoderGiven(self, target)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.unembed.b_U

    def _unknown_hook(self, name: str) -> UnknownHookError:
        return UnknownHookError(f"{super()._unknown_hook(name)}{sides_of(self) if name.startswith('blocks.') else ''}")

    def _rotation(self, blocks: nn.ModuleList, positions: Tensor) -> Float[Tensor, "#batch pos 2 half"] | None:
        """How queries and keys turn, where positions are rotary."""
        first: Any = blocks[0]
        rotary = first.attn.rotary
        return None if rotary is None else rotary.rotation(positions, self.dtype)
