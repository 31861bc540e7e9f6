"""Neighbours, analogies and principal components of token vectors: against loops, on vectors with known answers.

float64 throughout; 1e-9: sums of some ten numbers of order one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analyses import analogies, embedding_pca, nearest_tokens
from interp.errors import LabError
from interp.results import Result
from models import GPT, TransformerConfig
from models.tokenizers import characters
from tests.hostile import SCRIPT, hostile_model
from tests.strategies import SEEDS

CLOSE = 1e-9


def model_of(vectors: Tensor, alphabet: str | None = None) -> GPT:
    """A model with these token vectors."""
    d_vocab, d_model = vectors.shape
    cfg = TransformerConfig(1, 1, d_model, d_vocab, n_ctx=4, model_name="mine")
    model = GPT(cfg, dtype=torch.float64, tokenizer=None if alphabet is None else characters(alphabet))
    with torch.no_grad():
        model.embed.W_E.copy_(vectors)
    return model


def drawn(seed: int, d_vocab: int = 9, d_model: int = 5) -> Tensor:
    return torch.randn(d_vocab, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


@given(seed=SEEDS, k=st.integers(1, 12))
def test_neighbours_are_those_that_a_loop_finds(seed: int, k: int) -> None:
    W_E = drawn(seed)
    found = nearest_tokens(model_of(W_E), [4, 0], k)
    rows = W_E.tolist()
    for i, token in enumerate((4, 0)):
        others = [t for t in range(9) if t != token]
        by_cosine = sorted(others, key=lambda t: -cosine(rows[token], rows[t]))[:k]
        by_dot = sorted(others, key=lambda t: -sum(x * y for x, y in zip(rows[token], rows[t], strict=True)))[:k]
        assert found.ids[i].tolist() == [by_cosine, by_dot]
        np.testing.assert_allclose(found.values[i, 0], [cosine(rows[token], rows[t]) for t in by_cosine], atol=CLOSE)
        np.testing.assert_allclose(found.values[i, 1], [float(W_E[token] @ W_E[t]) for t in by_dot], atol=CLOSE)


@given(seed=SEEDS)
def test_analogies_are_those_that_a_loop_finds(seed: int) -> None:
    W_E = drawn(seed)
    found = analogies(model_of(W_E), [(1, 2, 3, 7), (5, 0, 8)], k=4)
    rows = [[x / math.hypot(*row) for x in row] for row in W_E.tolist()]
    for i, (a, b, c) in enumerate([(1, 2, 3), (5, 0, 8)]):
        target = [x - y + z for x, y, z in zip(rows[a], rows[b], rows[c], strict=True)]
        order = sorted((t for t in range(9) if t not in (a, b, c)), key=lambda t: -cosine(target, rows[t]))
        assert found.ids[i].tolist() == order[:4]
        np.testing.assert_allclose(found.values[i], [cosine(target, rows[t]) for t in order[:4]], atol=CLOSE)
        if i == 0:
            assert found.answer_rank[0] == order.index(7)
    assert found.answer_rank[1] == -1
    assert found.accuracy == float(found.answer_rank[0] == 0)


@given(seed=SEEDS)
def test_lengths_decide_dot_products_and_no_cosine(seed: int) -> None:
    W_E = drawn(seed)
    lengths = torch.rand(9, 1, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) * 10 + 0.1
    before, after = model_of(W_E), model_of(W_E * lengths)
    near = [nearest_tokens(model, [3]).values[:, 0] for model in (before, after)]
    asked = [analogies(model, [(0, 1, 2)]).values for model in (before, after)]
    np.testing.assert_allclose(near[0], near[1], atol=CLOSE)
    np.testing.assert_allclose(asked[0], asked[1], atol=CLOSE)
    long = model_of(torch.cat([drawn(0, 8), 1000 * drawn(0, 8).mean(0, keepdim=True)]))
    dots = nearest_tokens(long, range(8)).ids[:, 1]
    assert ((dots[:, 0] == 8) | (dots[:, -1] == 8)).all(), "a very long vector is the first or the last of all"


@given(seed=SEEDS)
def test_turning_all_vectors_changes_nothing(seed: int) -> None:
    turn = torch.linalg.qr(drawn(seed + 1, 5, 5)).Q
    before, after = model_of(drawn(seed)), model_of(drawn(seed) @ turn)
    np.testing.assert_allclose(nearest_tokens(before, [1]).values, nearest_tokens(after, [1]).values, atol=CLOSE)
    np.testing.assert_allclose(analogies(before, [(0, 1, 2)]).values, analogies(after, [(0, 1, 2)]).values, atol=CLOSE)
    np.testing.assert_allclose(embedding_pca(before).values, embedding_pca(after).values, atol=CLOSE)


def test_what_differs_in_one_thing_is_an_analogy() -> None:
    """Tokens are capital or small, and one of three letters: b - a + A is B, whatever the letters' own vectors are."""
    letters, capital = drawn(2, 3, 6), drawn(3, 1, 6)
    model = model_of(torch.cat([letters, letters + 0.5 * capital, -capital]), "abcABC")
    found = analogies(model, [("b", "a", "A", "B"), ("C", "B", "b", "c"), ("a", "c", "C", "A")], k=1)
    assert found.tokens[:, 0].tolist() == ["B", "c", "A"]
    assert found.accuracy == 1.0
    assert list(found.labels["question"]) == ["b - a + A", "C - B + b", "a - c + C"]


