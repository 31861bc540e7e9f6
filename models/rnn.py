"""What came before transformers: a recurrent encoder-decoder, with and without attention.

    model = RNNEncoderDecoder(RNNConfig("GRU", d_vocab=20, d_model=32, d_hidden=64, d_attn=64))
    logits = model(source, decoder_input, attention_mask=real)         # teacher forcing
    answers = model.generate(source, max_new_tokens=20)                # greedy

Without `d_attn` it is that of Sutskever et al. 2014 (arXiv:1409.3215) and Cho et al. 2014 (arXiv:1406.1078): all that
the decoder knows of the source is one vector, the encoder's last state. With it, each step of the decoder also reads
the context that additive attention takes from all states of the encoder (Bahdanau et al. 2015, arXiv:1409.0473). The
paper's encoder reads both ways and its output layer also sees embedding and context; here nothing but the attention
tells the two models apart.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import LabError
from interp.hook_point import HookPoint
from interp.step_hooks import Steps
from models.inputs import check_ids, mask_input
from models.lab_model import LabModel
from models.loss import LogitsAndLoss, next_token_loss
from models.rnn_attention import AdditiveAttention
from models.rnn_cells import Recurrent, State
from models.rnn_config import RNNConfig, not_defined
from models.rnn_views import EncoderGivenTarget
from models.tokenizers import Tokenizer

Mask = Bool[Tensor, "batch source_pos"] | Int[Tensor, "batch source_pos"]


class Decoder(Recurrent):
    """The decoder: a recurrent layer, with attention to the encoder's states where the config has it, and logits."""

    def __init__(self, cfg: RNNConfig) -> None:
        super().__init__(cfg, cfg.d_context)
        self.attention = None if cfg.d_attn is None else AdditiveAttention(cfg)
        if self.attention is not None:
            self.hook_attn_scores, self.hook_pattern, self.hook_context = HookPoint(), HookPoint(), HookPoint()
        self.unembed = nn.Linear(cfg.d_hidden, cfg.d_vocab)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        state: State,
        memory: Float[Tensor, "batch source_pos d_hidden"],
        mask: Bool[Tensor, "batch source_pos"] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], State]:
        """The logits after each token, and the state after the last."""
        embed = self.embedded(tokens)
        if self.attention is None:
            hidden, state = self.run(embed, state)
            return self.unembed(hidden), state
        keys, n_steps = self.attention.keys(memory), tokens.shape[1]
        points = (self.hook_attn_scores, self.hook_pattern, self.hook_context)
        hooked = scores_at, pattern_at, context_at = [Steps(point, n_steps) for point in points]

        def read(step: int, before: State) -> Float[Tensor, "batch d_input"]:
            assert self.attention is not None
            pattern = pattern_at(scores_at(self.attention(before[0], keys, mask)).softmax(-1))
            mixed = einsum(pattern.to(memory.dtype), memory, "batch k_pos, batch k_pos d -> batch d")
            return torch.cat([embed[:, step], context_at(mixed)], -1)

        hidden, state = self.run_by_steps(n_steps, read, state)
        for point in hooked:
            point.stacked()
        return self.unembed(hidden), state


