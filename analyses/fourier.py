"""A model that adds modulo p, in the Fourier basis: which frequencies it computes with, and what it is without them.

For tokens a, b and an equals sign, the logits at the equals sign, without their mean over answers, are a table
[a b answer]. Its part of frequency k is its projection on  cos 2πk(a+b)/p  and  sin 2πk(a+b)/p,  answer by answer:

    share(k)         |part of frequency k|² / |logits|²                       key frequencies: the largest few
    restricted loss  of the parts of the key frequencies alone, and no other part of the logits
    excluded loss    of the logits without the parts of the key frequencies
    loss without k   of the logits without the part of frequency k alone

Nanda et al. 2023 (arXiv:2301.05217, §4.2, §5.1, appendix B). That the restricted loss is no higher than the loss, and
the excluded one no lower than ln p (guessing), says that the model adds by these frequencies and nothing else.

Cost: a forward of all p² pairs, in chunks.
It does not show: how the parts come about (embedding and neurons have spectra of their own; that of W_E is given).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.stream_weights import written
from interp import markup, provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import AMOUNT

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

KEY_SHARE = 0.01
"""Share of the logits that makes a frequency a key frequency."""
CHUNK = 4096


@dataclass(frozen=True, eq=False, repr=False)
class ModularSpectrum(Result):
    """The logits' share of each frequency, the largest possible p // 2, and the losses with and without the key ones.

    embedding: the share of each frequency in W_E over the p numbers, its mean left out. without: the loss when one
    frequency is taken out of the logits. key: the key frequencies, the strongest first. loss, restricted, excluded: in
    nats, over the pairs asked for; chance is ln p.
    """

    title = "Frequencies of modular addition"
    shows = "the share of each frequency of a + b in the logits; key frequencies are those that hold nearly everything"
    caveat = "The spectrum says what is computed, not by which parts of the model."
    unit = "share of the logits"
    scale = AMOUNT

    values: Float[np.ndarray, "frequency"]
    embedding: Float[np.ndarray, "frequency"]
    without: Float[np.ndarray, "frequency"]
    key: tuple[int, ...]
    p: int
    loss: float
    restricted: float
    excluded: float

    @property
    def chance(self) -> float:
        """The loss of guessing."""
        return math.log(self.p)

    def plot(self) -> go.Figure:
        """The shares in the logits and in the embedding over frequencies."""
        from interp import pictures
        from interp.pictures import Axis

        axis = Axis("frequency", len(self.values), list(self.labels["frequency"]))  # type: ignore[arg-type]
        series = {"of the logits": self.values, "of the embedding": self.embedding}
        return pictures.lines(series, axis, title=self.title, unit="share")

    def sections(self) -> tuple[Section, ...]:
        """Its page shows the losses above the picture."""
        from interp.page import Plot, Section

        losses = [
            ("loss", self.loss, "of the model"),
            ("restricted loss", self.restricted, f"of the frequencies {', '.join(map(str, self.key))} alone"),
            ("excluded loss", self.excluded, f"of all the rest; guessing costs {self.chance:.2f}"),
        ]
        tiles = markup.tiles([(name, f"{value:.3g} nats", note) for name, value, note in losses])
        figure = self.plot().update_layout(title=None)
        return (Section(self.title, (tiles, Plot(figure)), self.shows, self.caveat),)


@torch.no_grad()
def modular_spectrum(
    model: HookedModel | Any,
    p: int | None = None,
    equals: int | None = None,
    key: Sequence[int] | None = None,
    pairs: Bool[Tensor, "a b"] | None = None,
) -> ModularSpectrum:
    """The frequencies that a model of prompts `a b =` adds with, and the losses of arXiv:2301.05217.

    p: the modulus, by default the number of outputs. equals: the token of the equals sign, by default p. key: the key
    frequencies, such as those of the trained model for an earlier checkpoint; by default those that hold `KEY_SHARE` of
    the logits or more, or the largest. pairs: which of the [p p] pairs the losses are over, such as those of a test
    set, by default all; frequencies are always of all.

    Raises:
        LabError: a p below 3, above the number of outputs, or for which numbers and equals sign are no tokens of the
            model; a context of less than three; key frequencies that are none, repeated, or not from 1 to p // 2; pairs
            of another shape, or none.
    """
    p = (getattr(model.cfg, "d_vocab_out", None) or model.cfg.d_vocab) if p is None else p
    equals = p if equals is None else equals
    _check(model, p, equals, key, pairs)
    logits = _logits(model, p, equals)
    waves = _waves(p).to(logits)
    onto = einsum(waves, logits, "frequency phase a b, a b answer -> frequency phase answer")
    shares = onto.square().sum((1, 2)) / logits.square().sum()
    if key is None:
        least = min(KEY_SHARE, float(shares.max()))
        key = [k + 1 for k in shares.argsort(descending=True).tolist() if float(shares[k]) >= least]
    counted = torch.ones(p, p, dtype=torch.bool, device=logits.device) if pairs is None else pairs.to(logits.device)
    chosen = torch.tensor(key, device=logits.device) - 1
    held = _part(waves[chosen], onto[chosen])
    return ModularSpectrum(
        to_numpy(shares),
        to_numpy(shares_of_frequencies(written(model, Site("embed"))[:p])),
        np.array([_loss(logits - _part(waves[k, None], onto[k, None]), counted) for k in range(len(waves))]),
        tuple(int(k) for k in key),
        p,
        _loss(logits, counted),
        _loss(held, counted),
        _loss(logits - held, counted),
        labels={"frequency": list(range(1, p // 2 + 1))},
        provenance=provenance.of(model, settings={"p": p, "pairs": int(counted.sum())}),
    )


def _check(model: HookedModel | Any, p: int, equals: int, key: Sequence[int] | None, pairs: Tensor | None) -> None:
    outputs = getattr(model.cfg, "d_vocab_out", None) or model.cfg.d_vocab
    if not 3 <= p <= outputs or max(p - 1, equals) >= model.cfg.d_vocab or equals < 0:
        raise LabError(
            f"p={p} with token {equals} for the equals sign: {model.cfg.model_name!r} has {outputs} outputs and the "
            f"tokens 0 to {model.cfg.d_vocab - 1}; expected a model of prompts `a b =` and its modulus, at least 3."
        )
    if model.cfg.n_ctx < 3:
        raise LabError(f"a context of {model.cfg.n_ctx}; prompts `a b =` need three positions.")
    if key is not None and (not len(key) or len({*key}) < len(key) or not all(1 <= k <= p // 2 for k in key)):
        raise LabError(f"key={list(key)}; expected different frequencies from 1 to {p // 2}, at least one.")
    if pairs is not None and (pairs.shape != (p, p) or not pairs.any()):
        raise LabError(f"pairs of shape {list(pairs.shape)}; expected [{p}, {p}], true for at least one pair.")


def _logits(model: HookedModel | Any, p: int, equals: int) -> Float[Tensor, "a b answer"]:
    """At the equals sign of every pair, in float64, without their mean over the p answers."""
    numbers = torch.arange(p, device=model.device)
    rows: Int[Tensor, "pair 3"] = torch.cat(
        [torch.cartesian_prod(numbers, numbers), torch.full((p * p, 1), equals, device=model.device)], 1
    )
    logits = torch.cat([model(some)[:, -1, :p].double() for some in rows.split(CHUNK)])
    return rearrange(logits - logits.mean(-1, keepdim=True), "(a b) answer -> a b answer", a=p)


def _waves(p: int) -> Float[Tensor, "frequency phase a b"]:
    """cos and sin of 2πk(a+b)/p for k from 1 to p // 2, each of length one over all pairs; zero where there is none."""
    frequency, number = torch.arange(1, p // 2 + 1, dtype=torch.float64), torch.arange(p, dtype=torch.float64)
    sums = rearrange(number, "a -> a 1") + number
    angle = 2 * math.pi / p * einsum(frequency, sums, "frequency, a b -> frequency a b")
    waves = rearrange([angle.cos(), angle.sin()], "phase frequency a b -> frequency phase a b")
    length = waves.square().sum((2, 3), keepdim=True).sqrt()
    return torch.where(length > 1e-6 * p, waves / length, 0.0)  # the sine of half of an even p is zero everywhere


def _part(
    waves: Float[Tensor, "frequency phase a b"], onto: Float[Tensor, "frequency phase answer"]
) -> Float[Tensor, "a b answer"]:
    """The part of the logits that some frequencies hold."""
    return einsum(waves, onto, "frequency phase a b, frequency phase answer -> a b answer")


def shares_of_frequencies(vectors: Float[Tensor, "place width"]) -> Float[Tensor, "frequency"]:
    """The share of each frequency, 1 to places // 2 turns over all places, in vectors at successive places.

    Their mean is left out; the shares sum to 1. Turning all vectors together changes none.
    """
    places = len(vectors)
    power = torch.fft.rfft(vectors.double(), dim=0)[1:].abs().square().sum(-1)
    if places % 2 == 0:
        power[-1] /= 2  # every other frequency stands for itself and its negative
    return power / power.sum()


def _loss(logits: Float[Tensor, "a b answer"], counted: Bool[Tensor, "a b"]) -> float:
    """The mean cross-entropy of the sums over some pairs, in nats."""
    p = len(logits)
    number = torch.arange(p, device=logits.device)
    sums = (repeat(number, "a -> a b", b=p) + number) % p
    return float(F.cross_entropy(logits[counted], sums[counted]))
