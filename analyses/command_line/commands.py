"""One command per analysis: options in, the analysis, its view out."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path

import click

from analyses.command_line.choices import (
    RESULT_FILES,
    ModelChoice,
    OnePrompt,
    Output,
    Pairs,
    axis_names,
    misuse,
    with_task,
)
from analyses.command_line.circuits import circuit
from analyses.command_line.comparing import compare
from analyses.command_line.embedding import embeddings
from analyses.command_line.kinds import ABLATED, DIRECTION, FILL, SITE, TASK, Bytes, Name, OutputFile, Positions
from analyses.command_line.options import (
    metric_option,
    model_options,
    output_options,
    pairs_options,
    prompt_options,
    top_option,
)
from analyses.command_line.steering import steer
from analyses.command_line.tracing import trace
from analyses.command_line.writing import sampling


def _components() -> tuple[str, ...]:
    from analyses.lens import COMPONENTS

    return ("resid", *COMPONENTS)


@click.command()
@model_options
@prompt_options
@click.option("--right", "--answer", "answer", metavar="TOKEN", help="Follow this token's rank and probability.")
@click.option("--layer", type=click.IntRange(min=0), help="Show every position after this layer.")
@click.option("--of", type=Name("component", _components), default="resid", help="resid, attn_out, mlp_out or result.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many tokens to list.")
@output_options(*RESULT_FILES)
def lens(
    chosen: ModelChoice, prompt: OnePrompt, answer: str | None, layer: int | None, of: str, top: int, output: Output
) -> None:
    """What the model would predict after each layer (the logit lens).

    --json and --out FILE.json hold the likeliest tokens instead of all logits; FILE.safetensors holds everything.
    """
    from analyses import component_lens, logit_lens
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import component_document, component_view, lens_document, lens_view

    if of != "resid" and (answer is not None or layer is not None):
        raise misuse("--right and --layer go with the residual stream; expected no --of beside them.")
    model = chosen.load()
    if layer is not None and layer >= model.cfg.n_layers:
        raise misuse(f"--layer {layer}: {model.cfg.model_name!r} has layers 0 to {model.cfg.n_layers - 1}.")
    row = prompt.read(model)
    if of != "resid":
        part = with_task(component_lens(model, row, of), prompt)
        deliver(output, component_document(model, part, top), component_view(model, part, top), part)
        return
    token = None if answer is None else prompt.answer(model, answer)
    found = with_task(logit_lens(model, row), prompt)
    deliver(output, lens_document(model, found, token, top), lens_view(model, found, layer, token, top), found)


@click.command()
@model_options
@pairs_options
@metric_option
@click.option("--site", type=SITE, default="resid_pre", show_default=True, help="What is patched: resid_pre, z, ...")
@click.option("--direction", type=DIRECTION, default="denoise", show_default=True)
@click.option("--by", help="Axes to tell apart, of layer, head and pos, such as layer,head.  [default: two of them]")
@click.option("--raw", is_flag=True, help="The metric itself, not its share between the baselines.")
@click.option("--budget", type=Bytes(), help="Memory to use, such as 2GB.  [default: half of what is free]")
@click.option("--resume", type=OutputFile(".safetensors"), help="Keep the sweep in this file, and go on from it.")
@click.option("--plan", is_flag=True, help="Only say what it would take.")
@top_option
@output_options(*RESULT_FILES)
def patch(
    chosen: ModelChoice,
    prompts: Pairs,
    metric: str,
    site: str,
    direction: str,
    by: str | None,
    raw: bool,
    budget: int | None,
    resume: Path | None,
    plan: bool,
    top: int,
    output: Output,
) -> None:
    """Put activations of one run into another, and see what comes back (activation patching)."""
    from analyses import activation_patching
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import patching_view
    from analyses.patching import patching_plan

    axes = None if by is None else axis_names(by)
    if plan and (output.out is not None or resume is not None):
        raise misuse("--plan runs nothing, so there is nothing to write; expected no --out and no --resume beside it.")
    model = chosen.load()
    pairs = prompts.read(model)
    if plan:
        ahead = patching_plan(model, pairs, site, metric, direction, axes, budget)
        deliver(output, asdict(ahead), [str(ahead)])
        return
    found = activation_patching(
        model, pairs, site, metric, direction, normalize=not raw, by=axes, budget=budget, out=resume
    )
    found = with_task(found, prompts)
    deliver(output, found.to_dict(), patching_view(found, top), found)


@click.command()
@model_options
@pairs_options
@metric_option
@click.option("--of", type=ABLATED, default="head", show_default=True, help="head, attn, mlp, layer or neuron.")
@click.option("--value", type=FILL, default="mean", show_default=True, help="Put there: zero, mean or resample.")
@click.option("--positions", type=Positions(), help="Only at these, such as '3 -1'.  [default: everywhere]")
@click.option("--cumulative", type=click.IntRange(min=1), help="Take out the strongest one after another, so many.")
@click.option("--budget", type=Bytes(), help="Memory to use, such as 2GB.  [default: half of what is free]")
@click.option("--resume", type=OutputFile(".safetensors"), help="Keep the sweep in this file, and go on from it.")
@top_option
@output_options(*RESULT_FILES)
def ablate(
    chosen: ModelChoice,
    prompts: Pairs,
    metric: str,
    of: str,
    value: str,
    positions: list[int] | None,
    cumulative: int | None,
    budget: int | None,
    resume: Path | None,
    top: int,
    output: Output,
) -> None:
    """Take components out of the clean run, one at a time, and see what changes (ablation).

    mean and resample take their values from the corrupted prompts.
    """
    from analyses import ablation, cumulative_ablation
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import ablation_view, cumulative_view

    model = chosen.load()
    pairs = prompts.read(model)
    found = ablation(model, pairs, of, value, None, metric, positions, budget, out=resume)
    if cumulative is None:
        found = with_task(found, prompts)
        deliver(output, found.to_dict(), ablation_view(found, top), found)
        return
    strongest = found.ranking[:cumulative]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zero ablation")  # said once already
        curve = cumulative_ablation(model, pairs, strongest, of, value, None, metric, positions, budget)
    curve = with_task(curve, prompts)
    deliver(output, curve.to_dict(), cumulative_view(curve), curve)


@click.command()
@model_options
@pairs_options
@click.option("--by", type=Name("part", lambda: ("head", "neuron", "source")), default="head", show_default=True)
@top_option
@output_options(*RESULT_FILES)
def attribute(chosen: ModelChoice, prompts: Pairs, by: str, top: int, output: Output) -> None:
    """What each part of the model itself writes towards the right answer (direct logit attribution).

    --by head also lists MLPs, embeddings and biases; --by source tells heads apart by the position they read.
    """
    from analyses import head_attribution, neuron_attribution, source_attribution
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import attribution_view, result_view

    model = chosen.load()
    pairs = prompts.read(model)
    if by == "head":
        parts = with_task(head_attribution(model, pairs), prompts)
        deliver(output, parts.to_dict(), attribution_view(parts, top), parts)
        return
    analysis = {"neuron": neuron_attribution, "source": source_attribution}[by]
    found = with_task(analysis(model, pairs), prompts)
    deliver(output, found.to_dict(), result_view(found, top), found)


@click.command()
@model_options
@click.option("--task", type=TASK, help="Also what each head does in this task, and its roles.")
@click.option(
    "-n", "--n", type=click.IntRange(min=1), default=16, show_default=True, help="Rows of tokens, or prompts."
)
@click.option("--length", type=click.IntRange(min=2), help="Of the block that is repeated.  [default: what fits]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random tokens.")
@top_option
@output_options(*RESULT_FILES)
def heads(
    chosen: ModelChoice, task: str | None, n: int, length: int | None, seed: int, top: int, output: Output
) -> None:
    """Which heads attend to the previous token, an equal one, or the one after it (induction).

    With --task a table of all heads that have a role in it, with the evidence.
    """
    from analyses import head_roles, head_scores
    from analyses.command_line.head_views import roles_view, scores_view
    from analyses.command_line.tables import deliver
    from interp import tasks

    if task is not None:
        if length is not None:
            raise misuse("--length is of the rows of random tokens alone; expected no --task beside it.")
        model = chosen.load()
        roles = head_roles(model, tasks.get(task)(model, n=n, seed=seed), seed)
        deliver(output, roles.to_dict(), roles_view(roles), roles)
        return
    found = head_scores(chosen.load(), n=n, length=length, seed=seed)
    deliver(output, found.to_dict(), scores_view(found, top), found)


COMMANDS = (lens, patch, trace, ablate, attribute, heads, circuit, embeddings, steer, sampling, compare)
