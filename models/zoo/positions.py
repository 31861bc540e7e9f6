"""One small model with each kind of position: trained on short rows of text, to be tested on longer ones.

The text is the town's documents (`models.zoo.stories`) character by character. All models have the same sizes, data,
seed and number of steps, and a window of `longest` positions; only `trained_on` of them are ever seen in training. So
learned positions have vectors for the others too, as they were drawn: that nothing trains them is what is tested.
Press et al. 2021 (arXiv:2108.12409) ask the same of larger models, Haviv et al. 2022 (arXiv:2203.16634) of none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from interp.errors import LabError
from models.batches import Windows
from models.config import TransformerConfig
from models.gpt import GPT
from models.tokenizers import Tokenizer, characters_of
from models.training import TrainingConfig, train
from models.zoo.corpus import documents

KINDS = ("learned", "sinusoidal", "rotary", "none")
DOCUMENTS, HELD_OUT = 6000, 1000


@dataclass(frozen=True)
class PositionStudy:
    """What all models of the comparison share.

    trained_on, longest: positions of a row in training, and of a test row. steps, batch_size: of training.

    Raises:
        LabError: test rows no longer than those of training.
    """

    trained_on: int = 32
    longest: int = 128
    steps: int = 1500
    batch_size: int = 16
    n_layers: int = 2
    n_heads: int = 4
    d_model: int = 64

    def __post_init__(self) -> None:
        if self.longest <= self.trained_on:
            raise LabError(f"longest={self.longest}; expected more positions than trained_on={self.trained_on}.")

    def trained(
        self, kind: str, seed: int, folder: str | os.PathLike[str] | None = None, progress: bool = False
    ) -> GPT:
        """The model with positions of one kind, its weights and data drawn from `seed`.

        folder: for log and checkpoints, from which a run that was stopped goes on.

        Raises:
            LabError: an unknown kind, or as `models.training.train`.
        """
        cfg = TransformerConfig(
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_model=self.d_model,
            d_vocab=len(self.tokenizer),
            n_ctx=self.longest,
            positional_embedding_type=kind,
            embed_scale=self.d_model**0.5,  # as in arXiv:1706.03762, §3.4: sinusoids would drown the tokens
            default_prepend_bos=False,
            seed=seed,
            model_name=kind,
        )
        model = GPT(cfg, tokenizer=self.tokenizer)
        batches = Windows(self._corpus, self.trained_on, self.batch_size, seed)
        config = TrainingConfig(self.steps, lr=3e-3, warmup_steps=50, save_every=500, seed=seed)
        train(model, batches, config, folder, progress=progress)
        return model

    def test_rows(self, n: int = 128) -> Int[Tensor, "batch pos"]:
        """Rows of `longest` characters of other documents, one after the other.

        Raises:
            LabError: more rows than the documents give.
        """
        text = "\n".join(islice(documents(1), HELD_OUT))
        ids = torch.tensor(self.tokenizer.encode(text))
        if not 0 < n * self.longest <= len(ids):
            raise LabError(f"{n} test rows; expected 1 to {len(ids) // self.longest}.")
        return rearrange(ids[: n * self.longest], "(batch pos) -> batch pos", batch=n)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """One token for each character of the corpus."""
        return characters_of(self._text)

    @cached_property
    def _text(self) -> str:
        return "\n".join(islice(documents(0), DOCUMENTS))

    @cached_property
    def _corpus(self) -> Int[Tensor, "corpus"]:
        return torch.tensor(self.tokenizer.encode(self._text))
