"""A factored matrix does what the product of its factors does, and never has to form it.

Tolerance: float64 throughout and numbers of order one, so 1e-9 is a thousand roundings and more; eigenvalues of
matrices far from normal are less well conditioned, so the claims about them are of sums and products, which are not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import LabError
from interp.factored_matrix import FactoredMatrix, composition_scores
from models import GPT
from tests.strategies import SEEDS, models

CLOSE: Any = {"atol": 1e-9, "rtol": 1e-9}
SIZES = st.integers(1, 6)
LEADING = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def matrices(draw: st.DrawFn, square: bool = False) -> FactoredMatrix:
    leading, left, middle, right, seed = draw(LEADING), draw(SIZES), draw(SIZES), draw(SIZES), draw(SEEDS)
    right = left if square else right
    return FactoredMatrix(drawn(seed, *leading, left, middle), drawn(seed + 1, *leading, middle, right))


def same(ours: Tensor, dense: Tensor) -> None:
    torch.testing.assert_close(ours, dense, **CLOSE)


class TestAlgebra:
    @given(matrices(), SIZES, SEEDS)
    def test_products_with_matrices_on_both_sides(self, matrix: FactoredMatrix, size: int, seed: int) -> None:
        right, left = drawn(seed, matrix.rdim, size), drawn(seed, size, matrix.ldim)
        same((matrix @ right).AB, matrix.AB @ right)
        same((left @ matrix).AB, left @ matrix.AB)
        assert (matrix @ right).mdim <= max(matrix.mdim, matrix.rdim)

    @given(matrices(), SEEDS)
    def test_products_with_vectors_are_vectors(self, matrix: FactoredMatrix, seed: int) -> None:
        right, left = drawn(seed, matrix.rdim), drawn(seed, matrix.ldim)
        same(matrix @ right, matrix.AB @ right)
        same(left @ matrix, left @ matrix.AB)

    @given(matrices(), SIZES, SIZES, SEEDS)
    def test_a_product_of_two_factored_matrices_is_factored(
        self, matrix: FactoredMatrix, middle: int, right: int, seed: int
    ) -> None:
        other = FactoredMatrix(drawn(seed, matrix.rdim, middle), drawn(seed + 1, middle, right))
        product = matrix @ other
        assert isinstance(product, FactoredMatrix)
        same(product.AB, matrix.AB @ other.AB)

    @given(matrices(), st.floats(-3, 3))
    def test_transpose_and_multiples(self, matrix: FactoredMatrix, scalar: float) -> None:
        same(matrix.T.AB, matrix.AB.mT)
        same((matrix * scalar).AB, matrix.AB * scalar)
        same((scalar * matrix).AB, matrix.AB * scalar)
        same((matrix * torch.tensor(scalar, dtype=torch.float64)).AB, matrix.AB * scalar)

    @given(matrices(), SIZES)
    def test_corners(self, matrix: FactoredMatrix, k: int) -> None:
        index = (*[slice(k)] * (matrix.ndim - 2), slice(k), slice(k))
        same(matrix.get_corner(k), matrix.AB[index])

    def test_sizes_are_those_of_the_product(self) -> None:
        matrix = FactoredMatrix(drawn(0, 2, 1, 5, 3), drawn(1, 4, 3, 6))
        assert matrix.shape == matrix.AB.shape == (2, 4, 5, 6)
        assert (matrix.ldim, matrix.mdim, matrix.rdim, matrix.ndim) == (5, 3, 6, 4)
        assert matrix.has_leading_dims
        assert not matrix[0, 0].has_leading_dims
        assert matrix.pair == (matrix.A, matrix.B)
        assert matrix.unsqueeze(1).shape == (2, 1, 4, 5, 6)

    def test_the_product_is_never_larger_than_its_factors_need(self) -> None:
        narrow = FactoredMatrix(drawn(0, 50, 2), drawn(1, 2, 50)) @ drawn(2, 50, 40)
        assert narrow.A.shape == (50, 2)
        assert narrow.B.shape == (2, 40)


class TestIndexing:
    @pytest.mark.parametrize(
        ("index", "dense"),
        [
            (1, 1),
            ((1, 2), (1, 2)),
            ((slice(None), 0), (slice(None), 0)),
            ((None, 0), (None, 0)),
            ((..., slice(1, 3)), (..., slice(1, 3))),
            ((0, 1, slice(2)), (0, 1, slice(2))),
            ((0, 1, 3), (0, 1, slice(3, 4))),
            ((0, 1, -1, -1), (0, 1, slice(-1, None), slice(-1, None))),
            ((0, 1, slice(None), 2), (0, 1, slice(None), slice(2, 3))),
        ],
    )
    def test_it_indexes_the_product(self, index: Any, dense: Any) -> None:
        matrix = FactoredMatrix(drawn(0, 2, 3, 5, 2), drawn(1, 2, 3, 2, 6))
        same(matrix[index].AB, matrix.AB[dense])

    def test_a_list_or_a_tensor_picks_several(self) -> None:
        matrix = FactoredMatrix(drawn(0, 4, 5, 2), drawn(1, 4, 2, 6))
        same(matrix[[2, 0]].AB, matrix.AB[[2, 0]])
        same(matrix[torch.tensor([3, 1])].AB, matrix.AB[[3, 1]])


class TestDecompositions:
    @given(matrices())
    def test_the_singular_value_decomposition_gives_the_matrix_back(self, matrix: FactoredMatrix) -> None:
        U, S, V = matrix.svd()
        same(U * S[..., None, :] @ V.mT, matrix.AB)
        same(U.mT @ U, torch.eye(S.shape[-1], dtype=torch.float64).expand(*S.shape, S.shape[-1]))
        same(V.mT @ V, torch.eye(S.shape[-1], dtype=torch.float64).expand(*S.shape, S.shape[-1]))
        same(S, torch.linalg.svdvals(matrix.AB)[..., : S.shape[-1]])
        assert matrix.U is U
        assert matrix.S is S
        assert matrix.V is V
        assert matrix.Vh is V

    @given(matrices())
    def test_norms_and_collapsed_forms(self, matrix: FactoredMatrix) -> None:
        same(matrix.norm(), matrix.AB.pow(2).sum((-2, -1)).sqrt())
        same(matrix.collapse_l().mT @ matrix.collapse_l(), matrix.AB.mT @ matrix.AB)
        same(matrix.collapse_r() @ matrix.collapse_r().mT, matrix.AB @ matrix.AB.mT)

    @given(matrices())
    def test_even_factors_share_the_singular_values(self, matrix: FactoredMatrix) -> None:
        even = matrix.make_even()
        same(even.AB, matrix.AB)
        same(even.A.mT @ even.A, torch.diag_embed(matrix.S))
        same(even.B @ even.B.mT, torch.diag_embed(matrix.S))

    @given(matrices(square=True))
    def test_eigenvalues_have_the_trace_and_the_second_moment_of_the_matrix(self, matrix: FactoredMatrix) -> None:
        values = matrix.eigenvalues
        trace = matrix.AB.diagonal(dim1=-2, dim2=-1).sum(-1)
        square = (matrix.AB @ matrix.AB).diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close(values.sum(-1).real, trace, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(values.pow(2).sum(-1).real, square, atol=1e-6, rtol=1e-6)

    def test_eigenvalues_of_half_precision_are_computed_in_float32(self) -> None:
        matrix = FactoredMatrix(drawn(0, 4, 2).bfloat16(), drawn(1, 2, 4).bfloat16())
        assert matrix.eigenvalues.dtype == torch.complex64


class TestCompositionScores:
    @given(matrices(), SEEDS, st.lists(st.integers(1, 3), max_size=2).map(tuple))
    def test_every_pair_is_the_ratio_of_the_norms(self, left: FactoredMatrix, seed: int, leading: tuple) -> None:
        right = FactoredMatrix(drawn(seed, *leading, left.rdim, 2), drawn(seed + 1, *leading, 2, 3))
        scores = composition_scores(left, right)
        assert scores.shape == (*left.shape[:-2], *right.shape[:-2])
        ours, others = left.AB.reshape(-1, *left.shape[-2:]), right.AB.reshape(-1, *right.shape[-2:])
        expected = [(a @ b).norm() / (a.norm() * b.norm()) for a in ours for b in others]
        same(scores.flatten(), torch.stack(expected))

    def test_paired_heads_are_composed_one_to_one(self) -> None:
        left, right = (FactoredMatrix(drawn(s, 3, 4, 2), drawn(s + 1, 3, 2, 4)) for s in (0, 2))
        same(composition_scores(left, right, broadcast_dims=False), composition_scores(left, right).diagonal())


class TestCircuits:
    @given(models())
    def test_circuits_are_the_products_of_each_heads_weights(self, model: GPT) -> None:
        group = model.cfg.n_heads // model.cfg.n_kv_heads
        for layer, block in enumerate(model.blocks):
            for head in range(model.cfg.n_heads):
                attn, shared = block.attn, head // group
                same(model.QK[layer, head].AB, attn.W_Q[head] @ attn.W_K[shared].T)
                same(attn.OV[head].AB, attn.W_V[shared] @ attn.W_O[head])
                same(model.OV[layer, head].AB, attn.OV[head].AB)

    @given(models(), st.sampled_from(["Q", "K", "V"]))
    def test_composition_scores_are_of_later_heads_alone(self, model: GPT, mode: str) -> None:
        scores = model.all_composition_scores(mode)
        circuit = {"Q": model.QK.AB, "K": model.QK.AB.mT, "V": model.OV.AB}[mode]
        for first in range(model.cfg.n_layers):
            for second in range(model.cfg.n_layers):
                a, b = model.OV.AB[first, 0], circuit[second, 1]
                expected = (a @ b).norm() / (a.norm() * b.norm()) if first < second else torch.zeros(())
                same(scores[first, 0, second, 1], expected.to(scores.dtype))


@pytest.mark.usefixtures("unchecked")
class TestRefusals:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda: FactoredMatrix(drawn(0, 3, 2), drawn(1, 3, 2)), "expected [.. l m] and [.. m r]"),
            (lambda: FactoredMatrix(drawn(0, 2, 3, 2), drawn(1, 3, 2, 3)), "do not broadcast"),
            (lambda: FactoredMatrix(drawn(0, 3, 2), drawn(1, 2, 4)) @ drawn(2, 3, 3), "do not multiply"),
            (lambda: drawn(2, 5) @ FactoredMatrix(drawn(0, 3, 2), drawn(1, 2, 4)), "do not multiply"),
            (lambda: FactoredMatrix(drawn(0, 3, 2), drawn(1, 2, 4)).eigenvalues, "square matrix"),
            (lambda: FactoredMatrix(drawn(0, 3, 2), drawn(1, 2, 4)) * drawn(0, 2), "takes one number"),
            (lambda: FactoredMatrix(drawn(0, 3, 2), drawn(1, 2, 4))[0, 0, 0], "3 indices"),
            (
                lambda: composition_scores(
                    FactoredMatrix(drawn(0, 3, 2), drawn(1, 2, 4)), FactoredMatrix(drawn(0, 3, 2), drawn(1, 2, 4))
                ),
                "cannot compose",
            ),
        ],
    )
    def test_shapes_that_do_not_fit_are_refused_in_words(self, wrong: Any, message: str) -> None:
        with pytest.raises(LabError) as caught:
            wrong()
        assert message in str(caught.value)

    def test_an_unknown_mode_of_composition_is_refused(self) -> None:
        from models import TransformerConfig

        model = GPT(TransformerConfig(n_layers=1, n_heads=1, d_model=4, d_vocab=3, n_ctx=4))
        with pytest.raises(LabError, match="unknown mode 'O'"):
            model.all_composition_scores("O")
