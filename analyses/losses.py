"""How well two models predict the same text, token by token: where in it, and on which kinds of token, they differ.

    loss(i) = -log p(token i | tokens before it), in nats

`by_class` and `by_position` average the losses of each model and their paired difference, with standard errors of the
mean over tokens, sd / sqrt(n). They take tokens as independent, so for tokens of one text they are optimistic.

Cost: one forward of each model.
It does not show: why a token is easier for one model; between tokenizers, losses are of other vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from analyses.same_text import SameText, Texts, of_both, same_text
from analyses.token_classes import by_context, by_frequency, by_look
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

MEASURES = ("loss of a", "loss of b", "b - a")


@dataclass(frozen=True, eq=False, repr=False)
class GroupedLosses(Result):
    """Mean losses of two models and of their difference by group of tokens, [measure group], in nats.

    error: standard errors of the means; NaN for a group of one. count: tokens in each group.
    """

    title = "Loss by group"
    shows = "how well each model predicts the tokens of each group"
    caveat = "Standard errors take tokens as independent, which tokens of one text are not."
    unit = "nats"

    values: Float[np.ndarray, "measure group"]
    error: Float[np.ndarray, "measure group"]
    count: Int[np.ndarray, "group"]


@dataclass(frozen=True, eq=False, repr=False)
class TokenLosses(Result):
    """The loss of two models on each token that another one comes before.

    a, b: in nats. position: of the token in its text. members: which tokens belong to which class, [kind token].
    """

    title = "Loss of two models"
    shows = "how well each model predicts each token from those before it"
    caveat = "It is not seen why a token is easier for one of them."
    primary = "b"
    unit = "nats"

    a: Float[np.ndarray, "token"]
    b: Float[np.ndarray, "token"]
    position: Int[np.ndarray, "token"]
    members: Bool[np.ndarray, "kind token"]

    def by_class(self) -> GroupedLosses:
        """Means by class; classes without a token are left out, and `all` comes first."""
        everything = np.ones((1, len(self.a)), dtype=bool)
        return self._grouped(np.concatenate([everything, self.members]), ["all", *map(str, self.labels["kind"])])

    def by_position(self) -> GroupedLosses:
        """Means by position in the text."""
        places = np.unique(self.position)
        return self._grouped(self.position == places[:, None], places.tolist())

    def _grouped(self, groups: Bool[np.ndarray, "group token"], names: list[Any]) -> GroupedLosses:
        some = np.flatnonzero(groups.any(1))
        series = np.stack([self.a, self.b, self.b - self.a])
        found = [mean_and_error(series[:, groups[i]]) for i in some]
        return GroupedLosses(
            np.stack([mean for mean, _ in found], -1),
            np.stack([error for _, error in found], -1),
            groups[some].sum(1),
            labels={"measure": MEASURES, "group": [names[i] for i in some]},
            provenance=self.provenance,
        )

    def plot(self) -> go.Figure:
        from analyses.comparison_pictures import classes_figure

        return classes_figure(self)

    def sections(self) -> tuple[Section, ...]:
        """By class, and by position."""
        from analyses.comparison_pictures import classes_figure, positions_figure
        from interp.page import Plot, Section

        drawn = (Plot(classes_figure(self)), Plot(positions_figure(self)))
        return (Section(self.title, drawn, self.shows, GroupedLosses.caveat),)


def compare_losses(a: HookedModel | Any, b: HookedModel | Any, texts: Texts) -> TokenLosses:
    """The losses of two models on the same text: `.a[token]`, `.b[token]`, `.by_class()`, `.by_position()`.

    Raises:
        LabError: texts that the models do not read alike (see `same_text`), or no text of two tokens.
    """
    text = same_text(a, b, texts)
    text.need_next_tokens()
    loss_a, loss_b = text.tokenwise(lambda rows_a, rows_b: (next_losses(a, rows_a), next_losses(b, rows_b)))
    later = text.position > 0  # the losses of a text's first tokens are fillers
    classes = _classes(text)
    words = [word for row in text.words for word in row]
    return TokenLosses(
        to_numpy(loss_a[later]),
        to_numpy(loss_b[later]),
        to_numpy(text.position[later]),
        np.stack(list(classes.values()))[:, later.numpy()],
        labels={"kind": list(classes), "token": [words[i] for i in later.nonzero()[:, 0]]},
        provenance=of_both(a, b, text),
    )


def next_losses(model: HookedModel | Any, rows: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """The loss on each token, 0 on the first, which nothing foretells; in float32 at least, on the CPU.

    Raises:
        LabError: the rows have tokens that the model never predicts, or the model sees what it would foretell.
    """
    check_foretells(model)
    logits = model(rows.to(model.device))[:, :-1].cpu()
    if int(rows.max()) >= logits.shape[-1]:
        raise LabError(
            f"the model {model.cfg.model_name!r} predicts {logits.shape[-1]} tokens only, and the text has others, "
            "so it has no loss there."
        )
    wide = logits.float() if logits.itemsize < 4 else logits
    losses = cross_entropy(rearrange(wide, "batch pos v -> batch v pos"), rows[:, 1:], reduction="none")
    return pad(losses, (1, 0)).double()


def check_foretells(model: HookedModel | Any) -> None:
    """Raises:
    LabError: the model is an encoder, which sees the next token.
    """
    if getattr(model.cfg, "attention_dir", "causal") == "bidirectional":
        raise LabError(
            f"the model {model.cfg.model_name!r} is an encoder, which sees the next token, so a loss on it means "
            "nothing.  Try the logits at a mask token."
        )


def _classes(text: SameText) -> dict[str, Bool[np.ndarray, "token"]]:
    """Which tokens belong to which class; what they look like only where they are text."""
    rows = [row.tolist() for row in text.rows_a]
    single = [
        by_context(row) | (by_look(words) if text.readable else {}) for row, words in zip(rows, text.words, strict=True)
    ]
    joined = {name: np.concatenate([classes[name] for classes in single]) for name in single[0]}
    return joined | by_frequency(rows)


def mean_and_error(
    values: Float[np.ndarray, "*axes n"],
) -> tuple[Float[np.ndarray, "*axes"], Float[np.ndarray, "*axes"]]:
    """Means, and their standard errors sd / sqrt(n), NaN where n is 1."""
    n = values.shape[-1]
    mean = values.mean(-1)
    return mean, values.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.full_like(mean, np.nan)
