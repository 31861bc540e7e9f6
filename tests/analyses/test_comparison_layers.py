"""CKA is what its formula says, and is blind to bases, scales and shifts, as it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analyses import layer_similarity
from analyses.similarity import MOST, debiased_cka
from interp import LabError
from models import GPT, TransformerConfig
from tests.strategies import SEEDS, models, random_model, token_batches

SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 16}
DRAWN = st.tuples(SEEDS, st.integers(4, 9), st.integers(1, 12), st.integers(1, 12))


def vectors(drawn: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, torch.Generator]:
    seed, tokens, wide_x, wide_y = drawn
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(tokens, wide, generator=generator, dtype=torch.float64) for wide in (wide_x, wide_y))
    return x, y, generator


def song_hsic(x: Tensor, y: Tensor) -> float:
    """Equation 5 of Song et al. 2012, in its own words: traces of Gram matrices without their diagonals."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741 (the paper's letters)
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    one = torch.ones(n, 1, dtype=x.dtype)
    trace = torch.trace(k @ l)
    product = (one.T @ k @ one) * (one.T @ l @ one) / ((n - 1) * (n - 2))
    return float((trace + product - 2 / (n - 2) * (one.T @ k @ l @ one)) / (n * (n - 3)))


@given(DRAWN)
def test_cka_is_the_formula_by_naive_gram_matrices(drawn: tuple[int, int, int, int]) -> None:
    x, y, _ = vectors(drawn)
    expected = song_hsic(x, y) / np.sqrt(song_hsic(x, x) * song_hsic(y, y))
    # float64 by two routes; sums of n^2 numbers of order one
    assert float(debiased_cka(x, y)) == pytest.approx(expected, abs=1e-9)


@given(DRAWN)
def test_rotation_scale_and_shift_do_not_change_cka(drawn: tuple[int, int, int, int]) -> None:
    x, y, generator = vectors(drawn)
    wide = x.shape[1]
    q = torch.linalg.qr(torch.randn(wide, wide, generator=generator, dtype=torch.float64)).Q
    moved = 3 * x @ q + torch.randn(wide, generator=generator, dtype=torch.float64)
    assert float(debiased_cka(x, moved)) == pytest.approx(1, abs=1e-9)
    assert float(debiased_cka(moved, y)) == pytest.approx(float(debiased_cka(x, y)), abs=1e-9)


def test_unrelated_vectors_are_not_alike_even_in_more_dimensions_than_tokens() -> None:
    """Where the biased estimator says 0.9: the mean over 200 draws is within four standard errors of zero."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 20, 200, generator=generator, dtype=torch.float64) for _ in range(200)]
    found = torch.stack([debiased_cka(x, y) for x, y in drawn])
    assert abs(found.mean()) < 4 * found.std() / len(found) ** 0.5
    x, y = (v - v.mean(0) for v in drawn[0])
    biased = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert biased > 0.8


@given(models(), models(), token_batches(min_pos=5))
def test_every_cell_is_the_cka_of_the_two_streams(a: GPT, b: GPT, tokens: Tensor) -> None:
    found = layer_similarity(a, b, tokens)
    assert found.values.shape == (a.cfg.n_layers + 1, b.cfg.n_layers + 1)
    firsts = {
        tuple(row[: i + 1].tolist()): (r, i) for r, row in reversed(list(enumerate(tokens))) for i in range(len(row))
    }
    places = sorted(place for place in firsts.values() if place[1] > 0)
    assert found.tokens == len(places)

    caches = [model.run_with_cache(tokens)[1] for model in (a, b)]

    def stream(model: int, row: int) -> Tensor:
        after = "normalized_resid_post" if (a, b)[model].cfg.norm_places == "stream" else "resid_post"
        name = "blocks.0.hook_resid_pre" if row == 0 else f"blocks.{row - 1}.hook_{after}"
        return torch.stack([caches[model][name].detach()[place] for place in places])

    for i in range(a.cfg.n_layers + 1):
        for j in range(b.cfg.n_layers + 1):
            x, y = stream(0, i), stream(1, j)
            if min(v.var(0).sum() / v.pow(2).sum() for v in (x, y)) < 1e-10:
                continue  # nothing but rounding tells the positions apart
            assert found.values[i, j] == pytest.approx(float(debiased_cka(x, y)), abs=1e-8)


def test_a_rotated_copy_has_the_same_layers() -> None:
    """Embeddings and everything that reads and writes the stream turned together: another basis, the same model."""
    sizes = {**SIZES, "normalization_type": None, "positional_embedding_type": "none", "attn_only": True}
    a, b = (random_model(TransformerConfig(**sizes), 3) for _ in range(2))
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    with torch.no_grad():
        b.embed.W_E.copy_(a.embed.W_E @ q)
        b.unembed.W_U.copy_(q.T @ a.W_U)
        for block, other in zip(a.blocks, b.blocks, strict=True):
            for name in ("W_Q", "W_K", "W_V"):
                getattr(other.attn, name).copy_(q.T @ getattr(block.attn, name))
            other.attn.W_O.copy_(block.attn.W_O @ q)
            if block.attn.b_O is not None:
                other.attn.b_O.copy_(block.attn.b_O @ q)
    tokens = torch.tensor([[1, 2, 3, 1, 2, 5, 7], [4, 4, 6, 1, 0, 2, 10]])
    torch.testing.assert_close(a(tokens), b(tokens))
    found = layer_similarity(a, b, tokens)
    np.testing.assert_allclose(np.diagonal(found.values), 1, atol=1e-9)
    assert [best.index for best in found.best()] == [(0, 0), (1, 1), (2, 2)]


def test_a_text_given_twice_counts_once() -> None:
    a, b = (random_model(TransformerConfig(**SIZES), seed) for seed in (0, 1))
    row = torch.tensor([1, 2, 3, 1, 2, 5])
    once, twice = layer_similarity(a, b, [row]), layer_similarity(a, b, [row, row])
    assert once.tokens == twice.tokens == 5
    np.testing.assert_allclose(once.values, twice.values, atol=1e-12)  # batches add in another order


def test_too_few_tokens_are_refused() -> None:
    a = random_model(TransformerConfig(**SIZES))
    with pytest.raises(
        LabError, match="at least 4 different positions beside the first of each text; the texts have 3"
    ):
        layer_similarity(a, a, torch.tensor([1, 2, 3, 4]))
    with pytest.raises(LabError, match="given 3 and 3"):
        debiased_cka(torch.randn(3, 2), torch.randn(3, 2))


def test_of_many_tokens_a_thousand_are_used() -> None:
    a = random_model(TransformerConfig(**SIZES | {"n_ctx": 64}))
    tokens = torch.randint(11, (20, 64), generator=torch.Generator().manual_seed(0))
    assert layer_similarity(a, a, tokens).tokens == MOST


def test_streams_that_are_the_same_everywhere_have_no_similarity() -> None:
    """An embedding without positions, of one token: 0 / 0, and not the correlation of rounding errors."""
    sizes = SIZES | {"positional_embedding_type": "none"}
    found = layer_similarity(*(random_model(TransformerConfig(**sizes), seed) for seed in (0, 1)), torch.full((8,), 3))
    assert np.isnan(found.values).all()
    assert found.best() == ()