def test_the_three_of_a_question_are_left_out() -> None:
    """a = b, so that a - b + c is c itself."""
    model = model_of(torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 3], [-1, -1]], dtype=torch.float64))
    assert analogies(model, [(0, 1, 2)]).ids.tolist() == [[3, 4]]


def test_known_neighbours_by_direction_and_by_length() -> None:
    model = model_of(torch.tensor([[1.0, 0], [2, 0.1], [9, 9], [0, 5], [-1, 0]], dtype=torch.float64), "abcd")
    found = nearest_tokens(model, ["a"], 2)
    assert found.tokens[0].tolist() == [["b", "c"], ["c", "b"]]
    assert found.labels == {"token": ("a",), "measure": ("cosine", "dot product")}


@given(seed=SEEDS, k=st.integers(1, 5))
def test_components_are_those_of_numpy(seed: int, k: int) -> None:
    W_E = drawn(seed)
    found = embedding_pca(model_of(W_E), [0, 2, 3, 4, 6, 8], k)
    X = W_E.numpy()[[0, 2, 3, 4, 6, 8]]
    X = X - X.mean(0)
    _, S, Vh = np.linalg.svd(X, full_matrices=False)
    np.testing.assert_allclose(found.explained, (S**2 / (S**2).sum())[:k], atol=CLOSE)
    np.testing.assert_allclose(np.abs(found.directions @ Vh[:k].T), np.eye(k), atol=1e-6)  # gaps may be small
    np.testing.assert_allclose(found.values, X @ found.directions.T, atol=CLOSE)
    furthest = found.values[np.abs(found.values).argmax(0), np.arange(k)]
    assert (furthest > 0).all()


@given(seed=SEEDS)
def test_all_components_hold_everything(seed: int) -> None:
    W_E = drawn(seed)
    found = embedding_pca(model_of(W_E), k=5)
    assert found.explained.sum() == pytest.approx(1.0, abs=CLOSE)
    np.testing.assert_allclose(found.values @ found.directions, (W_E - W_E.mean(0)).numpy(), atol=CLOSE)


def test_points_in_a_plane_have_two_components() -> None:
    found = embedding_pca(model_of(drawn(0)), [1, 2, 3], k=10)
    assert found.values.shape == (3, 2)
    assert found.explained.sum() == pytest.approx(1.0, abs=CLOSE)


def test_half_precision_is_read_in_float32() -> None:
    model = model_of(drawn(0))
    model.to(dtype=torch.bfloat16)
    found = nearest_tokens(model, [0])
    assert found.values.dtype == np.float32
    expected = nearest_tokens(model_of(model.W_E.double()), [0])
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)  # the same rounded weights, float32 products


def results() -> list[Result]:
    model = hostile_model()
    return [nearest_tokens(model, [1, 2]), analogies(model, [(1, 2, 3, 4)]), embedding_pca(model)]


@pytest.mark.parametrize("number", range(3))
def test_a_result_comes_back_from_its_file_and_its_tokens_are_inert(number: int, tmp_path: Path) -> None:
    found = results()[number]
    found.save(tmp_path / "it.safetensors")
    assert Result.load(tmp_path / "it.safetensors") == found
    assert len(found.to_dataframe()) == found.values.size  # type: ignore[attr-defined]
    page = found.to_html()
    assert SCRIPT not in page
    assert "window.harmed" in page, "the token is shown"


def test_long_lists_of_points_say_what_is_left_out() -> None:
    found = embedding_pca(model_of(drawn(0, 2500, 3)), k=2)
    assert "the first 2000 of 2500" in found.plot().layout.title.subtitle.text


REFUSALS: dict[str, tuple[Any, str]] = {
    "no tokens": (lambda model: nearest_tokens(model, []), r"expected a list of one token or more"),
    "one text": (lambda model: nearest_tokens(model, "ab"), r"tokens='ab'; expected a list"),
    "two tokens": (lambda model: nearest_tokens(model, ["ab"]), r"'ab' is 2 tokens"),
    "unknown character": (lambda model: nearest_tokens(model, ["é"]), r"cannot encode 'é'"),
    "id out of range": (lambda model: nearest_tokens(model, [9]), r"token id 9; 'mine' has those from 0 to 8"),
    "negative id": (lambda model: nearest_tokens(model, [-1]), r"token id -1"),
    "nothing to list": (lambda model: nearest_tokens(model, [1], 0), r"k=0"),
    "no questions": (lambda model: analogies(model, []), r"questions of \[\] tokens"),
    "half a question": (lambda model: analogies(model, [(1, 2)]), r"questions of \[2\] tokens"),
    "answer asked": (lambda model: analogies(model, [("a", "b", "c", "a")]), r"the answer 'a' is one of the three"),
    "nothing to list of analogies": (lambda model: analogies(model, [(1, 2, 3)], 0), r"k=0"),
    "one token": (lambda model: embedding_pca(model, [3, 3]), r"1 tokens; expected at least two different"),
    "no component": (lambda model: embedding_pca(model, k=0), r"k=0; expected at least one component"),
}


@pytest.mark.parametrize(("ask", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_makes_no_sense_is_refused(ask: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        ask(model_of(drawn(0), "abcdefgh"))


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(LabError, match="has no tokenizer"):
        nearest_tokens(model_of(drawn(0)), ["a"])


def test_vectors_that_are_all_the_same_have_no_components() -> None:
    with pytest.raises(LabError, match="all the same"):
        embedding_pca(model_of(torch.ones(4, 3)))
