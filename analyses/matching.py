"""Which head of one model does what a head of another does: by where it looks, and by the role that it plays.

    pattern(h, g) = mean over queries q of sum_k sqrt(A_h[q, k] A_g[q, k])
    role(h, g)    = 1 - |s_h - s_g| / sqrt(roles),  s: the previous-token, duplicate and induction score (`head_scores`)

The first is Bhattacharyya's coefficient (1943): 1 for equal patterns, 0 for patterns that share no key. Patterns are
compared on the same text; scores are taken on random tokens repeated once, so they can be compared across vocabularies.
A beginning that several texts share counts once, and the first position, which sees itself alone, never.

Each head is matched with the other model's best one, in both directions: where two heads are each other's best, the
match is mutual. Nothing forces the heads into pairs, as two models need not divide the work alike.

Cost: one forward of each model for the patterns and one for the scores, and a product of all patterns with all others.
It does not show: whether matched heads move the same information; that is `path_patching`'s question.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.roles import ROLES, head_scores
from analyses.same_text import SameText, Texts, of_both, same_text
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.results import Result, to_numpy
from interp.style import SHARE

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section


@dataclass(frozen=True)
class Match:
    """A head of the first model, the head of the second that is most like it, and whether this holds both ways."""

    a: str
    b: str
    similarity: float
    mutual: bool


@dataclass(frozen=True, eq=False, repr=False)
class HeadMatching(Result):
    """How alike each head of one model is to each of another, from 0 to 1; heads are labelled "L0H1".

    pattern: where they look. role: which roles they play; NaN where a context window is too short to tell. scores_a,
    scores_b: the roles themselves. queries: how many positions the patterns were compared at.
    """

    title = "Heads of two models"
    shows = "how alike each head of the one model is to each of the other"
    caveat = "Heads that look at the same places may move different information."
    primary = "pattern"
    unit = "similarity"
    scale = SHARE

    pattern: Float[np.ndarray, "head_a head_b"]
    role: Float[np.ndarray, "head_a head_b"]
    scores_a: Float[np.ndarray, "role head_a"]
    scores_b: Float[np.ndarray, "role head_b"]
    queries: int

    def matches(self, by: str = "pattern") -> tuple[Match, ...]:
        """The best match of each head of the first model, in its order; by "pattern" or "role".

        Raises:
            LabError: another name, or nothing that is known under it.
        """
        choose("similarity", by, ("pattern", "role"))
        values = self.pattern if by == "pattern" else self.role
        if np.isnan(values).all():
            raise LabError(f"no {by} of the heads is known; try by={'pattern' if by == 'role' else 'role'!r}.")
        known = np.where(np.isnan(values), -np.inf, values)
        forth, back = known.argmax(1), known.argmax(0)
        names_a, names_b = self.labels["head_a"], self.labels["head_b"]
        return tuple(
            Match(str(names_a[i]), str(names_b[j]), float(values[i, j]), bool(back[j] == i))
            for i, j in enumerate(forth)
        )

    def plot(self) -> go.Figure:
        """By pattern, and by role where the roles are known."""
        from analyses.comparison_pictures import heads_figure

        return heads_figure(self)

    def sections(self) -> tuple[Section, ...]:
        """The similarities, and the matches as a table."""
        from interp import markup
        from interp.page import Plot, Section

        matches = () if np.isnan(self.pattern).all() else self.matches()
        rows = [(m.a, m.b, m.similarity, "mutual" if m.mutual else "") for m in matches]
        table = markup.table(["head of a", "most like it in b", "similarity of patterns", ""], rows)
        figure = self.plot().update_layout(title=None)
        return (Section(self.title, (Plot(figure), table), self.shows, self.caveat),)


def head_matching(a: HookedModel | Any, b: HookedModel | Any, texts: Texts, seed: int = 0) -> HeadMatching:
    """Similarities of all heads of two models: `.pattern[head_a, head_b]`, `.role[head_a, head_b]`, `.matches()`.

    seed: of the random tokens that roles are scored on.

    Raises:
        LabError: texts that the models do not read alike (see `same_text`), or that have no second position.
    """
    text = same_text(a, b, texts)
    queries = int(sum(int(mark.sum()) for mark in text.distinct))
    if queries == 0:
        raise LabError("no text has two tokens, so every head can look at one place only; give longer texts.")
    scores_a, scores_b = _scores(a, seed), _scores(b, seed)
    return HeadMatching(
        to_numpy(_pattern_similarity(a, b, text) / queries),
        role_similarity(scores_a, scores_b),
        scores_a,
        scores_b,
        queries,
        labels={"head_a": head_names(a), "head_b": head_names(b), "role": list(ROLES)},
        provenance=of_both(a, b, text, site="pattern", seed=seed),
    )


def head_names(model: HookedModel | Any) -> list[str]:
    return [f"L{layer}H{head}" for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def _scores(model: HookedModel | Any, seed: int) -> Float[np.ndarray, "role head"]:
    """The roles of all heads; NaN for a model whose context has no room for a repeat."""
    try:
        return rearrange(head_scores(model, seed=seed).values, "role layer head -> role (layer head)")
    except LabError:
        return np.full((len(ROLES), model.cfg.n_layers * model.cfg.n_heads), np.nan)


def role_similarity(
    a: Float[np.ndarray, "role head_a"], b: Float[np.ndarray, "role head_b"]
) -> Float[np.ndarray, "head_a head_b"]:
    """1 minus the distance between the scores of two heads, over the largest that there can be."""
    apart = rearrange(a, "role head_a -> role head_a 1") - rearrange(b, "role head_b -> role 1 head_b")
    return 1 - np.sqrt((apart.astype(np.float64) ** 2).sum(0)) / sqrt(len(a))


def _pattern_similarity(a: HookedModel | Any, b: HookedModel | Any, text: SameText) -> Float[Tensor, "head_a head_b"]:
    """Bhattacharyya's coefficient of all pairs of heads, summed over the queries that are new evidence."""
    total = torch.zeros(len(head_names(a)), len(head_names(b)), dtype=torch.float64)
    with torch.inference_mode():
        for places, rows_a, rows_b in text.batches():
            counted = torch.stack([text.distinct[place] for place in places])
            roots_a, roots_b = (_patterns(m, rows, counted).sqrt() for m, rows in ((a, rows_a), (b, rows_b)))
            wide = torch.promote_types(roots_a.dtype, roots_b.dtype)
            total += einsum(roots_a.to(wide), roots_b.to(wide), "head_a q k, head_b q k -> head_a head_b")
    return total


def _patterns(
    model: HookedModel | Any, rows: Int[Tensor, "batch pos"], counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "head query k_pos"]:
    """The attention of all heads at the counted queries, in float32 at least, on the CPU."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(rows.to(model.device), names_filter=names)
    patterns = torch.cat([cache[name].cpu() for name in names], dim=1)
    wide = patterns.float() if patterns.itemsize < 4 else patterns
    return rearrange(wide, "batch head q k -> head batch q k")[:, counted]
