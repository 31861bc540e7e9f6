"""`interp circuit`: the circuit that does a task, or how a saved one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from analyses.command_line.choices import RESULT_FILES, ModelChoice, Output, Pairs, misuse, with_task
from analyses.command_line.kinds import FILL, Bytes, Name
from analyses.command_line.options import metric_option, model_options, output_options, pairs_options, top_option


def _methods() -> list[str]:
    from analyses.circuit_finding import METHODS

    return list(METHODS)


def _selections() -> list[str]:
    from analyses.circuit_finders import FINDERS

    return list(FINDERS)


METHOD, SELECT = Name("method", _methods), Name("selection", _selections)


@click.command()
@model_options
@pairs_options
@metric_option
@click.option(
    "--method", type=METHOD, default="exact", show_default=True, help="Score edges by: exact, eap, atp, relp or eap-ig."
)
@click.option(
    "--edges",
    "share",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.05,
    show_default=True,
    help="Keep this share of the edges.",
)
@click.option(
    "--select",
    type=SELECT,
    default="edges",
    show_default=True,
    help="Keep the strongest edges, grow a greedy circuit, keep the strongest nodes, or search: acdc, pruning.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, min_open=True),
    help="For acdc, instead of --edges: by how much the metric may change when an edge goes.",
)
@click.option("--absolute", is_flag=True, help="Rank edges without their signs, those that work against it too.")
@click.option("--value", type=FILL, default="resample", show_default=True, help="Ablate with: resample, mean or zero.")
@click.option(
    "--circuit",
    "saved",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run this saved circuit instead of finding one.",
)
@click.option("--budget", type=Bytes(), help="Memory to use, such as 2GB.  [default: what is free, in part]")
@top_option
@output_options(*RESULT_FILES)
def circuit(
    chosen: ModelChoice,
    prompts: Pairs,
    metric: str,
    method: str,
    share: float,
    select: str,
    threshold: float | None,
    absolute: bool,
    value: str,
    saved: Path | None,
    budget: int | None,
    top: int,
    output: Output,
) -> None:
    """Which edges do the task: score them all, keep the strongest, and run them alone.

    Faithfulness is measured on prompts of another seed, or on the same ones where they are given by --prompt. A .json
    file holds the circuit, for --circuit.
    """
    from analyses import evaluate_circuits, find_circuit
    from analyses.command_line.circuit_views import circuit_view, evaluation_view
    from analyses.command_line.tables import deliver
    from interp.circuit import Circuit

    known = None if saved is None else Circuit.load(saved)
    if known is not None and _found_options():
        raise misuse(f"--circuit runs a saved circuit; expected no {', '.join(_found_options())} beside it.")
    _check_threshold(select, threshold)
    model = chosen.load()
    if known is not None:
        known.check(model)
    pairs = prompts.read(model)
    if known is not None:
        judged = with_task(
            evaluate_circuits(model, pairs, known, metric, value, seed=prompts.seed, budget=budget), prompts
        )
        deliver(output, judged.to_dict(), evaluation_view(judged, known), judged)
        return
    others = None if prompts.prompt else replace(prompts, seed=prompts.seed + 1).read(model)
    choice = (method, share, select, not absolute, value, others, threshold, prompts.seed, budget)
    found = with_task(find_circuit(model, pairs, metric, *choice), prompts)
    deliver(output, found.to_dict(), circuit_view(found, top), found)


def _found_options() -> list[str]:
    """The options given that say how a circuit is found."""
    context = click.get_current_context()
    given = {
        "--method": "method",
        "--edges": "share",
        "--select": "select",
        "--threshold": "threshold",
        "--absolute": "absolute",
    }
    typed = click.core.ParameterSource.COMMANDLINE
    return [option for option, name in given.items() if context.get_parameter_source(name) == typed]


def _check_threshold(select: str, threshold: float | None) -> None:
    """Raises:
    click.UsageError: ACDC without --threshold or with --edges, or --threshold without ACDC.
    """
    if (select == "acdc") != (threshold is not None):
        raise misuse("--select acdc and --threshold go together; expected both, as in --select acdc --threshold 0.1.")
    if threshold is not None and "--edges" in _found_options():
        raise misuse("--select acdc keeps what --threshold says; expected no --edges beside it.")
