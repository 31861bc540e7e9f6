"""What each head does in a task, named, with the evidence for the name.

On random tokens that repeat (`head_scores`), from the weights (`copying_scores`), and in the prompts of a task:

    looks                the most attention from the last token to one place; `looks_at` is that place
    to right, to wrong   attention from the last token to the places of the right and of the wrong answer
    attribution          the head's own share of the logit difference, as a part of the whole
    directs              mean over the heads R that look at the answers of  p(R) - p(R | z of the head resampled),
                         p = attention to right - attention to wrong, the head's z at the last token taken from the
                         corrupted prompt

Wang et al. 2022 (arXiv:2211.00593) name heads so in indirect object identification; McDougall et al. 2023
(arXiv:2310.04625) describe copy suppression. A head gets every role whose evidence it has:

    previous token, duplicate token, induction   attention on repeats of at least `ATTENDS`
    mover               looks at the right answer, copies what it looks at, and writes towards the answer
    writer              writes towards the answer in another way
    copier              looks at an answer and copies it, but writes little towards the answer itself
    copy suppression    looks at an answer and writes against what it looks at
    directs attention   makes other heads prefer the right answer's place (S-inhibition heads do)

Cost: that of `head_scores`, `copying_scores` and `head_attribution`, two forwards of the pairs, and one for each head
that has a layer behind it.
It does not show: that the roles are all there is. The names are those of one task on other models; thresholds are
conventions, so read the numbers.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from analyses.attribution import AttributionResult, head_attribution
from analyses.copying import copying_scores
from analyses.labels import position_labels
from analyses.patching import cached_run
from analyses.roles import head_scores
from interp import markup, provenance, text
from interp.contract import HookedModel
from interp.markers import pure
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import SIGNED

if TYPE_CHECKING:
    from interp.page import Section

EVIDENCE = (
    *("previous token", "duplicate token", "induction"),
    *("copying", "suppression"),
    *("looks", "to right", "to wrong"),
    *("attribution", "directs"),
)
COLUMNS = ("head", "roles", "looks at", *EVIDENCE)
ATTENDS = 0.15
"""Attention that counts as looking at something: several times what falls on it when all positions are alike."""
COPIES = 0.5
"""Share of the answers that a head's OV circuit must raise (or lower) more than nearly all other tokens."""
WRITES = 0.05
"""Share of the logit difference that a head must write itself."""
DIRECTS = 0.1
"""Change of other heads' attention that counts."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadRoles(Result):
    """The evidence of every head, [evidence layer head], and the roles that it supports, separated by commas.

    looks_at: the place that the last token looks at most, as position and token. Without an answer in the prompts, what
    is measured at their places is NaN.
    """

    title = "Roles of heads"
    shows = "what each head looks at, copies, writes and directs, by the prompts of one task"
    caveat = "Names are borrowed from one task and thresholds are conventions; a head may do other things elsewhere."
    unit = "share"
    scale = SIGNED

    values: Float[np.ndarray, "evidence layer head"]
    roles: Shaped[np.ndarray, "layer head"]
    looks_at: Shaped[np.ndarray, "layer head"]

    def evidence(self, name: str) -> Float[np.ndarray, "layer head"]:
        """One kind of evidence by its name in `EVIDENCE`."""
        return self.values[EVIDENCE.index(name)]

    def heads(self, role: str) -> list[tuple[int, int]]:
        """The heads, as (layer, head), that have a role."""
        return [index for index in np.ndindex(self.roles.shape) if role in str(self.roles[index]).split(", ")]

    def table(self) -> list[list[str]]:
        """A row for every head that has a role: its name, roles, what it looks at, and its evidence."""
        return [
            [f"L{index[0]}H{index[1]}", str(self.roles[index]), text.visible(self.looks_at[index])]
            + ["n/a" if np.isnan(value) else f"{value:.2f}" for value in self.values[:, *index]]
            for index in np.ndindex(self.roles.shape)
            if self.roles[index]
        ]

    def sections(self) -> tuple[Section, ...]:
        """Its page shows the table above the pictures."""
        from interp.page import Plot, Section

        listing = markup.table(COLUMNS, self.table())
        figure = self.plot().update_layout(title=None)
        return (Section(self.title, (listing, Plot(figure)), self.shows, self.caveat),)


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the answers stand in the prompts."""

    pairs: PromptPairs
    right: Bool[Tensor, "batch pos"]
    wrong: Bool[Tensor, "batch pos"]

    @property
    def known(self) -> bool:
        return bool(self.right.any() or self.wrong.any())


def head_roles(model: HookedModel | Any, pairs: PromptPairs, seed: int = 0) -> HeadRoles:
    """The evidence and the roles of all heads in a task: `.roles[layer, head]`, `.evidence("copying")[layer, head]`.

    pairs: clean and corrupted prompts whose answers should stand in them, as in indirect object identification. seed:
    of the random tokens that attention is scored on.

    Raises:
        LabError: prompts that the model cannot take, a context too short for a repeat, or a model whose parts' shares
            do not add up (`interp.shares`).
    """
    pairs = pairs.to(model.device)
    attention, attribution = head_scores(model, seed=seed), head_attribution(model, pairs)
    answers = torch.cat([pairs.right, pairs.wrong], 1).unique()
    copying = copying_scores(model, answers[(answers >= 0) & (answers < model.cfg.d_vocab)], k=_k(model))
    places = _Places(pairs, _standing(pairs.clean, pairs.right), _standing(pairs.clean, pairs.wrong))
    patterns = _patterns(model, places)
    answered = _at_answers(patterns, places)
    average = patterns.mean(1)
    share = _shares(attribution)
    directs = _directs(model, places, answered)
    values = np.stack([*attention.values, *copying.values, to_numpy(average.amax(-1)), *answered, share, directs])
    words = np.array([f"{i} {word}" for i, word in enumerate(position_labels(model, pairs))])
    return HeadRoles(
        values,
        _named(values),
        words[to_numpy(average.argmax(-1))],
        labels={"evidence": list(EVIDENCE)},
        provenance=provenance.of(model, prompts=pairs, metric="logit_diff", ablation="resample", seed=seed),
    )


