"""How a model became what it is: one run's checkpoints, measured alike.

    loss         mean loss on the text, by default on rows of random tokens that are repeated once
    repeat loss  mean loss on the second copies of random tokens, but for their first, which nothing announces
    previous, duplicate, induction   the highest head score of each kind (`head_scores`, arXiv:2209.11895)
    cka          debiased linear CKA of each layer with the same layer of the final model (`layer_similarity`)

A skill that is learned suddenly shows as a fall of the loss at the steps where the heads that it needs appear.

Cost: three forwards of each checkpoint. Checkpoints are taken one at a time, so two models are held, not all.
It does not show: which change caused which; changes at the same step need not belong together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from analyses.comparison import other_sizes
from analyses.losses import next_losses
from analyses.roles import ROLES, head_scores, longest_block
from analyses.same_text import SameText, Texts, same_text
from analyses.similarity import layer_names, layer_similarity
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result
from interp.tasks import repeated_tokens

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

MEASURES = ("loss", "repeat loss", *ROLES)
ROWS = 16


@dataclass(frozen=True, eq=False, repr=False)
class TrainingCourse(Result):
    """Measures of each checkpoint of one run, the final model last.

    values: losses in nats, and the highest head score of each role. scores: those of all heads. cka: of each layer with
    the final model's.
    """

    title = "Course of training"
    shows = "what each checkpoint of one training run can do, and how alike its layers are to the final ones"
    caveat = "Changes at the same step need not belong together."

    values: Float[np.ndarray, "checkpoint measure"]
    scores: Float[np.ndarray, "checkpoint role layer head"]
    cka: Float[np.ndarray, "checkpoint stream"]

    def plot(self) -> go.Figure:
        """Losses, head scores and CKA, one below the other, over the checkpoints."""
        from analyses.training_picture import course_figure

        return course_figure(self)

    def rows(self) -> list[tuple[str | float, ...]]:
        """A row for each checkpoint: its name, its measures, and its CKA with the final model, layer by layer."""
        table = np.concatenate([self.values, self.cka], 1)
        return [(str(name), *map(float, row)) for name, row in zip(self.labels["checkpoint"], table, strict=True)]

    def columns(self) -> list[str]:
        """The headings of `rows`."""
        return ["checkpoint", *MEASURES, *(f"CKA {layer}" for layer in self.labels["stream"])]

    def sections(self) -> tuple[Section, ...]:
        """The curves, and the numbers."""
        from interp import markup
        from interp.page import Plot, Section

        table = markup.table(self.columns(), self.rows())
        return (Section(self.title, (Plot(self.plot().update_layout(title=None)), table), self.shows, self.caveat),)


def training_course(
    final: HookedModel | Any,
    earlier: Iterable[tuple[str, HookedModel | Any]],
    texts: Texts | None = None,
    seed: int = 0,
) -> TrainingCourse:
    """Measure the checkpoints of one run, given with their names, and the final model: `.values[checkpoint, measure]`.

    texts: what `loss` and `cka` are measured on, as in `compare`. seed: of the random tokens that are repeated.
    `earlier` may be a generator that loads a checkpoint when it is asked for it.

    Raises:
        LabError: no checkpoint, one of another size or vocabulary than the final model, or texts that they cannot take.
    """
    repeats = repeated_tokens(final, ROWS, longest_block(final), seed).cpu()
    text = same_text(final, final, repeats if texts is None else texts)
    names, found, origins = [], [], {}
    for name, model in earlier:
        _check_same_run(name, model, final)
        found.append(_measured(model, final, text, repeats))
        names.append(name)
        origins[name] = provenance.weights_hash(model)
        del model  # before the next one is loaded
    if not found:
        raise LabError(f"{final.cfg.model_name!r} came without earlier checkpoints; expected at least one.")
    found.append(_measured(final, final, text, repeats))
    values, scores, cka = (np.stack(arrays) for arrays in zip(*found, strict=True))
    return TrainingCourse(
        values,
        scores,
        cka,
        labels={
            "checkpoint": [*names, "final"],
            "measure": MEASURES,
            "role": ROLES,
            "stream": layer_names(final),
        },
        provenance=provenance.of(final, prompts=text.prompts(), seed=seed, settings={"checkpoints": origins}),
    )


def _check_same_run(name: str, model: HookedModel | Any, final: HookedModel | Any) -> None:
    reason = other_sizes(model, final)
    if not reason and model.cfg.d_vocab != final.cfg.d_vocab:
        reason = f"the models have vocabularies of {model.cfg.d_vocab} and {final.cfg.d_vocab} tokens."
    if reason:
        raise LabError(f"{name!r} is no checkpoint of {final.cfg.model_name!r}: {reason}")


def _measured(
    model: HookedModel | Any, final: HookedModel | Any, text: SameText, repeats: Int[Tensor, "batch pos"]
) -> tuple[Float[np.ndarray, "measure"], Float[np.ndarray, "role layer head"], Float[np.ndarray, "stream"]]:
    """The measures of one checkpoint, its head scores, and its CKA with the final model."""
    [losses] = text.tokenwise(lambda rows, _: (next_losses(model, rows),))
    with torch.inference_mode():
        second = next_losses(model, repeats)[:, -(repeats.shape[1] // 2) :]  # a start token may come before the copies
    scores = head_scores(model, repeats.to(model.device)).values
    highest = rearrange(scores, "role layer head -> role (layer head)").max(1)
    cka = np.diagonal(layer_similarity(model, final, text).values)
    values = [float(losses[text.position > 0].mean()), float(second[:, 1:].mean()), *map(float, highest)]
    return np.array(values), scores, cka
