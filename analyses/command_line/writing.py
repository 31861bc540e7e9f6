"""`interp sampling`: what temperature, top-k and top-p do to what a model writes."""

from __future__ import annotations

import click

from analyses.command_line.choices import RESULT_FILES, ModelChoice, OnePrompt, Output, with_task
from analyses.command_line.options import model_options, output_options, prompt_options

_TEMPERATURE = click.FloatRange(min=0)
_TOP_P = click.FloatRange(0, 1, min_open=True)


@click.command()
@model_options
@prompt_options
@click.option("--temperature", "temperatures", multiple=True, type=_TEMPERATURE, help="A way of its own; several.")
@click.option("--top-k", "top_ks", multiple=True, type=click.IntRange(min=1), help="The same, from the k likeliest.")
@click.option("--top-p", "top_ps", multiple=True, type=_TOP_P, help="The same, from the likeliest that hold p.")
@click.option("-n", "--n", type=click.IntRange(min=1), default=8, show_default=True, help="How many texts of each way.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Of each text.")
@output_options(*RESULT_FILES)
def sampling(
    chosen: ModelChoice,
    prompt: OnePrompt,
    temperatures: tuple[float, ...],
    top_ks: tuple[int, ...],
    top_ps: tuple[float, ...],
    n: int,
    max_new_tokens: int,
    output: Output,
) -> None:
    """Write on from one prompt in several ways, and see how free, how likely and how repetitive each is.

    Each --temperature, --top-k and --top-p is a way of its own; without any, all of them are tried.
    """
    from analyses import sampling_effects
    from analyses.command_line.tables import deliver
    from analyses.command_line.writing_views import sampling_view
    from analyses.sampling import WAYS
    from interp.sampling import Sampling

    ways = [
        *(Sampling(temperature) for temperature in temperatures),
        *(Sampling(top_k=k) for k in top_ks),
        *(Sampling(top_p=p) for p in top_ps),
    ]
    model = chosen.load()
    found = sampling_effects(model, prompt.read(model), ways or WAYS, n, max_new_tokens, prompt.seed)
    found = with_task(found, prompt)
    deliver(output, found.to_dict(), sampling_view(found), found)
