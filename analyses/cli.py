"""`interp`: the analyses from the command line.

    interp demo                                    the shipped model, every headline analysis, one report.html
    interp patch --model town --task ioi --site z  one analysis
    interp lens --model gpt2 --prompt "The capital of France is" --json

Results go to stdout, progress and messages to stderr; `analyses.command_line.shell` explains the exit codes. What
commands need is imported when they run, so that help is quick.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyses.command_line.choices import (
    DEFAULT_MODEL,
    DEFAULT_TASK,
    Loaders,
    ModelChoice,
    OnePrompt,
    Output,
    Pairs,
    misuse,
)
from analyses.command_line.commands import COMMANDS
from analyses.command_line.kinds import Device, OutputFile
from analyses.command_line.options import (
    json_option,
    metric_option,
    model_options,
    native_model_options,
    output_options,
    pairs_options,
    text_options,
)
from analyses.command_line.shell import Shell
from analyses.command_line.training import train

if TYPE_CHECKING:
    from interp.prompts import PromptPairs


def _load(chosen: ModelChoice) -> Any:
    """What `ModelChoice.load` does: commands get models through this alone."""
    from models import load

    return load(
        chosen.model, backend=chosen.backend, device=chosen.device, dtype=chosen.dtype, revision=chosen.revision
    )


def _steps(chosen: ModelChoice) -> list[str]:
    """What `ModelChoice.steps` does."""
    from models.pretrained.native import steps_of
    from models.pretrained.places import locate

    return list(steps_of(locate(chosen.model).directory))


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("interp-lab")
    except metadata.PackageNotFoundError:
        return "not installed"


@click.group(
    cls=Shell,
    context_settings={"obj": Loaders(_load, _steps), "help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(_version(), prog_name="interp", message="%(prog)s %(version)s")
def main() -> None:
    """A mechanistic-interpretability lab: look into a transformer and change what you see.

    Try `interp demo` first. Every command has its own --help.
    """


page_option = click.option(
    "--out", "page", type=OutputFile(".html"), default="report.html", show_default=True, help="Where the page goes."
)


@main.command()
@click.option("--device", type=Device(), help="cpu, cuda, mps.  [default: cpu]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the prompts.")
@click.option("-n", "--n", type=click.IntRange(min=1), default=32, show_default=True, help="How many prompts.")
@page_option
@json_option
def demo(device: str | None, seed: int, n: int, page: Path, output: Output) -> None:
    """The shipped model on its task, every headline analysis, one page to open in a browser."""
    from interp import tasks

    model = _load(ModelChoice(DEFAULT_MODEL, device, None, None))
    _report(model, tasks.get(DEFAULT_TASK)(model, n=n, seed=seed), "logit_diff", seed, page, output)


@main.command()
@model_options
@pairs_options
@metric_option
@click.option("--beside", metavar="MODEL", help="A second model, compared with the first on the clean prompts.")
@page_option
@json_option
def report(chosen: ModelChoice, prompts: Pairs, metric: str, beside: str | None, page: Path, output: Output) -> None:
    """Every headline analysis of a model on your prompts, as one page that opens offline."""
    model = chosen.load()
    second = None if beside is None else replace(chosen, model=beside, backend=None, revision=None).load()
    _report(model, prompts.read(model), metric, prompts.seed, page, output, second)


def _report(
    model: Any, pairs: PromptPairs, metric: str, seed: int, page: Path, output: Output, beside: Any = None
) -> None:
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import findings_document, findings_view
    from analyses.report import write_report

    found = write_report(model, pairs, page, metric=metric, seed=seed, beside=beside)
    document = {"report": str(page), **findings_document(found), "provenance": found.provenance.to_dict()}
    deliver(output, document, [*findings_view(found), f"report:      {page}"])


for command in COMMANDS:
    main.add_command(command)


@main.command()
@json_option
def models(output: Output) -> None:
    """The models that ship with the lab, and how to load others."""
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import zoo_view
    from models.zoo.listing import entries

    found = [asdict(entry) for entry in entries()]
    deliver(output, {"models": found}, zoo_view(found))


@main.command()
@model_options
@json_option
@click.argument("names", nargs=-1, metavar="[NAME]...")
def hooks(chosen: ModelChoice, names: tuple[str, ...], output: Output) -> None:
    """Every hook point of a model with its axes and shape; NAMEs such as 'blocks.0.*' choose among them."""
    from analyses.command_line.tables import deliver
    from analyses.command_line.views import hook_rows, hooks_view

    model = chosen.load()
    rows = hook_rows(model, _matching(list(model.hook_dict), names, model.cfg.model_name))
    deliver(output, {"model": model.cfg.model_name, "hooks": rows}, hooks_view(rows))


def _matching(known: list[str], patterns: tuple[str, ...], model_name: str) -> list[str]:
    from fnmatch import filter as matches

    from interp.errors import UnknownHookError

    for pattern in patterns:
        if not matches(known, pattern):
            raise UnknownHookError.near(pattern, known, model_name)
    chosen = {name for pattern in patterns for name in matches(known, pattern)}
    return [name for name in known if name in chosen or not patterns]


@main.command()
@native_model_options
@text_options
@click.option("--max-new-tokens", type=click.IntRange(min=0), default=20, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), help="0: the likeliest.  [default: 1; with a source 0]")
@click.option("--top-k", type=click.IntRange(min=1), help="Draw from the k likeliest.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest that hold p.")
@click.option(
    "--beams", type=click.IntRange(min=1), default=1, show_default=True, help="Of an encoder-decoder's search."
)
@output_options(".json")
def generate(
    chosen: ModelChoice,
    prompt: OnePrompt,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    beams: int,
    output: Output,
) -> None:
    """Let a model write on from TEXT (or --prompt), or an encoder-decoder translate it."""
    from analyses.command_line.tables import deliver, safe
    from interp import provenance

    model = chosen.load()
    row = prompt.read(model)
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    written, settings = _written(model, row, settings, prompt.seed, beams)
    shown = written if isinstance(written, str) else _as_text(model, written, prompt.ids)
    origin = provenance.of(model, prompts=row, seed=prompt.seed, settings=settings)
    deliver(output, {"text": shown, "provenance": origin.to_dict()}, [safe(shown)])


def _written(model: Any, row: Any, settings: dict[str, Any], seed: int, beams: int) -> tuple[Any, dict[str, Any]]:
    """What the model writes, and the settings with their defaults filled in."""
    from models.encoder_decoder import EncoderDecoder
    from models.generation import generate as write_on

    translates = isinstance(model, EncoderDecoder)
    if settings["temperature"] is None:
        settings = settings | {"temperature": 0.0 if translates else 1.0}
    if translates:
        settings = settings | {"num_beams": beams}
        return model.generate(row, **settings, seed=seed), settings
    if beams > 1:
        raise misuse(f"--beams {beams}: only an encoder-decoder searches with beams; {model.cfg.model_name!r} is none.")
    return write_on(model, row, **settings, seed=seed), settings


def _as_text(model: Any, tokens: Any, ids: bool) -> str:
    """Generated tokens as ids where ids were given or the model has no tokenizer, else as text."""
    if ids or model.tokenizer is None:
        return " ".join(map(str, tokens.tolist()))
    start = int(tokens[0] == model.tokenizer.bos_token_id)
    return str(model.to_string(tokens[start:]))


main.add_command(train)


if __name__ == "__main__":
    main()
