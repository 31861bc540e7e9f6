"""The encoder (Devlin et al. 2019, arXiv:1810.04805), which also holds DistilBERT's and RoBERTa's weights.

    tokens (+ positions, + segments) -> norm -> blocks, in which every position sees all -> head -> logits

The logits at a position say which token stood there before it was masked. Hook names are HookedEncoder's within blocks;
outside of them the head is `ln_final`, as in every model of the contract (see `interp.contract`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import LabError
from interp.hook_point import HookPoint
from interp.kv_cache import KeyValueCache
from models.attention import at_positions, padding_mask
from models.bert_config import BertConfig
from models.block import make_block
from models.embedding import Embed, Unembed
from models.initialisation import initialise
from models.inputs import check_ids, layers_between, mask_input, stream_input, token_input
from models.lab_model import LabModel
from models.mlp import activation_function
from models.norm import NoNorm, make_post_norm
from models.positions import LearnedPositions, SinusoidalPositions
from models.text import Input, TextMethods
from models.tokenizers import Tokenizer
from models.visibility import mask_and_positions
from models.weights import StackedWeights


class SegmentEmbed(nn.Module):
    """One trained vector for each kind of segment: `W_token_type` [segment d_model]."""

    def __init__(self, cfg: BertConfig) -> None:
        super().__init__()
        assert cfg.n_segments is not None
        self.W_token_type = nn.Parameter(torch.empty(cfg.n_segments, cfg.d_model))

    def forward(self, segments: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(segments, self.W_token_type)


class MaskedLMHead(nn.Module):
    """norm(act(dense(x))): what the stream goes through before the unembedding (Devlin et al. 2019, §3.1)."""

    def __init__(self, cfg: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(cfg.d_model, cfg.d_model)
        self.act = activation_function(cfg.head_act_fn)
        self.ln = make_post_norm(cfg)

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        return self.ln(self.act(self.dense(x)))

    def unhooked(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """The same function past the hook points."""
        return self.ln.unhooked(self.act(self.dense(x)))


class BERT(StackedWeights, TextMethods, LabModel):
    """An encoder with a hook point on every step; `models.gpt.GPT` says what the arguments are.

    Texts get the special tokens that the tokenizer's file has a rule for ([CLS] and [SEP]); with `prepend_bos=False`
    they get none.
    """

    def __init__(
        self,
        cfg: BertConfig,
        tokenizer: Tokenizer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._cfg = cfg
        self.tokenizer = tokenizer
        self.embed, self.hook_embed = Embed(cfg), HookPoint()
        if cfg.positional_embedding_type != "none":
            learned = cfg.positional_embedding_type == "learned"
            self.pos_embed = LearnedPositions(cfg) if learned else SinusoidalPositions(cfg)
            self.hook_pos_embed = HookPoint()
        if cfg.n_segments is not None:
            self.token_type_embed, self.hook_token_type_embed = SegmentEmbed(cfg), HookPoint()
        self.embed_ln, self.hook_full_embed = make_post_norm(cfg), HookPoint()
        self.blocks = nn.ModuleList(make_block(cfg, layer) for layer in range(cfg.n_layers))
        self.ln_final = MaskedLMHead(cfg) if cfg.mlm_head else NoNorm()
        self.unembed = Unembed(cfg, self.embed.W_E if cfg.tie_embeddings else None)
        self.setup()
        initialise(self, cfg)
        self.to(device=device or cfg.device, dtype=dtype or cfg.dtype)
        self.eval()

    def forward(
        self,
        input: Input | Float[Tensor, "batch pos d_model"],
        return_type: str | None = "logits",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KeyValueCache | None = None,
        finish: Int[Tensor, "batch n"] | None = None,
        known: Mapping[str, Tensor] | None = None,
        token_type_ids: Int[Tensor, "batch pos"] | None = None,
    ) -> Any:
        """Logits Float[Tensor, "batch pos d_vocab"] of the token at each position, or None.

        token_type_ids: the segment of each token, 0 everywhere by default. past_kv_cache: an encoder sees all positions
        at once, so there are none before. The other arguments are those of `models.gpt.GPT`.

        Raises:
            LabError: ids or segments out of range, no or too many positions, a mask of another shape or one that hides
                a whole row, another return_type, positions before.
        """
        if return_type not in ("logits", None):
            raise LabError(
                f"return_type={return_type!r}; expected 'logits' or None: an encoder predicts no next token, and its "
                "loss is of masked tokens (models.masking)."
            )
        if past_kv_cache is not None:
            raise LabError("past_kv_cache was given; an encoder sees all positions at once, so run the whole input.")
        mask = mask_input(self, attention_mask, start_at_layer is not None)
        if start_at_layer is not None:
            given = stream_input(input, self._cfg.d_model)
        elif isinstance(input, Tensor):
            given = token_input(self, input)
        else:
            given, mask = self.text_input(input, prepend_bos, padding_side, mask)
        real, positions = mask_and_positions(self, given.shape[:2], mask, None)
        first, stop = layers_between(start_at_layer, stop_at_layer, self._cfg.n_layers)
        attends = None if real is None else padding_mask(real, given.shape[1], causal=False)

        resid = given if start_at_layer is not None else self.embedding(given, positions, token_type_ids)
        for layer in range(first, stop):
            leaving, taken = finish if layer == stop - 1 else None, known if layer == first else None
            resid = self.blocks[layer](resid, attends, finish=leaving, known=taken)
        if finish is not None and first == stop:
            resid = at_positions(resid, finish)
        if stop_at_layer is not None:
            return resid
        return self.logits_at(resid) if return_type == "logits" else None

    def embedding(
        self,
        tokens: Int[Tensor, "batch pos"],
        positions: Int[Tensor, "#batch pos"],
        token_type_ids: Int[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Vectors of tokens, positions and segments, summed and normalised.

        Raises:
            LabError: ids outside the vocabulary, or segments that the model does not have.
        """
        segments = self._segments(tokens, token_type_ids)
        try:
            resid = self.hook_embed(self.embed(tokens))
        except IndexError:
            check_ids(tokens, self._cfg.d_vocab)
            raise
        if hasattr(self, "pos_embed"):
            resid = resid + self.hook_pos_embed(self.pos_embed(positions).expand(resid.shape).to(resid.dtype))
        if hasattr(self, "token_type_embed"):
            resid = resid + self.hook_token_type_embed(self.token_type_embed(segments))
        return self.hook_full_embed(self.embed_ln(resid))

    def logits_at(
        self, resid: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch pos n_or_d_vocab"]:
        """The logits of a final residual stream, for some tokens (each row its own) or, with None, for all."""
        normalized = self.ln_final(resid)
        return self.unembed(normalized) if tokens is None else self.unembed.at(normalized, tokens)

    @property
    def unaccounted(self) -> dict[str, str]:
        """What keeps components from having shares of the logits (see `interp.shares`)."""
        step = "a layer with an activation function stands between the stream and the unembedding"
        return {"logits": step} if self._cfg.mlm_head else {}

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: an encoder does not write text.

        Raises:
            LabError: always.
        """
        raise LabError(
            f"the model {self._cfg.model_name!r} is an encoder, which sees all positions at once and does not write "
            "text from left to right.  Try its logits at a mask token, or a GPT."
        )

    def _segments(self, tokens: Tensor, given: Tensor | None) -> Int[Tensor, "batch pos"]:
        n = self._cfg.n_segments
        if given is None:
            return torch.zeros_like(tokens)
        if tuple(given.shape) != tuple(tokens.shape):
            raise LabError(
                f"token_type_ids has shape {tuple(given.shape)}, expected the input's {tuple(tokens.shape)}."
            )
        given = given.to(tokens.device)
        lowest, highest = (int(end) for end in given.aminmax())
        if lowest < 0 or highest >= (n or 1):
            raise LabError(
                f"token_type_ids run from {lowest} to {highest}; expected 0 to {(n or 1) - 1} (n_segments={n})."
            )
        return given

    def _encode(self, text: str, prepend_bos: bool | None) -> list[int]:
        wanted = self._cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        ids = self._tokenizer().encode(text, add_special_tokens=wanted)
        if not ids:
            raise LabError("an empty text gives no tokens; expected at least one token, try a prompt with words.")
        return ids
