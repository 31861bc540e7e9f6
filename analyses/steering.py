"""What adding a direction to the stream does to the answer, by strength, and what taking it out does.

    effect(strength) = m(h_l <- h_l + strength · v) - m(run)          arXiv:2312.06681
    effect(v)        = m(h <- h - (r · h) r everywhere) - m(run)      r = v / |v|, arXiv:2406.11717

The vectors come from `analyses.directions`, or from anywhere.

Cost: for each strength or direction and prompt the part of a forward that follows, twice: for the metric and for the
loss.
It does not show: that the model itself uses the direction. A long enough vector changes any answer, so results tell its
length beside that of the stream, and the loss on text that should stay as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from analyses.directions import SITES, Vector, ablate_direction, add_direction
from analyses.effects import EffectFields, Effects, effects, measure_of
from analyses.patching import cached_run, check_site
from interp import metrics, provenance, sweep
from interp.contract import HookedModel
from interp.edits import Edit
from interp.errors import LabError, choose
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sites import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class SteeringEffect(Effects):
    """What adding a direction does to the metric, by strength.

    strengths: what the vector was multiplied with. length: that of what is added, as a part of the stream's. loss: of
    the other prompts' own tokens, in nats; base_loss: without the edit.
    """

    title = "Steering"
    caveat = "Where the added vector is as long as the stream itself, or the loss rises, the model is simply overrun."

    strengths: Float[np.ndarray, "strength"]
    length: Float[np.ndarray, "strength"]
    loss: Float[np.ndarray, "strength"]
    base_loss: float
    layer: int
    site: str

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"The change of {self.metric} when a multiple of the direction is added to {self.site} of one layer."

    def plot(self) -> go.Figure:
        """The change of the metric and of the loss over strengths."""
        from interp import pictures
        from interp.pictures import Axis

        axis = Axis("strength", len(self.strengths), [f"{s:g}" for s in self.strengths])
        series = {self.unit: self.values, "change of the loss (nats)": self.loss - self.base_loss}
        return pictures.lines(series, axis, title=self.title)


@dataclass(frozen=True, eq=False, repr=False)
class DirectionAblation(Effects):
    """What taking each direction out of the whole stream does to the metric. loss, base_loss: as in
    `SteeringEffect`."""

    title = "Ablation of directions"
    shows = "the change of the metric when one direction is projected out wherever the stream passes"
    caveat = "Compare with random directions: in a small model any one of them may matter."

    loss: Float[np.ndarray, "direction"]
    base_loss: float


def steering_effect(
    model: HookedModel | Any,
    pairs: PromptPairs,
    vector: Vector,
    layer: int,
    strengths: Sequence[float | int] = (-2.0, -1.0, 1.0, 2.0),
    site: str = "resid_post",
    pos: int | None = None,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    others: PromptPairs | None = None,
    budget: int | None = None,
    progress: bool | None = None,
) -> SteeringEffect:
    """What the vector does to the clean prompts' metric, by strength: `.values[strength]`.

    pos: where to add it, counted in the padded batch, from the end when negative; by default everywhere. others:
    prompts whose own tokens the loss is of, by default those of `pairs`. metric: see `interp.metrics`; "kl" compares
    with the unedited run. budget, progress: as in `interp.sweep.run`.

    Raises:
        LabError: no strengths, an unknown site, a layer that the model does not have, a vector of another width,
            prompts that the model cannot take, and as `sweep.run`.
    """
    choose("site", site, SITES)
    check_site(model, site)
    _check(model, vector[None], pairs, others)
    if not len(strengths) or not 0 <= layer < model.cfg.n_layers:
        raise LabError(
            f"strengths {list(strengths)} in layer {layer}; expected at least one, and a layer from 0 to "
            f"{model.cfg.n_layers - 1}."
        )
    pairs, vector = pairs.to(model.device), vector.to(model.device)
    rows = [add_direction(vector, layer, float(strength), site, pos) for strength in strengths]
    fields, loss, base_loss = _measured(model, pairs, others, rows, metric, budget, progress)
    stream = _mean_length(model, pairs, Site(site, layer))
    numbers = np.array(strengths, dtype=np.float64)
    settings = {"layer": layer, "pos": pos, "vector": provenance.tensor_hash(vector)}
    return SteeringEffect(
        *fields,
        numbers,
        np.abs(numbers) * float(vector.norm()) / stream,
        loss,
        base_loss,
        layer,
        site,
        axes=("strength",),
        labels={"strength": [f"{strength:g}" for strength in numbers]},
        provenance=provenance.of(model, prompts=pairs, metric=fields[4], site=site, ablation="add", settings=settings),
    )


def direction_ablation(
    model: HookedModel | Any,
    pairs: PromptPairs,
    vectors: Float[Tensor, "direction d_model"],
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    others: PromptPairs | None = None,
    budget: int | None = None,
    progress: bool | None = None,
) -> DirectionAblation:
    """What the clean prompts' metric loses without each direction, one at a time: `.values[direction]`.

    others, metric, budget, progress: as in `steering_effect`.

    Raises:
        LabError: a direction that is zero or of another width, prompts that the model cannot take, and as `sweep.run`.
    """
    _check(model, vectors, pairs, others)
    pairs, vectors = pairs.to(model.device), vectors.to(model.device)
    rows = [ablate_direction(model, vector) for vector in vectors]
    fields, loss, base_loss = _measured(model, pairs, others, rows, metric, budget, progress)
    settings = {"vectors": provenance.tensor_hash(vectors)}
    origin = provenance.of(
        model, prompts=pairs, metric=fields[4], site="resid", ablation="project out", settings=settings
    )
    return DirectionAblation(*fields, loss, base_loss, axes=("direction",), provenance=origin)


def _mean_length(model: HookedModel | Any, pairs: PromptPairs, site: Site) -> float:
    _, cache = cached_run(model, pairs, [site.hook_name])
    return float(cache[site.hook_name][pairs.mask].float().norm(dim=-1).mean())


def _measured(
    model: HookedModel | Any,
    pairs: PromptPairs,
    others: PromptPairs | None,
    rows: list[list[Edit]],
    metric: str | AnyMetric | Callable[..., Any],
    budget: int | None,
    progress: bool | None,
) -> tuple[EffectFields, Float[np.ndarray, "row"], float]:
    """The fields of `Effects`, the loss of each edited run on the other prompts, and that of the unedited one."""
    found = sweep.run(model, pairs, rows, measure_of(model, pairs, metric), budget, progress=progress)
    text = pairs if others is None else others.to(model.device)
    losses = sweep.run(model, text, rows, metrics.cross_entropy, budget, progress=progress)
    return effects(found, [len(rows)]), losses.values.mean(-1), float(losses.base.mean())


def _check(
    model: HookedModel | Any, vectors: Float[Tensor, "direction width"], pairs: PromptPairs, others: PromptPairs | None
) -> None:
    pairs.check(model)
    if others is not None:
        others.check(model)
    if vectors.ndim != 2 or vectors.shape[-1] != model.cfg.d_model or not len(vectors):
        raise LabError(f"directions of shape {list(vectors.shape)}; expected vectors of d_model={model.cfg.d_model}.")
