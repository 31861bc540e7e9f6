"""The same text as two models read it: token by token, so that position i of one is position i of the other.

Texts are tokenised by each model itself. Where both give the same ids and have vocabularies of one size, their
predictions mean the same. Where the ids differ but the tokens are the same pieces of text, positions still correspond
and what does not read a vocabulary can be compared. Anything else is refused.

Texts of one length run together and nothing is ever padded, so no number depends on which texts it was computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from analyses.lens import one_prompt
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.prompt_text import shown
from interp.provenance import Provenance

TOKENS_AT_ONCE = 1024
"""Tokens that run together: all activations of both models at so many are held at a time."""

Row: TypeAlias = Int[Tensor, "_"]
Measure = Callable[[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]], tuple[Shaped[Tensor, "batch pos ..."], ...]]


@dataclass(frozen=True, eq=False)
class SameText:
    """Texts as token ids of two models, each on the CPU. Both have as many tokens in each text.

    words: the tokens as text (the ids, for a model without a tokenizer). readable: whether they are text.
    same_vocabulary: whether an id means the same to both.
    """

    rows_a: tuple[Row, ...]
    rows_b: tuple[Row, ...]
    words: tuple[tuple[str, ...], ...]
    readable: bool
    same_vocabulary: bool

    @cached_property
    def position(self) -> Int[Tensor, "token"]:
        """Where in its text each token stands."""
        return torch.cat([torch.arange(len(row)) for row in self.rows_a])

    @cached_property
    def foretold(self) -> Bool[Tensor, "token"]:
        """Whether the token is followed by another one, which its prediction can be held against."""
        return torch.cat([torch.arange(len(row)) < len(row) - 1 for row in self.rows_a])

    @cached_property
    def distinct(self) -> tuple[Bool[Tensor, "_"], ...]:
        """For each text, the positions that are new evidence: not the first position, whose stream is an outlier in
        most models, and not a beginning that an earlier text shares, where a causal model repeats itself."""
        beginnings: dict[tuple[int, int], int] = {}  # a beginning, as the one before it and its last token
        marks = []
        for row in self.rows_a:
            marks.append(torch.zeros(len(row), dtype=torch.bool))
            before = 0
            for i, token in enumerate(row.tolist()):
                marks[-1][i] = i > 0 and (before, token) not in beginnings
                before = beginnings.setdefault((before, token), len(beginnings) + 1)
        return tuple(marks)

    def batches(self) -> Iterator[tuple[list[int], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]]:
        """Texts of one length together: their numbers, and their ids for either model."""
        lengths = [len(row) for row in self.rows_a]
        for length in sorted(set(lengths)):
            places = [i for i, n in enumerate(lengths) if n == length]
            size = max(1, TOKENS_AT_ONCE // length)
            for start in range(0, len(places), size):
                some = places[start : start + size]
                yield some, torch.stack([self.rows_a[i] for i in some]), torch.stack([self.rows_b[i] for i in some])

    def tokenwise(self, measure: Measure) -> tuple[Shaped[Tensor, "token ..."], ...]:
        """What `measure` gives for each position, with the texts one after the other, in their order."""
        found: list[tuple[Tensor, ...]] = [()] * len(self.rows_a)
        with torch.inference_mode():
            for places, a, b in self.batches():
                outputs = measure(a, b)
                for i, place in enumerate(places):
                    found[place] = tuple(output[i] for output in outputs)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def prompts(self) -> list[str | list[int]]:
        """The texts as a person would give them: as text where they are text, else as ids."""
        both = zip(self.rows_a, self.words, strict=True)
        return ["".join(words) if self.readable else row.tolist() for row, words in both]

    def need_predictions(self) -> None:
        """Raises:
        LabError: the models predict different things.
        """
        if not self.same_vocabulary:
            raise LabError("the models have different vocabularies, so what they predict cannot be held together.")

    def need_next_tokens(self) -> None:
        """Raises:
        LabError: no text has a token that another one foretells.
        """
        if not self.foretold.any():
            raise LabError("no text has two tokens, so there is no next token to predict; give longer texts.")


Texts: TypeAlias = (
    SameText
    | str
    | Sequence[str]
    | Int[Tensor, "pos"]
    | Int[Tensor, "batch pos"]
    | Sequence[Int[Tensor, "_"]]
    | Sequence[Sequence[int]]
)


def same_text(
    a: HookedModel | Any, b: HookedModel | Any, texts: Texts, mask: Bool[Tensor, "_ _"] | None = None
) -> SameText:
    """One text or several, or token ids (a row, rows of one length, or a list of rows), as both models read them.

    mask: for rows of ids that are padded, which are real. The rest is taken off.

    Raises:
        LabError: no text, an empty or too long one, ids for models of different vocabularies, or texts that the
            models divide differently; a mask that does not fit.
    """
    if isinstance(texts, SameText):
        return texts
    several = _several(texts) if mask is None else _without_padding(texts, mask)
    rows_a, rows_b = ([_row(model, other, text) for text in several] for model, other in ((a, b), (b, a)))
    same = a.cfg.d_vocab == b.cfg.d_vocab and all(map(torch.equal, rows_a, rows_b))
    if not same:
        for ids_a, ids_b in zip(rows_a, rows_b, strict=True):
            _check_aligned(a, b, ids_a, ids_b)
    reader = a if a.tokenizer is not None else b
    words = [tuple(reader.to_str_tokens(row)) for row in rows_a]
    return SameText(tuple(rows_a), tuple(rows_b), tuple(words), reader.tokenizer is not None, same)


def _several(texts: Any) -> list[Any]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Tensor):
        return [texts] if texts.ndim == 1 else list(texts)
    several = list(texts)
    if not several or len({isinstance(text, str) for text in several}) > 1:
        raise LabError(f"expected one text or more, or rows of token ids; given {several!r}.")
    return [text if isinstance(text, str) else torch.as_tensor(text) for text in several]


def _without_padding(rows: Any, mask: Bool[Tensor, "_ _"]) -> list[Tensor]:
    if not isinstance(rows, Tensor) or rows.shape != mask.shape:
        given = list(rows.shape) if isinstance(rows, Tensor) else rows
        raise LabError(f"a mask goes with token ids of its own shape, {list(mask.shape)}; given {given!r}.")
    return [row[real] for row, real in zip(rows, mask, strict=True)]


def _row(model: HookedModel | Any, other: HookedModel | Any, text: Any) -> Row:
    """One text as ids that the model has; where it has no tokenizer, the other's ids.

    Raises:
        LabError: an empty or too long text, or ids that mean nothing to the model.
    """
    reader = model if model.tokenizer is not None or not isinstance(text, str) else other
    if isinstance(text, str) and reader.tokenizer is None:
        raise LabError(f"the model {model.cfg.model_name!r} has no tokenizer, so it takes no text; give token ids.")
    if (reader is not model or not isinstance(text, str)) and model.cfg.d_vocab != other.cfg.d_vocab:
        raise LabError(
            f"the models have vocabularies of {model.cfg.d_vocab} and {other.cfg.d_vocab} tokens; expected the same, "
            "so that token ids mean the same.  Try text, for two models with tokenizers: it is enough that both divide "
            "it into the same tokens."
        )
    row = one_prompt(model, one_prompt(reader, text))[0].cpu()
    if row.is_floating_point() or int(row.min()) < 0 or int(row.max()) >= model.cfg.d_vocab:
        raise LabError(f"expected token ids from 0 to {model.cfg.d_vocab - 1}; given {row.tolist()[:20]}.")
    return row.long()


def _check_aligned(a: HookedModel | Any, b: HookedModel | Any, ids_a: Row, ids_b: Row) -> None:
    if _pieces(a, ids_a) != _pieces(b, ids_b):
        raise LabError(
            "the models divide a text differently, so their positions do not correspond: "
            f"{a.cfg.model_name!r} reads {shown(a, ids_a.tolist())}, {b.cfg.model_name!r} {shown(b, ids_b.tolist())}; "
            "expected the same tokens.  Try a text of common words, or the same start token for both."
        )


def _pieces(model: HookedModel | Any, ids: Row) -> list[str | None]:
    """The tokens as text; None for the start token, which tokenizers call by different names."""
    start = model.tokenizer.bos_token_id
    words = model.to_str_tokens(ids)
    return [None if i == start else word for i, word in zip(ids.tolist(), words, strict=True)]


def of_both(
    a: HookedModel | Any,
    b: HookedModel | Any,
    text: SameText,
    site: str | None = None,
    seed: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Provenance:
    """The provenance of an analysis of two models: that of `a`, with that of `b` in its settings."""
    known = {"compared with": provenance.of(b).to_dict(), **(settings or {})}
    return provenance.of(a, prompts=text.prompts(), site=site, seed=seed, settings=known)
