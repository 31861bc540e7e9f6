"""`RNNConfig`: the sizes of a recurrent encoder-decoder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from interp.errors import LabError, NotDefinedError, choose
from models.config import dtype_named

CELLS = ("RNN", "LSTM", "GRU")


@dataclass(frozen=True)
class RNNConfig:
    """A frozen, validated description of a recurrent encoder-decoder; one vocabulary for sources and targets.

    cell: "RNN" (tanh; Elman 1990), "LSTM" (Hochreiter & Schmidhuber 1997) or "GRU" (Cho et al. 2014, arXiv:1406.1078).
    d_vocab, d_model, d_hidden: vocabulary, width of the embeddings, width of the hidden state.
    d_attn: width of the alignment model of Bahdanau attention; None: no attention, the decoder knows of the source
    what the encoder's last state tells it.
    decoder_start_token_id: what the decoder reads first. eos_token_id: what ends a target; None: nothing does.
    seed: of fresh weights. dtype, device: of the weights; `model.cfg` always tells the current ones.

    Raises:
        LabError: a size that is not a positive integer, an unknown cell, a token outside the vocabulary.
    """

    cell: str
    d_vocab: int
    d_model: int
    d_hidden: int
    d_attn: int | None = None
    decoder_start_token_id: int = 0
    eos_token_id: int | None = 1
    seed: int | None = None
    model_name: str = "rnn"
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        choose("cell", self.cell, CELLS)
        for name in ("d_vocab", "d_model", "d_hidden", "d_attn"):
            value = getattr(self, name)
            if not _is_int(value, least=1) and not (name == "d_attn" and value is None):
                raise LabError(f"{name}={value!r}; expected a positive integer.")
        for name in ("decoder_start_token_id", "eos_token_id"):
            value = getattr(self, name)
            if not (name == "eos_token_id" and value is None) and not (_is_int(value) and value < self.d_vocab):
                raise LabError(f"{name}={value!r}; expected a token id, 0 to {self.d_vocab - 1} (d_vocab).")
        if self.seed is not None and not _is_int(self.seed):
            raise LabError(f"seed={self.seed!r}; expected an integer of at least 0, or None.")
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise LabError(f"dtype={self.dtype!r}; expected a floating-point dtype.")

    @property
    def d_context(self) -> int:
        """Width of what attention adds to the decoder's input."""
        return 0 if self.d_attn is None else self.d_hidden

    def __getattr__(self, name: str) -> Any:
        raise not_defined(name, type(self).__name__)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, ready for JSON; without the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "device"}
        return values | {"dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RNNConfig:
        """The config of a dictionary.

        Raises:
            LabError: an unknown key (near misses named), a missing one, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            choose("config entry", key, known)
        missing = [name for name in ("cell", "d_vocab", "d_model", "d_hidden") if name not in values]
        if missing:
            raise LabError(f"the config lacks {', '.join(missing)}; expected at least the cell and these sizes.")
        if isinstance(values.get("dtype"), str):
            values = values | {"dtype": dtype_named(values["dtype"])}
        return cls(**values)


OF_TRANSFORMERS = frozenset(
    "n_layers n_heads n_key_value_heads d_head d_mlp n_ctx attn_only normalization_type act_fn attention_dir causal "
    "blocks embed pos_embed ln_final b_U W_E W_pos W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out QK OV "
    "to_tokens to_str_tokens to_single_token to_string accumulated_bias embedding logits_at loss_fn".split()
)
"""What analyses ask of a transformer: its sizes, its parts, its weights, its text."""


def not_defined(name: str, owner: str) -> AttributeError:
    """The error for what a recurrent model lacks: of a transformer's things, with what there is instead."""
    if name not in OF_TRANSFORMERS:
        return AttributeError(f"{owner!r} object has no attribute {name!r}")
    return NotDefinedError(
        f"a recurrent encoder-decoder has no {name!r}: what is defined on blocks, heads, a residual stream or text is "
        "not defined on it.  Its hidden states can be cached, edited and patched: try "
        'activation_patching(model.encoder_given(target), pairs, site="encoder.hidden").'
    )


def _is_int(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
