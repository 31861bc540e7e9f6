"""One side of an encoder-decoder as a model of its own, for the analyses, which see a model as one stack of blocks.

    decoder = model.decoder_given("5 March 1987")          # target tokens -> logits; the source stays as it is
    logit_lens(decoder, "1987-03")
    encoder = model.encoder_given("1987-")                 # source tokens -> logits of the token after this target
    activation_patching(encoder, pairs, site="resid_pre")  # which state of the source does the next token depend on?

Hook points have the names that analyses know: `blocks.0.attn.hook_z` is `decoder.0.attn.hook_z` in the one and
`encoder.0.attn.hook_z` in the other. Both have the decoder's cross-attention, at `blocks.0.cross_attn.hook_pattern`.
A view holds the model itself, and what it is given for all prompts; its hooks are hooks on the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.hooks import HookedModule, NamedHook
from models.answered import at_last
from models.config import TransformerConfig
from models.encoder_decoder_text import Mask, Source, SourceMask, Target
from models.loss import LogitsAndLoss, next_token_loss
from models.text import TextMethods
from models.weights import StackedWeights

if TYPE_CHECKING:
    from models.encoder_decoder import EncoderDecoder


class Side(StackedWeights, TextMethods, HookedModule):
    """What the two views share. `renamed`: patterns of the model's hook names, and the names that analyses know."""

    renamed: tuple[tuple[str, str], ...]
    prompt_axes: tuple[str, ...]  # the axes along which positions are those of the prompts

    def __init__(self, model: EncoderDecoder, cfg: TransformerConfig, given: str) -> None:
        super().__init__()
        self.model, self._side = model, cfg
        self.given = f"{model.cfg.model_name} given {given}"
        self.setup()

    def setup(self) -> None:
        """Name the model's hook points as analyses do; the points keep the names that they have in the model."""
        self.mod_dict, self.hook_dict = {}, {}
        for name, point in self.model.hook_dict.items():
            for pattern, known in self.renamed:
                if re.fullmatch(pattern, name):
                    self.hook_dict[re.sub(pattern, known, name)] = point
                    break
        self.context_level = 0

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[NamedHook] = (),
        bwd_hooks: Sequence[NamedHook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedModule]:
        """As `HookedModule.hooks`; a hook is told the name that its point has here."""
        before = {point: point.name for point in self.hook_dict.values()}
        for name, point in self.hook_dict.items():
            point.name = name
        try:
            with super().hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
                yield self
        finally:
            for point, own in before.items():
                point.name = own

    @property
    def cfg(self) -> TransformerConfig:
        """Of this side's blocks, with the current device and dtype; its name tells what is given."""
        return replace(self._side, model_name=self.given, device=self.device, dtype=self.dtype)

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        return self.model.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def embed(self) -> Any:
        return self.model.embed

    @property
    def revision(self) -> str | None:
        return self.model.revision


class DecoderGiven(Side):
    """The decoder as a model of target tokens, for one source, which is encoded when the view is made.

    Texts get the start token. In `blocks`, ln2 is the norm before the MLP, as everywhere; that of cross-attention
    (ln2 of HookedEncoderDecoder's decoder) is `ln_cross`.
    """

    renamed = (
        (r"decoder\.(\d+)\.ln3\.(.*)", r"blocks.\1.ln2.\2"),
        (r"decoder\.(\d+)\.ln2\.(.*)", r"blocks.\1.ln_cross.\2"),
        (r"decoder\.(\d+)\.(.*)", r"blocks.\1.\2"),
        (r"hook_decoder_embed", "hook_embed"),
        (r"decoder_positions\.hook_pos_embed", "hook_pos_embed"),
        (r"decoder_positions\.(.*)", r"positions.\1"),
        (r"decoder_final_ln\.(.*)", r"ln_final.\1"),
        (r"(unembed\..*)", r"\1"),
    )
    prompt_axes = ("pos", "q_pos", "target_pos")

    def __init__(self, model: EncoderDecoder, source: Source, attention_mask: SourceMask | None = None) -> None:
        """Raises:
        LabError: more than one source, or one that the encoder cannot take.
        """
        tokens, mask = model.source_tokens(source, attention_mask)
        if len(tokens) != 1:
            raise LabError(f"{len(tokens)} sources; expected one, for all targets.")
        super().__init__(model, model.cfg.decoder, _shown(model, tokens[0]))
        self.source = tokens
        with torch.no_grad():
            self.memory = model.encode(tokens, mask)
        self.unaccounted = {
            "sum": "the decoder's cross-attention writes to the stream too, so attention and MLPs do not add up to it"
        }

    def forward(
        self,
        input: Target,
        return_type: str | None = "logits",
        attention_mask: Mask | None = None,
        loss_per_token: bool = False,
    ) -> Any:
        """Logits Float[Tensor, "batch pos d_vocab"] of the token after each of the target's, the loss, both, or None.

        Raises:
            LabError: as the model's forward, of the targets.
        """
        tokens, mask = self.model.target_tokens(input, attention_mask)
        resid = self.model.decode(tokens, self.memory.of(len(tokens)), mask)
        logits = self.model.logits_of(resid)
        if return_type in ("logits", None):
            return logits if return_type == "logits" else None
        loss = next_token_loss(logits, tokens, mask, loss_per_token)
        return loss if return_type == "loss" else LogitsAndLoss(logits, loss)

    @cached_property
    def blocks(self) -> list[SimpleNamespace]:
        """The decoder's blocks, their parts under the names that analyses know."""
        return [
            SimpleNamespace(
                ln1=block.ln1, attn=block.attn, ln_cross=block.ln2, cross_attn=block.cross_attn, ln2=block.ln3,
                mlp=block.mlp,
            )
            for block in self.model.decoder
        ]  # fmt: skip

    @property
    def ln_final(self) -> Any:
        return self.model.decoder_final_ln

    @property
    def unembed(self) -> Any:
        return self.model.unembed

    @property
    def pos_embed(self) -> Any:
        return self.model.decoder_positions.pos_embed

    def _encode(self, text: str, prepend_bos: bool | None) -> list[int]:
        """The start token and the text; without the start token for prepend_bos=False."""
        ids = self._tokenizer().encode(text)
        return ids if prepend_bos is False else [self.model.cfg.decoder_start_token_id, *ids]


