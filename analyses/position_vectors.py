"""How a model encodes where a token stands: the geometry of its position vectors, the rows of W_pos.

    similarity(i, j)  cosine of the vectors of positions i and j
    components        principal components of W_pos without its mean, and the variance that they explain
    spectrum(k)       share of W_pos, without its mean, in waves of k turns over the window, k = 1 .. n_ctx // 2
    wavelength, fit   for each coordinate of the stream the wave  c + a cos ωi + b sin ωi  closest to it over the
                      positions i: 2π / ω, and the share of the coordinate's variance that it explains

Sinusoidal positions (Vaswani et al. 2017, arXiv:1706.03762, §3.5) are such waves: coordinates 2i and 2i + 1 have
wavelength 2π · 10000^(2i / d_model) and fit 1. Learned ones find waves of their own, few and slow in GPT-2.

Cost: no forward; for n positions a least-squares fit at 4n frequencies.
It does not show: whether anything reads the vectors; and nothing of rotary positions or of none, which have no vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from analyses.fourier import shares_of_frequencies
from analyses.principal import principal
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.style import SIGNED

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

ELSEWHERE = {
    "rotary": "its positions turn queries and keys in every layer (rotary); compare hook_q with hook_rot_q",
    "none": "it has no positions at all, and knows where it is from causal attention alone",
}
AT_ONCE = 64
"""Frequencies that are fitted together."""


@dataclass(frozen=True, eq=False, repr=False)
class PositionGeometry(Result):
    """The vectors of a model's positions: how alike they are, along which axes they lie, of which waves they are made.

    values: cosines. coordinates: of the positions on the principal components. explained: the share of the variance on
    each. spectrum: the share of each number of turns over the window. wavelength, fit: of the closest wave, by
    coordinate of the stream, in positions; NaN and 0 for a coordinate that does not change.
    """

    title = "Position vectors"
    shows = "how alike the vectors of two positions are, and of which waves they are made"
    caveat = "That a vector is added does not say that anything reads it."
    unit = "cosine"
    scale = SIGNED

    values: Float[np.ndarray, "pos other_pos"]
    coordinates: Float[np.ndarray, "pos component"]
    explained: Float[np.ndarray, "component"]
    spectrum: Float[np.ndarray, "frequency"]
    wavelength: Float[np.ndarray, "d_model"]
    fit: Float[np.ndarray, "d_model"]

    def sections(self) -> tuple[Section, ...]:
        """Similarities, the path of the positions on two components, the spectrum, and the strongest waves."""
        from interp import markup
        from interp.page import Plot, Section

        best = np.argsort(-self.fit, kind="stable")[:10]
        waves = [[int(i), f"{self.wavelength[i]:.4g}", f"{self.fit[i]:.1%}"] for i in best]
        blocks = (
            Plot(self.plot().update_layout(title=None)),
            Plot(self.path_figure(), "positions in order, on the first two principal components"),
            Plot(self.spectrum_figure(), "share of the position vectors in waves of so many turns over the window"),
            markup.table(["coordinate", "wavelength of the closest wave", "explained"], waves),
        )
        return (Section(self.title, blocks, self.shows, self.caveat),)

    def path_figure(self, first: int = 0) -> go.Figure:
        """The positions in order on the component `first` and the one after it."""
        from analyses.embedding_pictures import scatter_figure

        names = [str(i) for i in range(len(self.values))]
        return scatter_figure(self.coordinates, self.explained, names, first, joined=True)

    def spectrum_figure(self) -> go.Figure:
        """The share of each number of turns."""
        from interp import pictures
        from interp.pictures import Axis

        turns = list(range(1, len(self.spectrum) + 1))
        return pictures.lines({"share": self.spectrum}, Axis("turns over the window", len(turns), turns), unit="share")


@torch.no_grad()
def position_geometry(model: HookedModel | Any, k: int = 10) -> PositionGeometry:
    """The geometry of W_pos: `.values[pos, other_pos]`, `.explained`, `.spectrum`, `.wavelength`, `.fit`.

    k: how many principal components.

    Raises:
        LabError: a model without position vectors (the message says how it knows where it is), one of fewer than four
            positions, or a k below 1.
    """
    W_pos = _position_vectors(model).double()
    if len(W_pos) < 4:
        raise LabError(f"{model.cfg.model_name!r} has {len(W_pos)} positions; expected at least four, to see waves in.")
    unit = normalize(W_pos, dim=-1)
    coordinates, _, explained = principal(W_pos, k)
    wavelength, fit = closest_waves(W_pos)
    return PositionGeometry(
        to_numpy(unit @ unit.T),
        to_numpy(coordinates),
        to_numpy(explained),
        to_numpy(shares_of_frequencies(W_pos)),
        to_numpy(wavelength),
        to_numpy(fit),
        labels={"frequency": list(range(1, len(W_pos) // 2 + 1))},
        provenance=provenance.of(model),
    )


def closest_waves(
    series: Float[Tensor, "pos column"],
) -> tuple[Float[Tensor, "column"], Float[Tensor, "column"]]:
    """For each column the wavelength of the wave closest to it, and the share of its variance that the wave explains.

    The least-squares fit (the periodogram of Lomb 1976) at 4n frequencies below one turn in two positions; between the
    best and its two neighbours a parabola.
    """
    places = torch.arange(len(series), dtype=series.dtype, device=series.device)
    centred = series - series.mean(0)
    variance = centred.square().sum(0)
    changes = variance > 1e-20 * series.square().sum(0)
    variance = torch.where(changes, variance, 1.0)
    n = 4 * len(series)
    omegas = torch.arange(1, n, dtype=series.dtype, device=series.device) * (math.pi / n)
    explained = torch.cat([_explained(centred, places, some) for some in omegas.split(AT_ONCE)]) / variance
    best = explained.argmax(0, keepdim=True)
    around = torch.cat([(best + step).clamp(0, len(omegas) - 1) for step in (-1, 0, 1)])
    left, middle, right = explained.gather(0, around)
    bend = left - 2 * middle + right
    shift = torch.where((bend < 0) & (around[0] < around[1]) & (around[1] < around[2]), (left - right) / (2 * bend), 0)
    omega = (best[0] + 1 + shift) * (math.pi / n)
    share = torch.stack([_explained(c[:, None], places, w[None])[0, 0] for c, w in zip(centred.T, omega, strict=True)])
    share = share / variance
    return torch.where(changes, 2 * math.pi / omega, torch.nan), torch.where(changes, share, 0.0)


def _explained(
    centred: Float[Tensor, "pos column"], places: Float[Tensor, "pos"], omegas: Float[Tensor, "omega"]
) -> Float[Tensor, "omega column"]:
    """The part of each column's sum of squares in a constant and a wave of each frequency."""
    angles = einsum(omegas, places, "omega, pos -> omega pos")
    waves = torch.stack([torch.ones_like(angles), angles.cos(), angles.sin()], -1)
    basis = torch.linalg.qr(waves).Q
    return einsum(basis, centred, "omega pos part, pos column -> omega part column").square().sum(1)


def _position_vectors(model: HookedModel | Any) -> Float[Tensor, "pos d_model"]:
    """W_pos.

    Raises:
        LabError: the model has none.
    """
    vectors = getattr(model, "W_pos", None) if "hook_pos_embed" in model.hook_dict else None
    if isinstance(vectors, Tensor):
        return vectors.detach()
    kind = str(getattr(model.cfg, "positional_embedding_type", None))
    why = ELSEWHERE.get(kind, "nothing is added to its token vectors")
    if getattr(model.cfg, "relative_attention_num_buckets", None) is not None:
        why = "a bias on attention scores says how far apart two tokens are (relative)"
    elif any(name.endswith("hook_pos_embed") for name in model.hook_dict):
        why = "it has those of an encoder and those of a decoder, and no W_pos for both"
    raise LabError(f"the model {model.cfg.model_name!r} has no position vectors: {why}.")