class RNNEncoderDecoder(LabModel):
    """source -> encoder's states -> decoder -> logits of the next target token, every state on a hook point.

    Hook points: `encoder.hook_embed` and `decoder.hook_embed` [batch pos d_model]; `encoder.hook_hidden` and
    `decoder.hook_hidden` [batch pos d_hidden], the state after each position, and for an LSTM `hook_cell`; with
    attention `decoder.hook_attn_scores` and `decoder.hook_pattern` [batch target_pos source_pos], and
    `decoder.hook_context` [batch pos d_hidden]. A hook sees all positions at once; a state that it changes is what the
    next position starts from, and the encoder's last one where the decoder starts (how: `interp.step_hooks`). At source
    padding the state stays as it was and edits do nothing.

    Fresh recurrent matrices are orthogonal, embeddings normal with deviation 1, other matrices Glorot's, biases zero.
    There is no dropout; a new model is in evaluation mode. It takes ids; a tokenizer, if there is one, is only saved
    with it. revision: the version of loaded weights, when it is known.
    """

    def __init__(
        self,
        cfg: RNNConfig,
        tokenizer: Tokenizer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._cfg = cfg
        self.tokenizer = tokenizer
        self.encoder, self.decoder = Recurrent(cfg), Decoder(cfg)
        self.setup()
        initialise(self, cfg)
        self.to(device=device or cfg.device, dtype=dtype or cfg.dtype)
        self.eval()

    def forward(
        self,
        input: Int[Tensor, "batch source_pos"],
        decoder_input: Int[Tensor, "batch pos"] | None = None,
        return_type: str | None = "logits",
        attention_mask: Mask | None = None,
    ) -> Any:
        """Logits Float[Tensor, "batch pos d_vocab"] of the token after each of the target's, the loss, both, or None.

        decoder_input: the targets so far (teacher forcing), which begin with the start token. The loss is of each token
        of the target given those before it, in nats.

        attention_mask: True (or 1) for the source's real tokens, False for padding, on either side. Padding after a
        target changes no logit before it.

        Raises:
            LabError: no target, ids out of range, no positions, a mask that does not fit or hides a whole source,
                another number of sources than of targets, an unknown return_type.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise LabError(f"return_type={return_type!r}; expected 'logits', 'loss', 'both' or None.")
        if decoder_input is None:
            raise LabError(
                "the decoder has no target; expected decoder_input=, ids that begin with the start token "
                f"({self._cfg.decoder_start_token_id}).  Try model.generate(source), which writes one."
            )
        memory, state, mask = self._encoded(input, attention_mask)
        target = self.checked_ids("the target", decoder_input)
        if len(target) != len(memory):
            raise LabError(f"{len(memory)} sources and {len(target)} targets; expected one target for each source.")
        logits, _ = self.decoder(target, state, memory, mask)
        if return_type in ("logits", None):
            return logits if return_type == "logits" else None
        loss = next_token_loss(logits, target)
        return loss if return_type == "loss" else LogitsAndLoss(logits, loss)

    @torch.no_grad()
    def generate(
        self,
        input: Int[Tensor, "batch source_pos"],
        max_new_tokens: int = 20,
        attention_mask: Mask | None = None,
    ) -> Int[Tensor, "batch pos"]:
        """The start token and what the decoder writes after it, always its likeliest token, until every target ended.

        A row that ended before the others is filled up with the end's id.

        Raises:
            LabError: as `forward`, and for a number of tokens below 1.
        """
        if max_new_tokens < 1:
            raise LabError(f"max_new_tokens={max_new_tokens}; expected at least 1.")
        memory, state, mask = self._encoded(input, attention_mask)
        end = self._cfg.eos_token_id
        token = torch.full((len(memory), 1), self._cfg.decoder_start_token_id, device=self.device)
        written, ended = [token], torch.zeros_like(token, dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits, state = self.decoder(token, state, memory, mask)
            token = logits.argmax(-1)
            if end is not None:
                token = token.masked_fill(ended, end)
                ended = ended | (token == end)
            written.append(token)
            if end is not None and bool(ended.all()):  # which waits for a GPU
                break
        return torch.cat(written, 1)

    def _encoded(self, input: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, State, Tensor | None]:
        """The encoder's states, the last of them, and the mask."""
        source = self.checked_ids("the source", input)
        mask = None if attention_mask is None else self._mask(attention_mask, source)
        memory, state = self.encoder.run(self.encoder.embedded(source), self.encoder.start(len(source)), mask)
        return memory, state, mask

    def checked_ids(self, what: str, tokens: Tensor) -> Int[Tensor, "batch pos"]:
        """Token ids on the model's device.

        Raises:
            LabError: not ids [batch pos] of this vocabulary.
        """
        if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
            raise LabError(
                f"{what} has shape {tuple(tokens.shape)} and dtype {tokens.dtype}; expected token ids [batch pos], "
                "at least one."
            )
        if not (tokens.is_cuda and self.training):  # looking at ids makes a GPU wait
            check_ids(tokens, self._cfg.d_vocab)
        return tokens.to(self.device)

    def _mask(self, mask: Tensor, source: Tensor) -> Tensor | None:
        if mask.shape != source.shape:
            raise LabError(
                f"attention_mask has shape {tuple(mask.shape)}, expected the source's {tuple(source.shape)}."
            )
        return mask_input(self, mask)

    def encoder_given(self, target: Int[Tensor, "pos"]) -> EncoderGivenTarget:
        """The model as one of source tokens, for one target so far; see `models.rnn_views`.

        Raises:
            LabError: not one row of ids of this vocabulary.
        """
        return EncoderGivenTarget(self, target)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise not_defined(name, type(self).__name__) from None

    @property
    def device(self) -> torch.device:
        return self.encoder.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.W_E.dtype

    @property
    def W_U(self) -> Float[Tensor, "d_hidden d_vocab"]:
        return self.decoder.unembed.weight.T


@torch.no_grad()
def initialise(model: RNNEncoderDecoder, cfg: RNNConfig) -> None:
    """Draw the weights anew, from `cfg.seed` when it is set; see `RNNEncoderDecoder`."""
    generator = None if cfg.seed is None else torch.Generator().manual_seed(cfg.seed)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if name.endswith(".W_E"):
            parameter.normal_(generator=generator)
        elif ".weight_hh" in name:
            for gate in parameter.split(cfg.d_hidden):
                nn.init.orthogonal_(gate, generator=generator)
        elif name.endswith(".v_a"):
            parameter.normal_(0.0, cfg.d_hidden**-0.5, generator=generator)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            parameter.zero_()
