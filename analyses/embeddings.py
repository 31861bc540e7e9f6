"""The geometry of a model's token vectors, the rows of W_E: which lie near which, and what differences mean.

    cosine(a, b)  = a · b / (|a| |b|)        near by direction alone
    dot(a, b)     = a · b                    a long vector is near to many
    a - b + c     ≈ the x, none of the three, with the largest  cosine(x, â - b̂ + ĉ),  of vectors of length one

The analogy is 3CosAdd (Mikolov et al. 2013, arXiv:1301.3781, §4; Levy & Goldberg 2014, "Linguistic Regularities in
Sparse and Explicit Word Representations"): "king" - "man" + "woman" should lie nearest to "queen". Leaving the three
out matters: without it the nearest is most often c itself.

Cost: no forward; one product of W_E with a vector for each token or question.
It does not show: what a token means where it is read. The first layers can rewrite its vector entirely, and in a model
without many tokens there are few neighbours to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import normalize

from analyses.labels import token_texts
from interp import provenance, text
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.style import AMOUNT

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

Token: TypeAlias = str | int
MEASURES = ("cosine", "dot product")


@dataclass(frozen=True, eq=False, repr=False)
class NearestTokens(Result):
    """For some tokens the others nearest to them, by cosine and by dot product, the nearest first.

    values: how near. ids, tokens: which, as ids and as text.
    """

    title = "Nearest tokens"
    shows = "the tokens whose vectors lie nearest to those of some tokens"
    caveat = "What a token means where it is read, after the first layers, is not seen."
    unit = "similarity"
    scale = AMOUNT

    values: Float[np.ndarray, "token measure rank"]
    ids: Int[np.ndarray, "token measure rank"]
    tokens: Shaped[np.ndarray, "token measure rank"]

    def plot(self) -> go.Figure:
        """The nearest by cosine, a row for each token."""
        return self._figure(0)

    def sections(self) -> tuple[Section, ...]:
        """A picture for each measure."""
        from interp.page import Plot, Section

        drawn = [Plot(self._figure(i), f"by {name}") for i, name in enumerate(MEASURES)]
        return (Section(self.title, drawn, self.shows, self.caveat),)

    def _figure(self, measure: int) -> go.Figure:
        from analyses.embedding_pictures import ranked_figure

        rows = [str(name) for name in self.labels["token"]]
        return ranked_figure(self.values[:, measure], self.tokens[:, measure], rows, "token", MEASURES[measure])


@dataclass(frozen=True, eq=False, repr=False)
class Analogies(Result):
    """For each question a - b + c the tokens nearest to it by cosine, the three left out, the nearest first.

    values: cosines. ids, tokens: which. answer_rank: how many tokens lie nearer than the expected answer; -1 where none
    was given.
    """

    title = "Analogies"
    shows = "the tokens whose vectors lie nearest to a - b + c"
    caveat = "The three tokens themselves are left out; one of them is often the nearest."
    unit = "cosine"
    scale = AMOUNT

    values: Float[np.ndarray, "question rank"]
    ids: Int[np.ndarray, "question rank"]
    tokens: Shaped[np.ndarray, "question rank"]
    answer_rank: Int[np.ndarray, "question"]

    @property
    def accuracy(self) -> float:
        """The share of the questions with an expected answer in which it comes first; NaN where none was given."""
        asked = self.answer_rank[self.answer_rank >= 0]
        return float((asked == 0).mean()) if len(asked) else float("nan")

    def plot(self) -> go.Figure:
        """The nearest tokens, a row for each question."""
        from analyses.embedding_pictures import ranked_figure

        rows = [str(name) for name in self.labels["question"]]
        return ranked_figure(self.values, self.tokens, rows, "question", self.unit, self.title)


@torch.no_grad()
def nearest_tokens(model: HookedModel | Any, tokens: Sequence[Token], k: int = 10) -> NearestTokens:
    """The `k` tokens nearest to each of some tokens (text or ids): `.tokens[token, measure, rank]`, `.values`.

    Raises:
        LabError: no tokens, a text that is not one token, an id that the model does not have, a k below 1.
    """
    ids, vectors = token_ids(model, tokens), token_vectors(model)
    _check_count(k)
    unit = normalize(vectors, dim=-1)
    chosen = torch.tensor(ids, device=vectors.device)
    near = torch.stack([unit[chosen] @ unit.T, vectors[chosen] @ vectors.T], 1)
    itself = rearrange(chosen, "token -> token 1 1").expand(-1, len(MEASURES), 1)
    values, found = near.scatter(-1, itself, -torch.inf).topk(min(k, len(vectors) - 1), -1)
    return NearestTokens(
        to_numpy(values),
        to_numpy(found),
        texts_of(model, to_numpy(found)),
        labels={"token": texts_of(model, np.array(ids)).tolist(), "measure": MEASURES},
        provenance=provenance.of(model, settings={"tokens": ids}),
    )


@torch.no_grad()
def analogies(model: HookedModel | Any, questions: Sequence[Sequence[Token]], k: int = 5) -> Analogies:
    """The `k` tokens nearest to a - b + c for each question (a, b, c), or (a, b, c, expected answer).

    Raises:
        LabError: no questions, one of other than three or four tokens, what `nearest_tokens` refuses, an expected
            answer that is one of the three, which are left out.
    """
    if not questions or any(len(question) not in (3, 4) for question in questions):
        raise LabError(f"questions of {[len(q) for q in questions]} tokens; expected a, b, c, and perhaps the answer.")
    _check_count(k)
    vectors = normalize(token_vectors(model), dim=-1)
    asked = [token_ids(model, question) for question in questions]
    for ids in asked:
        if set(ids[3:]) & set(ids[:3]):
            answer = str(texts_of(model, np.array(ids[3:]))[0])
            raise LabError(f"the answer {answer!r} is one of the three of its question, which are left out.")
    three = torch.tensor([ids[:3] for ids in asked], device=vectors.device)
    a, b, c = vectors[three].unbind(1)
    near = (normalize(a - b + c, dim=-1) @ vectors.T).scatter(1, three, -torch.inf)
    values, found = near.topk(min(k, max(1, len(vectors) - 3)), -1)
    ranks = [int((row > row[ids[3]]).sum()) if len(ids) > 3 else -1 for row, ids in zip(near, asked, strict=True)]
    return Analogies(
        to_numpy(values),
        to_numpy(found),
        texts_of(model, to_numpy(found)),
        np.array(ranks),
        labels={"question": [_question(model, ids) for ids in asked]},
        provenance=provenance.of(model, settings={"questions": asked}),
    )


def token_vectors(model: HookedModel | Any) -> Float[Tensor, "d_vocab d_model"]:
    """W_E, in float32 at least.

    Raises:
        LabError: the model has none.
    """
    weight = getattr(model, "W_E", None)
    if not isinstance(weight, Tensor):
        raise LabError(f"the model {model.cfg.model_name!r} has no W_E, a vector for each token.")
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def token_ids(model: HookedModel | Any, tokens: Sequence[Token]) -> list[int]:
    """Tokens given as text or as ids, as ids.

    Raises:
        LabError: none, a text that is not one token or for a model without tokenizer, an id out of range.
    """
    if isinstance(tokens, str) or not len(tokens):
        raise LabError(f"tokens={tokens!r}; expected a list of one token or more, such as [' Mary', ' John'].")
    ids = [model.to_single_token(token) if isinstance(token, str) else int(token) for token in tokens]
    for token in ids:
        if not 0 <= token < model.cfg.d_vocab:
            raise LabError(f"token id {token}; {model.cfg.model_name!r} has those from 0 to {model.cfg.d_vocab - 1}.")
    return ids


def texts_of(model: HookedModel | Any, ids: Int[np.ndarray, "*axes"]) -> Shaped[np.ndarray, "*axes"]:
    """Each id as text; as itself for a model without tokenizer."""
    return token_texts(model, ids) if model.tokenizer is not None else ids.astype(str)


def _question(model: HookedModel | Any, ids: Sequence[int]) -> str:
    a, b, c = (text.visible(word) for word in texts_of(model, np.array(ids[:3])))
    return f"{a} - {b} + {c}"


def _check_count(k: int) -> None:
    if k < 1:
        raise LabError(f"k={k}; expected at least one token to list.")
