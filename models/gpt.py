"""The decoder-only transformer that everything else is built around."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import LabError
from interp.hook_point import HookPoint
from interp.kv_cache import KeyValueCache
from models.attention import at_positions
from models.block import make_block
from models.config import TransformerConfig
from models.embedding import Embed, Unembed
from models.initialisation import initialise
from models.inputs import check_ids, check_returned, layers_between, mask_input, stream_input, token_input
from models.lab_model import LabModel
from models.loss import LogitsAndLoss, next_token_loss
from models.norm import make_final_norm
from models.positions import LearnedPositions, SinusoidalPositions
from models.text import Input, TextMethods
from models.tokenizers import Tokenizer
from models.visibility import mask_and_positions, views_of
from models.weights import StackedWeights


class GPT(StackedWeights, TextMethods, LabModel):
    """tokens -> embedding (+ positions) -> blocks -> norm -> logits, with a hook point on every step.

    cfg: the shape. tokenizer: for text input; without one the model takes ids. device, dtype: of the weights.
    Fresh weights are drawn as GPT-2's (Radford et al. 2019, §2.3), from `cfg.seed` when it is set.
    There is no dropout, so training and evaluation mode compute the same; a new model is in evaluation mode.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        tokenizer: Tokenizer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._cfg = cfg
        self.tokenizer = tokenizer
        self.embed, self.hook_embed = Embed(cfg), HookPoint()
        if cfg.positional_embedding_type in ("learned", "sinusoidal"):
            learned = cfg.positional_embedding_type == "learned"
            self.pos_embed = LearnedPositions(cfg) if learned else SinusoidalPositions(cfg)
            self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(make_block(cfg, layer) for layer in range(cfg.n_layers))
        self.ln_final = make_final_norm(cfg)
        self.unembed = Unembed(cfg, self.embed.W_E if cfg.tie_embeddings else None)
        self.setup()
        initialise(self, cfg)
        self.to(device=device or cfg.device, dtype=dtype or cfg.dtype)
        self.eval()

    def forward(
        self,
        input: Input | Float[Tensor, "batch pos d_model"],
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KeyValueCache | None = None,
        finish: Int[Tensor, "batch n"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Logits Float[Tensor, "batch pos d_vocab"], the next-token loss, both, or None.

        input: text, token ids, or with `start_at_layer` the residual stream at the input of that block.
        attention_mask: True (or 1) for real tokens, False for padding, on either side; positions count real
        tokens only, so padding changes nothing. Texts of different lengths are padded and masked by themselves.
        stop_at_layer: return the residual stream at the input of that block instead (negative counts from
        the end). past_kv_cache: the positions that came before; `input` then holds only the new ones.
        finish: positions in `input`, each row its own; only these leave the last block and come back, which spares the
        others' queries, MLP and logits there. known: of the first block that is run "attn_out", or "q", "k" and "v",
        where the caller has them, to be taken instead of computed. tokens: the ids, for the loss, when `input` is a
        residual stream.

        Raises:
            LabError: ids out of range, no or too many positions, a mask of another shape or one that hides a whole row,
                an unknown return_type.
        """
        check_returned(return_type, finish)
        resumes = start_at_layer is not None or past_kv_cache is not None
        mask = mask_input(self, attention_mask, resumes)
        if start_at_layer is not None:
            given = stream_input(input, self._cfg.d_model)
        elif isinstance(input, Tensor):
            given = tokens = token_input(self, input)
        else:
            given, mask = self.text_input(input, prepend_bos, padding_side, mask)
            tokens = given
        real, positions = mask_and_positions(self, given.shape[:2], mask, past_kv_cache)
        first, stop = layers_between(start_at_layer, stop_at_layer, self._cfg.n_layers)
        views = views_of(self, real, positions, past_kv_cache, range(first, stop))

        resid = self.embedding(given, positions) if start_at_layer is None else given
        for layer in range(first, stop):
            attends, rotation = views[self._cfg.layer_type(layer)]
            past = None if past_kv_cache is None else past_kv_cache.layers[layer]
            leaving, taken = finish if layer == stop - 1 else None, known if layer == first else None
            resid = self.blocks[layer](resid, attends, rotation, past, leaving, taken)
        if finish is not None and first == stop:
            resid = at_positions(resid, finish)
        if stop_at_layer is not None:
            return resid
        return self._returned(self.unembed(self.ln_final(resid)), tokens, mask, return_type, loss_per_token)

    def embedding(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "#batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Token vectors plus, where positions are embedded, position vectors.

        Raises:
            LabError: ids outside the vocabulary.
        """
        try:
            embed = self.hook_embed(self.embed(tokens))
        except IndexError:
            check_ids(tokens, self._cfg.d_vocab)
            raise
        if not hasattr(self, "pos_embed"):
            return embed
        pos_embed = self.pos_embed(positions).expand(embed.shape).to(embed.dtype)
        return embed + self.hook_pos_embed(pos_embed)

    def logits_at(
        self, resid: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch pos n_or_d_vocab"]:
        """The logits of a final residual stream, for some tokens (each row its own) or, with None, for all."""
        normalized = self.ln_final(resid)
        return self.unembed(normalized) if tokens is None else self.unembed.at(normalized, tokens)

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
        per_token: bool = False,
    ) -> Float[Tensor, "*batch_pos"]:
        """The next-token loss in nats; see `models.loss`."""
        return next_token_loss(logits, tokens, attention_mask, per_token)

    def generate(
        self,
        input: Input,
        max_new_tokens: int = 20,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        stop_tokens: Collection[int] | None = None,
        seed: int | None = None,
        prepend_bos: bool | None = None,
        attention_mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Any:
        """The prompt and what the model writes after it, as text or ids as given; see `models.generation.generate`.

        Raises:
            LabError: as there.
        """
        from models.generation import generate

        sampling = (temperature, top_k, top_p, stop_tokens, seed)
        return generate(self, input, max_new_tokens, *sampling, prepend_bos, attention_mask)

    def tl_parameters(self) -> dict[str, Tensor]:
        """The weights as TransformerLens 4's tools ask a model for them: under HookedTransformer's names and shapes.

        Keys and values that heads share are repeated for each of them.

        Raises:
            LabError: as `models.hooked_transformer.weights.to_hooked`.
        """
        from models.hooked_transformer.weights import to_hooked

        weights, group = {}, self._cfg.n_heads // self._cfg.n_kv_heads
        for name, weight in to_hooked(self).items():
            shared = ".attn._" in name
            repeated = repeat(weight, "kv ... -> (kv group) ...", group=group) if shared else weight
            weights[name.replace(".attn._", ".attn.")] = repeated
        return weights

    def export(self, directory: str | Path) -> Path:
        """Write a directory that transformers loads with the same logits.

        Raises:
            LabError: the model is neither GPT-2- nor Llama-shaped, or the directory cannot be written to.
        """
        from models.pretrained.export import to_huggingface

        return to_huggingface(self, directory)

    def _returned(
        self,
        logits: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
        return_type: str | None,
        per_token: bool,
    ) -> Any:
        if return_type == "logits":
            return logits
        if return_type is None:
            return None
        if tokens is None:
            raise LabError("a loss needs token ids; give tokens= beside the residual stream.")
        loss = next_token_loss(logits, tokens, mask, per_token)
        return loss if return_type == "loss" else LogitsAndLoss(logits, loss)