def _shares(attribution: AttributionResult) -> Float[np.ndarray, "layer head"]:
    """Each head's part of the logit difference; NaN, with a warning, where that is no more than rounding."""
    whole = float(attribution.logit_diff.mean())
    if abs(whole) <= 100 * np.finfo(attribution.values.dtype).eps * max(
        1.0, float(np.abs(attribution.logit_diff).max())
    ):
        warnings.warn(
            f"the mean logit difference {whole:.3g} is no more than rounding, so heads have no share of it; "
            "choose prompts that the model answers.",
            stacklevel=3,
        )
        return np.full_like(attribution.values, np.nan)
    return attribution.values / whole


def _k(model: HookedModel | Any) -> int:
    """Places at the top that count as copied: five, fewer in a small vocabulary."""
    outputs = getattr(model.cfg, "d_vocab_out", None) or model.cfg.d_vocab
    return int(max(1, min(5, outputs // 10)))


def _standing(prompts: Int[Tensor, "batch pos"], answers: Int[Tensor, "batch n"]) -> Bool[Tensor, "batch pos"]:
    """Where one of its answers stands in each prompt."""
    here = rearrange(prompts, "batch pos -> batch pos 1") == rearrange(answers, "batch n -> batch 1 n")
    return here.any(-1)


def _patterns(model: HookedModel | Any, places: _Places) -> Float[Tensor, "layer batch head pos"]:
    """What all heads look at from the last token."""
    names = [Site("pattern", layer).hook_name for layer in range(model.cfg.n_layers)]
    _, cache = cached_run(model, places.pairs, names)
    rows = torch.arange(len(places.pairs), device=places.pairs.answered.device)
    return torch.stack([cache[name][rows, :, places.pairs.answered].float() for name in names])


def _at_answers(
    patterns: Float[Tensor, "layer batch head pos"], places: _Places
) -> Float[np.ndarray, "answer layer head"]:
    """Attention from the last token to the right and to the wrong answer, averaged over prompts."""
    if not places.known:
        return np.full((2, len(patterns), patterns.shape[2]), np.nan)
    kinds = torch.stack([places.right, places.wrong]).to(patterns)
    looks = einsum(patterns, kinds, "layer batch head pos, answer batch pos -> answer layer batch head")
    return to_numpy(looks.mean(2)).astype(np.float64)


def _directs(
    model: HookedModel | Any, places: _Places, base: Float[np.ndarray, "answer layer head"]
) -> Float[np.ndarray, "layer head"]:
    """How much of the looking heads' preference for the right answer's place is lost without each head.

    base: the unedited attention to both answers. Zero for a head that no looking one comes after, NaN when there is
    none.
    """
    looking = base.sum(0) >= ATTENDS
    if not looking.any():
        return np.full(looking.shape, np.nan)
    names = [Site("z", layer).hook_name for layer in range(len(looking))]
    _, other = cached_run(model, places.pairs.swapped(), names)
    directs = np.zeros(looking.shape)
    for layer, head in np.ndindex(looking.shape):
        behind = looking[layer + 1 :]
        if not behind.any():
            continue
        with model.hooks([(names[layer], _resampled(other[names[layer]], places.pairs.answered, head))]):
            lost = base - _at_answers(_patterns(model, places), places)
        directs[layer, head] = (lost[0] - lost[1])[layer + 1 :][behind].mean()
    return directs


def _resampled(other: Float[Tensor, "batch pos head d_head"], last: Int[Tensor, "batch"], head: int) -> Any:
    """A hook that gives one head's z at the last token the values of another run."""
    rows = torch.arange(len(last), device=last.device)

    @pure
    def hook(z: Tensor, hook: Any = None) -> Tensor:
        edited = z.clone()
        edited[rows, last, head] = other[rows, last, head].to(z)
        return edited

    return hook


def _named(values: Float[np.ndarray, "evidence layer head"]) -> Shaped[np.ndarray, "layer head"]:
    """The roles that each head's evidence supports."""
    at = dict(zip(EVIDENCE, values, strict=True))
    looks = np.fmax(at["to right"], at["to wrong"]) >= ATTENDS
    copies, writes = at["copying"] >= COPIES, at["attribution"] >= WRITES
    moves = (at["to right"] >= ATTENDS) & copies & writes
    having = {
        "previous token": at["previous token"] >= ATTENDS,
        "duplicate token": at["duplicate token"] >= ATTENDS,
        "induction": at["induction"] >= ATTENDS,
        "mover": moves,
        "writer": writes & ~moves,
        "copier": looks & copies & ~moves,
        "copy suppression": looks & (at["suppression"] >= COPIES),
        "directs attention": at["directs"] >= DIRECTS,
    }
    named = np.empty(values.shape[1:], dtype=object)
    for index in np.ndindex(named.shape):
        named[index] = ", ".join(role for role, has in having.items() if has[index])
    return named.astype(str)
