"""`BertConfig`: a `TransformerConfig` for an encoder with a masked-language-model head."""

from __future__ import annotations

from dataclasses import dataclass

from interp.errors import LabError, choose
from models.config import ACTIVATIONS, TransformerConfig


@dataclass(frozen=True)
class BertConfig(TransformerConfig):
    """The shape of an encoder. The defaults are BERT's (Devlin et al. 2019, arXiv:1810.04805).

    n_segments: how many kinds of segment there are (`token_type_ids`); None for none. head_act_fn: of the masked-
    language-model head. mlm_head: without one, logits are the stream's products with the unembedding.
    default_prepend_bos: put the tokenizer's own special tokens round a text ([CLS] and [SEP]).

    Raises:
        LabError: sizes that contradict each other, or parts that such a model does not have.
    """

    act_fn: str = "gelu"
    eps: float = 1e-12
    attention_dir: str = "bidirectional"
    norm_places: str = "stream"
    unembed_bias: bool = True
    tie_embeddings: bool = True
    model_name: str = "bert"
    n_segments: int | None = 2
    head_act_fn: str = "gelu"
    mlm_head: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_segments is not None:
            self._check_positive("n_segments")
        choose("activation function", self.head_act_fn, ACTIVATIONS)
        if self.attention_dir != "bidirectional":
            raise LabError(f"attention_dir={self.attention_dir!r}; expected 'bidirectional' in an encoder.")
        if self.positional_embedding_type == "rotary":
            raise LabError("positional_embedding_type='rotary'; expected 'learned', 'sinusoidal' or 'none' in a BERT.")
