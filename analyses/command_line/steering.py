"""`interp steer`: what a model writes when a direction of its stream is added or taken out."""

from __future__ import annotations

from typing import Any

import click

from analyses.command_line.choices import ModelChoice, OnePrompt, Output, check_not_empty, check_text, misuse, token_ids
from analyses.command_line.options import native_model_options, output_options, prompt_options


@click.command()
@native_model_options
@prompt_options
@click.option("--toward", multiple=True, required=True, metavar="TEXT", help="What to steer to; may be given often.")
@click.option("--away", multiple=True, required=True, metavar="TEXT", help="What to steer from; may be given often.")
@click.option("--layer", type=click.IntRange(min=0), help="Where it is added.  [default: the middle]")
@click.option("--strength", multiple=True, type=float, help="Multiples of the difference; several.  [default: 1]")
@click.option("--ablate", is_flag=True, help="Take the direction out of every layer instead.")
@click.option("--max-new-tokens", type=click.IntRange(min=0), default=20, show_default=True, help="To write.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: the likeliest.")
@output_options(".json")
def steer(
    chosen: ModelChoice,
    prompt: OnePrompt,
    toward: tuple[str, ...],
    away: tuple[str, ...],
    layer: int | None,
    strength: tuple[float, ...],
    ablate: bool,
    max_new_tokens: int,
    temperature: float,
    output: Output,
) -> None:
    """Let a model write on with the mean difference of two sets of prompts added to its stream, or taken out."""
    from analyses import ablate_direction, add_direction, generate_with, steering_vectors
    from analyses.command_line.tables import deliver, safe, table
    from interp import provenance

    if ablate and strength:
        raise misuse("--ablate takes the direction out whatever its length; expected no --strength beside it.")
    check_not_empty("toward", toward)
    check_not_empty("away", away)
    sets: Any = [[token_ids(text) for text in texts] if prompt.ids else list(texts) for texts in (toward, away)]
    model = chosen.load()
    if not prompt.ids:
        check_text(model)
    where = model.cfg.n_layers // 2 if layer is None else layer
    if where >= model.cfg.n_layers:
        raise misuse(f"--layer {where}: {model.cfg.model_name!r} has layers 0 to {model.cfg.n_layers - 1}.")
    row = prompt.read(model)
    vector = steering_vectors(model, *sets).vector(where)
    changes: dict[str, Any] = {"unedited": []}
    if ablate:
        changes["ablated"] = ablate_direction(model, vector)
    else:
        changes |= {f"{s:g}": add_direction(vector, where, s) for s in strength or (1.0,)}
    written = {
        name: _shown(model, generate_with(model, edits, row, max_new_tokens, temperature, prompt.seed))
        for name, edits in changes.items()
    }
    settings = {"toward": toward, "away": away, "layer": where, "temperature": temperature}
    origin = provenance.of(model, prompts=row, seed=prompt.seed, settings=settings)
    document = {"written": written, "layer": where, "provenance": origin.to_dict()}
    deliver(output, document, [table(["strength", "written"], [(name, safe(text)) for name, text in written.items()])])


def _shown(model: Any, written: Any) -> str:
    """Text, or ids where ids were given."""
    return written if isinstance(written, str) else " ".join(map(str, written.tolist()))
