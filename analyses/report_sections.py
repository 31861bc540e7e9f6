"""The sections of the report, each from its findings: what was asked, where it is decided, who does it, how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analyses.labels import token_texts
from analyses.lens_picture import lens_figure
from analyses.report import example_words, token_losses
from interp import markup, pictures, text
from interp.page import Markup, Page, Plot, Section
from interp.pictures import SIGNED, Axis

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses.attribution import AttributionResult
    from analyses.patching import PatchingResult
    from analyses.report import Findings
    from interp.results import Extreme

MAX_PAIRS = 6
"""Pairs of prompts that are written out; the provenance holds more."""
TOP = 10

_SITES = {
    "resid_pre": "Residual stream before each layer",
    "attn_out": "Output of each attention layer",
    "mlp_out": "Output of each MLP",
    "z": "Each head's output",
}


def page(findings: Findings, title: str | None = None) -> Page:
    """The report as a page."""
    patched = findings.patching["z"]
    name = findings.provenance.model or "model"
    several = "pair" if len(findings.pairs) == 1 else "pairs"
    sections = [
        task(findings),
        baselines(findings),
        lens(findings),
        patching(findings),
        *attribution(findings),
        *([roles(findings)] if findings.scores is not None else []),
        patterns(findings),
        surprise(findings),
        *(findings.comparison.sections() if findings.comparison is not None else ()),
    ]
    subtitle = f"{len(findings.pairs)} {several} of prompts, metric {patched.metric}, {patched.direction}"
    return Page(title or f"How {name} finds the answer", sections, findings.provenance, subtitle)


def task(findings: Findings) -> Section:
    """The prompts, with what differs between clean and corrupted, and the answers."""
    count = min(len(findings.pairs), MAX_PAIRS)
    blocks = [_pair(findings, i) for i in range(count)]
    if count < len(findings.pairs):
        blocks.append(Markup(f'<p class="note">The first {count} of {len(findings.pairs)} pairs.</p>'))
    shows = "Pairs of prompts that differ only where marked, and the right answer to the clean one against the wrong."
    return Section("The task", blocks, shows)


def _pair(findings: Findings, i: int) -> Markup:
    pairs = findings.pairs
    real = pairs.mask[i]
    clean, corrupted = pairs.clean[i][real], pairs.corrupted[i][real]
    differ = (clean != corrupted).nonzero()[:, 0].tolist()
    right, wrong = (example_words(findings, ids[ids >= 0]) for ids in (pairs.right[i], pairs.wrong[i]))
    return markup.roles(
        [
            ("clean", markup.tokens(example_words(findings, clean), differ)),
            ("corrupted", markup.tokens(example_words(findings, corrupted), differ)),
            ("answer", markup.answers(right, wrong)),
        ]
    )


def baselines(findings: Findings) -> Section:
    """The metric of both unpatched runs."""
    result = findings.patching["z"]
    entries = [_spread("clean prompts", result.clean), _spread("corrupted prompts", result.corrupted)]
    if result.metric == "logit_diff":
        entries.append(("right answer above the wrong one", f"{(result.clean > 0).mean():.1%}", "of clean prompts"))
    return Section(
        "Baselines",
        [markup.tiles(entries), *_warning(result)],
        f"the metric ({result.metric}) of the model without any patch; patching is measured between the two",
        "two baselines that lie close together make every share between them unreliable",
    )


def _warning(result: PatchingResult) -> list[Markup]:
    """A sentence when the two baselines cannot be told apart, as then every share between them explodes."""
    differences = result.clean - result.corrupted
    if len(differences) < 2:
        return []
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))
    if abs(mean) > 2 * error:
        return []
    sentence = (
        f"The baselines differ by {text.number(mean)}, which is within two standard errors "
        f"({text.number(error, signed=False)} each) of no difference: the model hardly does this task, and the shares "
        "below say little."
    )
    return [markup.paragraph(sentence)]


def _spread(name: str, values: np.ndarray) -> tuple[str, str, str]:
    low, high = np.quantile(values, [0.25, 0.75])
    mean, low, high, lowest = (text.number(float(v)) for v in (values.mean(), low, high, values.min()))
    return name, mean, f"mean; middle half {low} to {high}, lowest {lowest}"


def lens(findings: Findings) -> Section:
    """The lens grid of the example, and how its answers fare from layer to layer at the last position."""
    found = findings.lens
    right, wrong = findings.target, findings.rival
    names = [str(t) for t in token_texts(findings.model, np.array([right, wrong]))]
    series = {
        f"right {names[0]}": found.probability(right)[:, -1],
        f"wrong {names[1]}": found.probability(wrong)[:, -1],
    }
    rows = Axis("layer", len(found.logits), found.labels.get("layer"))
    answers = pictures.lines(series, rows, unit="probability")
    return Section(
        "Logit lens",
        [
            Plot(
                lens_figure(found, right, names[0]).update_layout(title=None),
                "hover over a cell for its five likeliest tokens and the rank of the right answer",
            ),
            Plot(answers, "both answers at the last position of the same prompt"),
        ],
        found.shows,
        found.caveat,
    )


def patching(findings: Findings) -> Section:
    """A heatmap for each kind of site."""
    blocks = [
        Plot(_patching_figure(site, result), f"furthest from zero: {_named(result.top(3))}")
        for site, result in findings.patching.items()
    ]
    first = next(iter(findings.patching.values()))
    scale = "0 is the corrupted run, 1 the clean run" if first.normalized else f"in units of {first.metric}"
    shows = f"how far one activation of the clean run, put into the corrupted run, brings the metric back; {scale}"
    return Section("Activation patching", blocks, shows, first.caveat)


def _named(entries: tuple[Extreme, ...]) -> str:
    return ", ".join(f"{entry.place} {text.number(entry.value)}" for entry in entries)


def _patching_figure(site: str, result: PatchingResult) -> go.Figure:
    return result.plot().update_layout(title={"text": _SITES[site]})


def attribution(findings: Findings) -> list[Section]:
    """Who wrote the answer, or why nobody can be named."""
    if findings.attribution is not None:
        return [heads(findings.attribution), parts(findings, findings.attribution)]
    sentence = (
        "Shares of the logit difference do not add up in this model: its logits are capped, or it takes a step that "
        "the lab does not know. Activation patching, above, is exact all the same."
    )
    return [Section("Head attribution", [markup.paragraph(sentence)])]


def heads(found: AttributionResult) -> Section:
    """The attribution of all heads, and the ten largest."""
    layers, count = found.values.shape
    top = found.top(TOP)
    rows, columns = Axis("layer", layers), Axis("head", count)
    grid = pictures.heatmap(found.values, rows, columns, title="All heads", unit="logits", scale=SIGNED)
    values, names = np.array([entry.value for entry in top]), [entry.place for entry in top]
    bars = pictures.bars(values, names, title=f"The {len(top)} largest", unit=found.unit)
    return Section("Head attribution", [Plot(grid), Plot(bars)], found.shows, found.caveat)


def parts(findings: Findings, found: AttributionResult) -> Section:
    """Everything that adds up to the logit difference."""
    named = [("all heads", float(found.values.sum()))]
    named += [(f"MLP {layer}", float(v)) for layer, v in enumerate(found.mlp) if not findings.model.cfg.attn_only]
    named += [(str(part), float(v)) for part, v in zip(found.labels["part"], found.other, strict=True)]
    rows = [*named, ("sum of the parts", found.total()), ("logit difference, measured", float(found.logit_diff.mean()))]
    return Section(
        "What adds up to the logit difference",
        [markup.table(["part", "logits"], rows)],
        "the share that each part of the model wrote itself; the sum equals the measured logit difference",
        "a part that only feeds others has no share of its own",
    )


def roles(findings: Findings) -> Section:
    """What each head looks at on repeated random tokens."""
    found = findings.scores
    assert found is not None
    return Section("Head scores", [Plot(found.plot().update_layout(title=None))], found.shows, found.caveat)


def patterns(findings: Findings) -> Section:
    """circuitsvis's view of the heads that matter."""
    found = findings.patterns
    names = ", ".join(found.labels["head"])  # type: ignore[arg-type]
    which = markup.paragraph(f"The {len(found.heads)} heads that patching and attribution put first: {names}.")
    return Section("Attention of the heads that matter", [which, found.view()], found.shows, found.caveat)


def surprise(findings: Findings) -> Section:
    """How unlikely each token of the example was."""
    losses = np.array(token_losses(findings.lens))
    return Section(
        "Surprise along the prompt",
        [markup.colored_tokens(example_words(findings), losses, "nats")],
        "how unlikely the model found each token after those before it; the bluer, the more unlikely",
        "a token can be likely for a wrong reason",
    )
