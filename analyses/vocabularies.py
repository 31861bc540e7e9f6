"""What a vocabulary does: into how many tokens it cuts a text, and what the text then costs a model.

    tokens per word = tokens / words between white space        bytes per token = bytes of UTF-8 / tokens
    bits per byte   = Σ loss of each token / ln 2 / bytes of those tokens

A loss per token means little between vocabularies: a vocabulary of long tokens has few and hard ones. Bytes are the
same for all, and bits per byte is what the model would compress the text to (Gao et al. 2020, arXiv:2101.00027, §3.1).

A text longer than a model's window is read in windows that overlap by one token, so that each token but the very first
is predicted once; the start token, where the model has one, foretells that too. Else its bytes are not counted.

Cost: a forward of each model on the texts.
It does not show: why. A window of n_ctx tokens holds more text where tokens are longer, and a larger vocabulary has
more weights in its embedding: models that are to differ in their vocabulary alone cannot be the same in everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.losses import next_losses
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result
from interp.style import AMOUNT

MEASURES = ("size", "used", "tokens", "tokens per word", "bytes per token")
AT_ONCE = 32
"""Windows in one run."""


@dataclass(frozen=True, eq=False, repr=False)
class VocabularyStatistics(Result):
    """How vocabularies cut the same texts, measure by measure.

    size: of the vocabulary. used: how many of its tokens occur. tokens: of all texts together.
    """

    title = "Vocabularies"
    shows = "into how many tokens each vocabulary cuts the same texts"
    caveat = "Fewer tokens are not better ones; the loss per byte of a trained model tells."

    values: Float[np.ndarray, "vocabulary measure"]

    def of(self, measure: str) -> Float[np.ndarray, "vocabulary"]:
        """One measure of each vocabulary."""
        return self.values[:, MEASURES.index(measure)]


@dataclass(frozen=True, eq=False, repr=False)
class LossPerByte(Result):
    """Bits per byte of each model on the same texts, whatever its vocabulary.

    by_text: on each text. nats_per_token: the loss as it is usually given, of other tokens for each vocabulary.
    """

    title = "Loss per byte"
    shows = "how many bits each model needs for a byte of the same texts"
    caveat = "Models of different vocabularies also differ in weights and in how much text their window holds."
    unit = "bits per byte"
    scale = AMOUNT

    values: Float[np.ndarray, "model"]
    by_text: Float[np.ndarray, "model text"]
    nats_per_token: Float[np.ndarray, "model"]
    bytes_per_token: Float[np.ndarray, "model"]
    tokens_per_word: Float[np.ndarray, "model"]


def vocabulary_statistics(tokenizers: Mapping[str, Any], texts: str | Sequence[str]) -> VocabularyStatistics:
    """How some tokenizers, by name, cut the same texts: `.values[vocabulary, measure]`, `.of("bytes per token")`.

    Raises:
        LabError: no tokenizer, no text, a text without a word, or a character that a vocabulary lacks.
    """
    several = _texts(texts)
    if not tokenizers:
        raise LabError("no tokenizers; expected at least one, by name.")
    n_words, n_bytes = sum(map(_words, several)), sum(map(_bytes, several))
    rows = []
    for tokenizer in tokenizers.values():
        ids = [tokenizer.encode(text) for text in several]
        count = sum(map(len, ids))
        used = len(set().union(*ids))
        rows.append([len(tokenizer), used, count, count / n_words, n_bytes / count])
    return VocabularyStatistics(
        np.array(rows, dtype=np.float64), labels={"vocabulary": list(tokenizers), "measure": MEASURES}
    )


@torch.inference_mode()
def loss_per_byte(models: Mapping[str, HookedModel | Any], texts: str | Sequence[str]) -> LossPerByte:
    """Bits per byte of some models, by name, on the same texts: `.values[model]`, `.by_text[model, text]`.

    Raises:
        LabError: no model, one without tokenizer or that sees both ways, no text, a text without a word or of a single
            token, or a character that a vocabulary lacks.
    """
    several = _texts(texts)
    if not models:
        raise LabError("no models; expected at least one, by name.")
    for name, model in models.items():
        _check(name, model)
    nats, tokens, counted = (np.zeros((len(models), len(several))) for _ in range(3))
    pieces = np.zeros((len(models), len(several)))
    for i, model in enumerate(models.values()):
        for j, text in enumerate(several):
            ids, counted[i, j], pieces[i, j] = _read(model, text)
            nats[i, j], tokens[i, j] = _total_loss(model, ids), len(ids) - 1
    words = sum(map(_words, several))
    first = next(iter(models.values()))
    hashes = {name: provenance.weights_hash(model) for name, model in models.items()}
    return LossPerByte(
        nats.sum(1) / math.log(2) / counted.sum(1),
        nats / math.log(2) / counted,
        nats.sum(1) / tokens.sum(1),
        sum(map(_bytes, several)) / pieces.sum(1),
        pieces.sum(1) / words,
        labels={"model": list(models)},
        provenance=provenance.of(first, prompts=several, settings={"weights of each": hashes}),
    )


def _read(model: HookedModel | Any, text: str) -> tuple[Int[Tensor, "pos"], int, int]:
    """A text as ids, the bytes of those that something foretells, and how many tokens the text itself has."""
    ids = model.to_tokens(text, truncate=False)[0]
    plain = model.to_tokens(text, prepend_bos=False, truncate=False)[0]
    if len(ids) < 2:
        raise LabError(f"{text!r} is a single token of {model.cfg.model_name!r}, which nothing foretells.")
    if len(ids) > len(plain):
        return ids, _bytes(text), len(plain)
    [first] = model.to_str_tokens(plain[:1])
    if not text.startswith(first):
        raise LabError(
            f"{model.cfg.model_name!r} has no start token, and the first token of a text is part of a character, so "
            "its bytes cannot be left out; begin the text with a plain letter."
        )
    return ids, _bytes(text) - _bytes(first), len(plain)


def _total_loss(model: HookedModel | Any, ids: Int[Tensor, "pos"]) -> float:
    """The sum of the losses of all tokens but the first, in nats."""
    n_ctx = model.cfg.n_ctx
    windows = [ids[start : start + n_ctx] for start in range(0, len(ids) - 1, n_ctx - 1)]
    full = [window for window in windows if len(window) == n_ctx]
    batches = [torch.stack(full[i : i + AT_ONCE]) for i in range(0, len(full), AT_ONCE)]
    batches += [window[None] for window in windows if len(window) < n_ctx]
    return sum(float(next_losses(model, batch.cpu()).sum()) for batch in batches)


def _check(name: str, model: HookedModel | Any) -> None:
    if model.tokenizer is None:
        raise LabError(f"the model {name!r} has no tokenizer; a loss per byte needs the text of its tokens.")
    if getattr(model.cfg, "attention_dir", "causal") != "causal":
        raise LabError(f"the model {name!r} does not predict the next token: its attention sees both ways.")
    if model.cfg.n_ctx < 2:
        raise LabError(f"the model {name!r} has a window of one token, so it predicts from nothing.")


def _texts(texts: str | Sequence[str]) -> list[str]:
    several = [texts] if isinstance(texts, str) else list(texts)
    if not several or not all(isinstance(text, str) and _words(text) for text in several):
        raise LabError(f"expected one text or more, each with a word; given {several!r}.")
    return several


def _words(text: str) -> int:
    return len(text.split())


def _bytes(text: str) -> int:
    return len(text.encode())
