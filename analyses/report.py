"""The report: the headline analyses of one model on one set of prompts, in one HTML file that works offline.

    write_report(model, tasks.ioi(model), "report.html")

Cost: one forward each for the lens, the attribution, the head scores and the patterns, and those of four patching
sweeps (residual stream, attention and MLP outputs by layer and position; heads). With a second model beside it, a
comparison (`compare`) on the clean prompts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.attribution import AttributionResult, head_attribution
from analyses.comparison import ComparisonResult, compare
from analyses.lens import LensResult, logit_lens
from analyses.patching import PatchingResult, activation_patching
from analyses.patterns import Head, PatternsResult, attention_patterns
from analyses.roles import HeadScores, head_scores
from interp import files, provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.prompts import PromptPairs
from interp.provenance import Provenance
from interp.shares import shares_add_up

SITES = ("resid_pre", "attn_out", "mlp_out", "z")
HEADS = 8
"""How many heads are looked at closely."""


@dataclass(frozen=True)
class Findings:
    """What the report shows, as results that can be read and saved.

    example: token ids of the clean prompt that is shown in full. target, rival: its first right and wrong answer.
    patching: by site. attribution: None where shares do not add up to the logits. heads: (layer, head) of those that
    matter, the most important first. comparison: with the model that was put beside it, if one was.
    """

    model: Any
    pairs: PromptPairs
    example: Int[Tensor, "pos"]
    target: int
    rival: int
    patching: dict[str, PatchingResult]
    lens: LensResult
    attribution: AttributionResult | None
    scores: HeadScores | None
    patterns: PatternsResult
    comparison: ComparisonResult | None
    provenance: Provenance

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.patterns.heads


def write_report(
    model: HookedModel | Any,
    pairs: PromptPairs,
    path: str | os.PathLike[str] = "report.html",
    title: str | None = None,
    metric: str = "logit_diff",
    example: int = 0,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
    beside: HookedModel | Any | None = None,
) -> Findings:
    """Run every headline analysis and write one page; give back what was found.

    title: heading of the page. metric: what patching measures (see `interp.metrics`); attribution is of the logit
    difference always. example: the number of the prompt whose lens and patterns are shown. seed: of the random
    tokens that heads are scored on. budget, progress: as in `activation_patching`. beside: a second model, to be
    compared with the first on the clean prompts.

    The page appears whole or not at all; that it can be written is checked before the work starts.

    Raises:
        LabError: the path cannot be written to, there is no such example, or a model cannot take the prompts.
    """
    from analyses.report_sections import page

    path = files.check_writable(path)
    findings = investigate(model, pairs, metric, example, seed, budget, progress, beside)
    page(findings, title).write(path)
    return findings


def investigate(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: str = "logit_diff",
    example: int = 0,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
    beside: HookedModel | Any | None = None,
) -> Findings:
    """The analyses of the report, without the page; see `write_report` for the arguments and errors."""
    if not 0 <= example < len(pairs):
        raise LabError(f"there is no prompt {example}: the pairs are numbered 0 to {len(pairs) - 1}.")
    tokens = pairs.clean[example][pairs.mask[example]]
    comparison = None if beside is None else compare(model, beside, pairs.clean, pairs.mask, seed)
    sites = [site for site in SITES if not (site == "mlp_out" and model.cfg.attn_only)]

    def patch(site: str) -> PatchingResult:
        return activation_patching(model, pairs, site=site, metric=metric, budget=budget, progress=progress)

    patching = {site: patch(site) for site in sites}
    attribution = head_attribution(model, pairs) if shares_add_up(model) else None
    return Findings(
        model=model,
        pairs=pairs,
        example=tokens,
        target=_first(pairs.right[example]),
        rival=_first(pairs.wrong[example]),
        patching=patching,
        lens=logit_lens(model, tokens),
        attribution=attribution,
        scores=_if_possible(lambda: head_scores(model, seed=seed)),
        patterns=attention_patterns(model, tokens, heads_that_matter(patching["z"], attribution)),
        comparison=comparison,
        provenance=provenance.of(
            model,
            prompts=pairs,
            metric=metric,
            direction="denoise",
            ablation="replace",
            seed=seed,
            settings=None if beside is None else {"compared with": provenance.of(beside).to_dict()},
        ),
    )


def heads_that_matter(
    patching: PatchingResult, attribution: AttributionResult | None, n: int = HEADS
) -> tuple[Head, ...]:
    """The heads that patching and attribution put first, by turns, without repeats."""
    rankings = [patching.top(n), *([] if attribution is None else [attribution.top(n)])]
    heads = [(entry.index[0], entry.index[1]) for entries in zip(*rankings, strict=True) for entry in entries]
    return tuple(dict.fromkeys(heads))[:n]


def _first(answers: Int[Tensor, "n_answers"]) -> int:
    """The first answer of a row that is filled up with -1."""
    return int(answers[answers >= 0][0])


def _if_possible(analysis: Callable[[], HeadScores]) -> HeadScores | None:
    """What the analysis gives, or None for a model that it does not apply to (a context too short for a repeat)."""
    try:
        return analysis()
    except LabError:
        return None


def example_words(findings: Findings, tokens: Int[Tensor, "pos"] | None = None) -> list[str]:
    """The example's tokens as text, or those of another row of ids."""
    return findings.model.to_str_tokens(findings.example if tokens is None else tokens)


def token_losses(lens: LensResult) -> list[float]:
    """How unlikely the model found each token of the lens's prompt, in nats; NaN for the first."""
    logits = torch.from_numpy(lens.logits[-1].copy()).double()
    wanted = torch.from_numpy(lens.tokens.copy()).long()[1:, None]
    losses = -logits.log_softmax(-1)[:-1].gather(-1, wanted)[:, 0]
    return [float("nan"), *losses.tolist()]
