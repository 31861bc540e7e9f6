"""`interp trace`: where the answer comes back when a corrupted prompt is restored place by place."""

from __future__ import annotations

import click

from analyses.command_line.choices import RESULT_FILES, ModelChoice, Output, Pairs, misuse, with_task
from analyses.command_line.kinds import CORRUPTION, TRACED, Bytes, Positions
from analyses.command_line.options import metric_option, model_options, output_options, pairs_options, top_option


@click.command()
@model_options
@pairs_options
@metric_option
@click.option("--site", type=TRACED, default="resid_post", show_default=True, help="resid_post, attn_out, mlp_out, ...")
@click.option("--window", type=click.IntRange(min=1), default=1, show_default=True, help="Layers restored at once.")
@click.option("--corruption", type=CORRUPTION, default="replacement", show_default=True, help="replacement or noise.")
@click.option(
    "--subject", type=Positions(), help="Where the noise goes.  [default: where the prompts of a pair differ]"
)
@click.option("--noise", type=click.FloatRange(min=0, min_open=True), help="Its width.  [default: 3 embeddings' wide]")
@click.option("--draws", type=click.IntRange(min=1), default=8, show_default=True, help="How often noise is drawn.")
@click.option("--raw", is_flag=True, help="The change of the metric, not its share between the baselines.")
@click.option("--budget", type=Bytes(), help="Memory to use, such as 2GB.  [default: half of what is free]")
@top_option
@output_options(*RESULT_FILES)
def trace(
    chosen: ModelChoice,
    prompts: Pairs,
    metric: str,
    site: str,
    window: int,
    corruption: str,
    subject: list[int] | None,
    noise: float | None,
    draws: int,
    raw: bool,
    budget: int | None,
    top: int,
    output: Output,
) -> None:
    """Corrupt the subject of the prompts, restore one place at a time, and see where the answer returns.

    The subject is replaced by that of the corrupted prompts, or blurred by noise (causal tracing).
    """
    from analyses import causal_trace
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import trace_view

    if corruption == "replacement" and (subject is not None or noise is not None):
        raise misuse("--subject and --noise go with --corruption noise.")
    model = chosen.load()
    pairs = prompts.read(model)
    found = causal_trace(
        model, pairs, site, window, corruption, subject, noise, draws, metric, not raw, prompts.seed, budget
    )
    found = with_task(found, prompts)
    deliver(output, found.to_dict(), trace_view(found, top), found)
