"""Scaling laws: how the loss falls with the size of a model and the text that it is trained on.

    L(N, D) = E + A / N^α + B / D^β            (Hoffmann et al. 2022, arXiv:2203.15556, eq. 2)

N counts parameters, D tokens of training; E is the entropy of the text, as far as such models can tell. For a given
α and β the law is linear in E, A and B, so these are solved for, with relative errors weighing alike, and the two
exponents are searched on a grid that is drawn ever finer around the best. No start has to be guessed.

Cost: no forward passes; the losses come from trained models (`models.zoo.scaling`).
It does not show: that the law holds outside the sizes that it was fitted to. E and the exponents are hard to tell
apart on small ranges: `error` says how much they move when one run is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Num

from interp.errors import LabError
from interp.provenance import Provenance, command, versions
from interp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

LEAST_RUNS = 6
"""One more than the law has constants."""
GRID, ROUNDS = 15, 14
EXPONENTS = (0.02, 3.0)
"""The exponents that are searched."""
Runs = Float[np.ndarray, "run"]
Numbers = Sequence[float] | Sequence[int] | Num[np.ndarray, "run"]


@dataclass(frozen=True)
class Law:
    """The five constants, E in nats. `a` and `b` are A and B."""

    entropy: float
    a: float
    alpha: float
    b: float
    beta: float

    def __call__(self, parameters: Runs | float, tokens: Runs | float) -> Runs | float:
        """The loss of a model of that size, trained on so many tokens, in nats."""
        return self.entropy + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    def best(self, compute: float) -> tuple[float, float]:
        """The parameters and tokens that give the lowest loss for 6 N D operations (arXiv:2203.15556, eq. 4).

        Raises:
            LabError: the loss falls with one of them alone, so there is no best.
        """
        if not (self.a > 0 and self.b > 0):
            raise LabError(f"A={self.a:g} and B={self.b:g}; expected both above 0: one of them buys nothing here.")
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = scale * (compute / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, compute / 6 / parameters


@dataclass(frozen=True, eq=False, repr=False)
class ScalingLaw(Result):
    """Losses of trained models, and the law that is fitted to them.

    loss, fitted: as measured, and by the law, in nats. constants: entropy, a, alpha, b, beta. error: of each constant,
    the standard error by leaving out one run at a time (the jackknife; Efron 1979); of a constant that is 0, where the
    search ends, it says nothing.
    """

    title = "Scaling law"
    shows = "how the loss of models of several sizes falls with the tokens of training, and the law fitted to it"
    caveat = "The law is fitted to these sizes; beyond them it is a guess. E = 0: the runs are too far from it to tell."
    primary = "loss"
    unit = "nats"

    loss: Float[np.ndarray, "run"]
    fitted: Float[np.ndarray, "run"]
    parameters: Float[np.ndarray, "run"]
    tokens: Float[np.ndarray, "run"]
    constants: dict[str, float]
    error: dict[str, float]

    @property
    def law(self) -> Law:
        """The fitted law, to be called with parameters and tokens."""
        return Law(**self.constants)

    def plot(self) -> go.Figure:
        """Loss over tokens, a colour for each size: points as measured, lines by the law; both axes logarithmic."""
        from analyses.scaling_picture import scaling_figure

        return scaling_figure(self)

    def sections(self) -> tuple[Section, ...]:
        """The picture, and the constants."""
        from interp import markup
        from interp.page import Plot, Section

        rows = [(name, value, self.error[name]) for name, value in self.constants.items()]
        table = markup.table(["constant", "value", "standard error"], rows)
        return (Section(self.title, (Plot(self.plot().update_layout(title=None)), table), self.shows, self.caveat),)


def scaling_law(parameters: Numbers, tokens: Numbers, losses: Numbers) -> ScalingLaw:
    """Fit the law to trained models: their parameters, tokens of training and losses in nats, one of each a run.

    Raises:
        LabError: unequal numbers of them, too few runs or sizes to tell the constants apart, or numbers that are not
            positive.
    """
    n, d, loss = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    _check(n, d, loss)
    law = _fit(n, d, loss)
    others = [np.arange(len(loss)) != left_out for left_out in range(len(loss))]
    without = np.array([_constants(_fit(n[kept], d[kept], loss[kept])) for kept in others])
    error = np.sqrt((len(loss) - 1) * without.var(0))
    names = list(Law.__dataclass_fields__)
    return ScalingLaw(
        loss,
        np.asarray(law(n, d)),
        n,
        d,
        dict(zip(names, _constants(law), strict=True)),
        dict(zip(names, error.tolist(), strict=True)),
        provenance=Provenance(versions=versions(), command=command()),
    )


def _fit(n: Runs, d: Runs, loss: Runs) -> Law:
    """The law with the smallest sum of squared relative errors."""
    middle = np.log(EXPONENTS).mean() * np.ones(2)
    reach = np.log(EXPONENTS[1] / EXPONENTS[0]) / 2
    for _ in range(ROUNDS):
        steps = np.linspace(-reach, reach, GRID)
        grid = middle + np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
        grid = np.clip(grid, *np.log(EXPONENTS))
        solved, errors = _solve(np.exp(grid), n, d, loss)
        best = int(errors.argmin())
        middle, reach = grid[best], 3 * reach / (GRID - 1)
    alpha, beta = np.exp(middle)
    entropy, a, b = solved[best]
    return Law(*map(float, (entropy, a, alpha, b, beta)))


def _solve(
    exponents: Float[np.ndarray, "trial 2"], n: Runs, d: Runs, loss: Runs
) -> tuple[Float[np.ndarray, "trial 3"], Float[np.ndarray, "trial"]]:
    """E, A and B of each pair of exponents, and the error that is left; infinite where one of them is negative."""
    middle_n, middle_d = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())  # so that the columns are of one size
    by_n = (n / middle_n) ** -exponents[:, :1]
    by_d = (d / middle_d) ** -exponents[:, 1:]
    design = np.stack([np.ones_like(by_n), by_n, by_d], -1) / loss[:, None]
    across = design.swapaxes(-1, -2)
    found = np.linalg.solve(across @ design, across.sum(-1, keepdims=True))[..., 0]
    errors = ((design @ found[..., None])[..., 0] - 1) ** 2
    scales = np.stack([np.ones(len(exponents)), middle_n ** exponents[:, 0], middle_d ** exponents[:, 1]], -1)
    return found * scales, np.where((found >= 0).all(-1), errors.sum(-1), np.inf)


def _constants(law: Law) -> list[float]:
    return [law.entropy, law.a, law.alpha, law.b, law.beta]


def _check(n: Runs, d: Runs, loss: Runs) -> None:
    if n.ndim != 1 or not n.shape == d.shape == loss.shape:
        raise LabError(
            f"{n.size} sizes, {d.size} numbers of tokens and {loss.size} losses; expected one of each a run."
        )
    if len(loss) < LEAST_RUNS or min(len(set(n)), len(set(d))) < 3:
        raise LabError(
            f"{len(loss)} runs of {len(set(n))} sizes and {len(set(d))} numbers of tokens; expected at least "
            f"{LEAST_RUNS} runs, of 3 sizes and 3 numbers of tokens, to tell five constants apart."
        )
    for name, values in (("parameters", n), ("tokens", d), ("losses", loss)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise LabError(f"the {name} run from {values.min():g} to {values.max():g}; expected numbers above 0.")
