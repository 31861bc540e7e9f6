"""`FactoredMatrix`: a product A @ B of low rank, kept as its two factors.

The circuits of a head, W_V @ W_O and W_Q @ W_K^T, are [d_model d_model] matrices of rank d_head (Elhage et al. 2021,
"A Mathematical Framework for Transformer Circuits"). Products, norms, singular values and eigenvalues of such a matrix
follow from the factors; the product itself is formed only by `AB`, or where it is smaller than they are.

Names are those of HookedTransformer's class.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Complex, Float
from torch import Tensor

from interp.errors import LabError


class FactoredMatrix:
    """A @ B with A [*leading ldim mdim] and B [*leading mdim rdim]; leading axes broadcast.

    shape: (*leading, ldim, rdim).

    Raises:
        LabError: factors whose inner or leading axes do not fit.
    """

    def __init__(self, A: Float[Tensor, "*#leading ldim mdim"], B: Float[Tensor, "*#leading mdim rdim"]) -> None:
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise LabError(f"factors of shapes {tuple(A.shape)} and {tuple(B.shape)}; expected [.. l m] and [.. m r].")
        try:
            leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError:
            raise LabError(f"the leading axes of {tuple(A.shape)} and {tuple(B.shape)} do not broadcast.") from None
        self.A = A.expand(*leading, *A.shape[-2:])
        self.B = B.expand(*leading, *B.shape[-2:])
        self.ldim, self.mdim, self.rdim = A.shape[-2], A.shape[-1], B.shape[-1]
        self.shape = torch.Size((*leading, self.ldim, self.rdim))

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def has_leading_dims(self) -> bool:
        return self.ndim > 2

    @property
    def AB(self) -> Float[Tensor, "*leading ldim rdim"]:
        """The product itself."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "*leading mdim mdim"]:
        """The product the other way round, which has the same eigenvalues but for zeros.

        Raises:
            LabError: the matrix is not square.
        """
        if self.ldim != self.rdim:
            raise LabError(f"B @ A needs a square matrix, given {self.ldim} x {self.rdim}.")
        return self.B @ self.A

    @property
    def T(self) -> FactoredMatrix:
        """The transpose."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __matmul__(self, other: Any) -> Any:
        """With a vector [rdim] a vector [*leading ldim]; with a matrix, factored or not, a FactoredMatrix."""
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        _check_inner(self.shape, other.shape, self.rdim, other.shape[-2:][0])
        if other.ndim == 1:
            inner = einsum(self.B, other, "... mdim rdim, rdim -> ... mdim")
            return einsum(self.A, inner, "... ldim mdim, ... mdim -> ... ldim")
        if self.rdim < self.mdim:  # then the product is the smaller factor
            return FactoredMatrix(self.AB, other)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> Any:
        """From the left: with a vector [ldim] a vector [*leading rdim]; with a matrix a FactoredMatrix."""
        _check_inner(other.shape, self.shape, other.shape[-1], self.ldim)
        if other.ndim == 1:
            inner = einsum(other, self.A, "ldim, ... ldim mdim -> ... mdim")
            return einsum(inner, self.B, "... mdim, ... mdim rdim -> ... rdim")
        if self.ldim < self.mdim:
            return FactoredMatrix(other, self.AB)
        return FactoredMatrix(other @ self.A, self.B)

    def __mul__(self, scalar: float | Tensor) -> FactoredMatrix:
        """Raises:
        LabError: a tensor of several numbers.
        """
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise LabError(f"* takes one number, given a tensor {tuple(scalar.shape)}; a matrix product is @.")
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Index leading axes, then rows, then columns; a row or column picked by number stays as an axis of size 1.

        Raises:
            LabError: more indices than axes.
        """
        index = index if isinstance(index, tuple) else (index,)
        if any(each is Ellipsis for each in index):
            where = next(i for i, each in enumerate(index) if each is Ellipsis)
            missing = self.ndim - sum(each is not None for each in index) + 1
            index = (*index[:where], *[slice(None)] * missing, *index[where + 1 :])
        beyond = sum(each is not None for each in index) - (self.ndim - 2)
        if beyond > 2:
            raise LabError(f"{beyond + self.ndim - 2} indices into a matrix of shape {tuple(self.shape)}.")
        leading, inner = (index, ()) if beyond <= 0 else (index[:-beyond], index[-beyond:])
        rows, columns = (*map(_kept, inner), slice(None), slice(None))[:2]
        return FactoredMatrix(self.A[(*leading, ..., rows, slice(None))], self.B[(*leading, ..., slice(None), columns)])

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """With a leading axis of size 1 at `k`."""
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def svd(
        self,
    ) -> tuple[Float[Tensor, "*leading ldim k"], Float[Tensor, "*leading k"], Float[Tensor, "*leading rdim k"]]:
        """(U, S, V) with U @ diag(S) @ V^T the matrix; k is the smallest of the three sizes. Computed once.

        By the QR decompositions of both factors, of which only the [mdim mdim] core is decomposed further.
        """
        return self._decomposed

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        (left, right_of_left), (right, right_of_right) = torch.linalg.qr(self.A), torch.linalg.qr(self.B.mT)
        U, S, Vh = torch.linalg.svd(right_of_left @ right_of_right.mT, full_matrices=False)
        return left @ U, S, right @ Vh.mT

    @property
    def U(self) -> Float[Tensor, "*leading ldim k"]:
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "*leading k"]:
        return self.svd()[1]

    @property
    def V(self) -> Float[Tensor, "*leading rdim k"]:
        return self.svd()[2]

    @property
    def Vh(self) -> Float[Tensor, "*leading rdim k"]:
        """`V`, not its transpose: the name under which HookedTransformer's users know it."""
        return self.V

    @property
    def eigenvalues(self) -> Complex[Tensor, "*leading mdim"]:
        """Those of B @ A, in float32 at least: if B A v = c v then A B (A v) = c (A v). The others are 0.

        Raises:
            LabError: the matrix is not square.
        """
        return torch.linalg.eigvals(self.BA.float() if self.BA.itemsize < 4 else self.BA)

    def norm(self) -> Float[Tensor, "*leading"]:
        """The Frobenius norm, from the Gram matrices of the factors: |AB|² = sum of (A^T A) * (B B^T)."""
        gram_A, gram_B = self.A.mT @ self.A, self.B @ self.B.mT
        return einsum(gram_A, gram_B, "... m n, ... m n -> ...").clamp(min=0).sqrt()

    def make_even(self) -> FactoredMatrix:
        """The same matrix as (U √S) @ (√S V^T), whose factors have orthogonal columns and rows of the same norms."""
        root = self.S.sqrt()
        return FactoredMatrix(
            self.U * rearrange(root, "... k -> ... 1 k"), rearrange(root, "... k -> ... k 1") * self.V.mT
        )

    def collapse_l(self) -> Float[Tensor, "*leading k rdim"]:
        """diag(S) V^T: the matrix up to a rotation of its rows' space."""
        return rearrange(self.S, "... k -> ... k 1") * self.V.mT

    def collapse_r(self) -> Float[Tensor, "*leading ldim k"]:
        """U diag(S): the matrix up to a rotation of its columns' space."""
        return self.U * rearrange(self.S, "... k -> ... 1 k")

    def get_corner(self, k: int = 3) -> Float[Tensor, "*leading rows columns"]:
        """The first k rows and columns (and, of leading axes, the first k entries)."""
        first = (slice(k),) * (self.ndim - 2)
        return self.A[(*first, slice(k), slice(None))] @ self.B[(*first, slice(None), slice(k))]

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={tuple(self.shape)}, mdim={self.mdim})"


def composition_scores(
    left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True
) -> Float[Tensor, "*leading"]:
    """|left @ right| / (|left| |right|) in Frobenius norms, by the factors alone (Elhage et al. 2021).

    broadcast_dims: every leading index of `left` with every one of `right`, [*leading_left *leading_right].

    Raises:
        LabError: left has another number of columns than right has rows.
    """
    if left.rdim != right.ldim:
        raise LabError(
            f"cannot compose {tuple(left.shape)} with {tuple(right.shape)}; expected left.rdim == right.ldim."
        )
    if broadcast_dims:
        own, others = left.ndim - 2, right.ndim - 2
        left, right = left[(..., *[None] * others, slice(None), slice(None))], right[(None,) * own]
    return (left @ right).norm() / (left.norm() * right.norm())


def _kept(index: Any) -> Any:
    """An index that keeps its axis."""
    return slice(index, index + 1 or None) if isinstance(index, int) else index


def _check_inner(left: torch.Size, right: torch.Size, columns: int, rows: int) -> None:
    if columns != rows:
        raise LabError(f"shapes {tuple(left)} and {tuple(right)} do not multiply: {columns} columns, {rows} rows.")
