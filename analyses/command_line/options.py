"""The options that commands share. Each bundle of them reaches a command as one value of `command_line.choices`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from analyses.command_line.kinds import BACKEND, DTYPE, METRIC, TASK, Device, OutputFile

if TYPE_CHECKING:
    pass

from analyses.command_line.choices import (
    DEFAULT_MODEL,
    DEFAULT_TASK,
    ModelChoice,
    OnePrompt,
    Output,
    Pairs,
    TextOrPrompt,
)

Command = TypeVar("Command", bound=Callable[..., Any])


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    return click.option(*names, **settings)


task_option = _option("--task", type=TASK, help=f"Prompts of a task: ioi, greater_than, ...  [default: {DEFAULT_TASK}]")
seed_option = _option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of whatever is drawn.")
n_option = _option(
    "-n", "--n", type=click.IntRange(min=1), default=32, show_default=True, help="How many prompts of the task."
)
ids_option = _option("--ids", is_flag=True, help="Prompts and answers are token ids, such as '3 1 2'.")
_MODEL = (
    _option("--model", default=DEFAULT_MODEL, show_default=True, help="A zoo model, a directory, or a hub id."),
    _option("--device", type=Device(), help="cpu, cuda, cuda:1, mps.  [default: cpu]"),
    _option("--dtype", type=DTYPE, help="float32, bfloat16, ...  [default: the checkpoint's]"),
    _option("--revision", help="A version of the weights, such as step-400."),
)
_BACKEND = _option(
    "--backend", type=BACKEND, help="native or transformer-lens.  [default: native where the lab has the code]"
)
_SIDES = (
    _option("--source", metavar="TEXT", help="Of an encoder-decoder: look at its decoder, given this source."),
    _option("--target", metavar="TEXT", help="Of an encoder-decoder: look at its encoder, given the target so far."),
)
_PAIRS = (
    task_option,
    n_option,
    seed_option,
    _option("--prompt", multiple=True, metavar="TEXT", help="A clean prompt; may be given several times."),
    _option("--corrupted", multiple=True, metavar="TEXT", help="Its counterpart, of as many tokens."),
    _option("--right", "--answer", "right", multiple=True, metavar="TOKEN", help="The right answer, as in ' Mary'."),
    _option("--wrong", multiple=True, metavar="TOKEN", help="A wrong answer, as in ' John'."),
    ids_option,
)
_ONE_PROMPT = (task_option, seed_option, _option("--prompt", metavar="TEXT", help="The prompt."), ids_option)
_JSON = _option("--json", "json", is_flag=True, help="One JSON document on stdout, and nothing else there.")
metric_option = _option(
    "--metric", type=METRIC, default="logit_diff", show_default=True, help="What is measured: logit_diff, prob, kl, ..."
)
top_option = _option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many to list.")


def bundle(kind: type, name: str, *options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Add options to a command, and hand it their values as one `kind` under `name`."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def bundled(**given: Any) -> Any:
            values = {option: given.pop(option) for option in added}
            return command(**given, **{name: kind(**values)})

        decorated: Any = bundled
        known = len(getattr(bundled, "__click_params__", ()))
        for option in reversed(options):
            decorated = option(decorated)
        added = [parameter.name for parameter in decorated.__click_params__[known:]]
        return decorated

    return decorate


model_options = bundle(ModelChoice, "chosen", *_MODEL, _BACKEND, *_SIDES)
compared_model_options = bundle(ModelChoice, "chosen", click.argument("model", metavar="A"), *_MODEL[1:], _BACKEND)
native_model_options = bundle(ModelChoice, "chosen", *_MODEL)
pairs_options = bundle(Pairs, "prompts", *_PAIRS)
prompt_options = bundle(OnePrompt, "prompt", *_ONE_PROMPT)
text_options = bundle(TextOrPrompt, "prompt", click.argument("text", required=False), *_ONE_PROMPT)
json_option = bundle(Output, "output", _JSON)


def output_options(*suffixes: str) -> Callable[[Command], Command]:
    """--json, and --out for files of these kinds."""
    out = _option("--out", type=OutputFile(*suffixes), help=f"A file to write as well: {', '.join(suffixes)}.")
    return bundle(Output, "output", out, _JSON)