class EncoderGiven(Side):
    """The encoder as a model of source tokens: the decoder says what comes after one target, the same for all sources.

    There are logits at a source's last real position, the ones after the target, and no numbers (NaN) at the others.
    The decoder's cross-attention belongs to the view: the keys and values there are the last that the source is.
    """

    renamed = (
        (r"encoder\.(\d+)\.(.*)", r"blocks.\1.\2"),
        (r"hook_embed", "hook_embed"),
        (r"encoder_positions\.hook_pos_embed", "hook_pos_embed"),
        (r"encoder_positions\.(.*)", r"positions.\1"),
        (r"(encoder_final_ln\..*)", r"\1"),
        (r"decoder\.(\d+)\.(cross_attn\..*|hook_cross_attn_out)", r"blocks.\1.\2"),
    )
    prompt_axes = ("pos", "q_pos", "source_pos")

    def __init__(self, model: EncoderDecoder, target: Target) -> None:
        """Raises:
        LabError: more than one target, or ids out of range.
        """
        tokens, _ = model.target_tokens(target)
        if len(tokens) != 1:
            raise LabError(f"{len(tokens)} targets; expected one, for all sources.")
        super().__init__(model, model.cfg.encoder, _shown(model, tokens[0]))
        self.target = tokens
        why = "the encoder's stream becomes logits through the decoder's attention alone"
        self.unaccounted = {"sum": why, "logits": why}
        self.ln_final = self.unembed = _Undefined(
            f"in {self.given!r} {why}, so a state of the source has no logits of its own.  Try activation_patching or "
            "ablation, or logit_lens on model.decoder_given(source)."
        )

    def forward(
        self, input: Target, return_type: str | None = "logits", attention_mask: Mask | None = None
    ) -> Float[Tensor, "batch pos d_vocab"] | None:
        """The logits after the target, at each source's last real position.

        Raises:
            LabError: as the model's forward, of the sources; a loss, which sources do not have.
        """
        if return_type not in ("logits", None):
            raise LabError(
                f"return_type={return_type!r}; expected 'logits' or None: a source predicts none of its tokens."
            )
        tokens, mask = self.model.source_tokens(input, attention_mask)
        target = repeat(self.target.to(self.device), "1 pos -> batch pos", batch=len(tokens))
        resid = self.model.decode(target, self.model.encode(tokens, mask))
        logits = self.model.logits_of(resid[:, -1:])
        return None if return_type is None else at_last(logits, tokens, mask)

    @cached_property
    def blocks(self) -> Any:
        return self.model.encoder

    @property
    def pos_embed(self) -> Any:
        return self.model.encoder_positions.pos_embed

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Of the decoder."""
        return self.model.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.model.b_U

    def _encode(self, text: str, prepend_bos: bool | None) -> list[int]:
        return self.model._encode(text, prepend_bos)


class _Undefined:
    """Stands where a model has no such map."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __call__(self, x: Tensor) -> Tensor:
        raise LabError(self._why)


def _shown(model: EncoderDecoder, ids: Int[Tensor, "pos"]) -> str:
    """Tokens for a name, as text where the model can say it."""
    return repr(" ".join(map(str, ids.tolist())) if model.tokenizer is None else model.target_text(ids.tolist()))
