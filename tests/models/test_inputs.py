"""What a model cannot take is refused at its door, in words, by every architecture alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp import LabError
from interp.kv_cache import KeyValueCache
from models import GPT, TransformerConfig
from models.encoder_decoder import EncoderDecoder
from models.encoder_decoder_config import EncoderDecoderConfig

SIZES: dict[str, Any] = {"n_layers": 1, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 8, "seed": 0}
TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
HIDDEN = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 0]])


def models_by_name() -> dict[str, Callable[[torch.Tensor], Any]]:
    """A run of each architecture with a mask; the encoder-decoder's twice, for each of its sides."""
    both = EncoderDecoder(EncoderDecoderConfig(**SIZES))
    real = torch.ones_like(TOKENS)
    return {
        "gpt": lambda mask: GPT(TransformerConfig(**SIZES))(TOKENS, attention_mask=mask),
        "encoder": lambda mask: GPT(TransformerConfig(**SIZES, attention_dir="bidirectional"))(
            TOKENS, attention_mask=mask
        ),
        "source": lambda mask: both(TOKENS, TOKENS, attention_mask=mask, decoder_attention_mask=real),
        "target": lambda mask: both(TOKENS, TOKENS, attention_mask=real, decoder_attention_mask=mask),
    }


@pytest.mark.parametrize("name", models_by_name())
@pytest.mark.parametrize("kind", [torch.bool, torch.long])
def test_a_mask_that_hides_a_whole_row_is_refused_before_anything_runs(name: str, kind: torch.dtype) -> None:
    run = models_by_name()[name]
    with pytest.raises(LabError, match=r"attention_mask hides all tokens of row 1 .* at least one real token"):
        run(HIDDEN.to(kind))
    run(HIDDEN.to(kind)[:1].expand(3, -1))


def test_a_part_of_a_run_may_be_padding_alone() -> None:
    """The rest of a padded prompt, after its last real token."""
    model, cache = GPT(TransformerConfig(**SIZES)), KeyValueCache()
    model(TOKENS, attention_mask=torch.ones_like(TOKENS), past_kv_cache=cache)
    model(TOKENS, attention_mask=HIDDEN, past_kv_cache=cache)
