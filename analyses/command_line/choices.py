"""What the options that commands share mean, as frozen values: `ModelChoice`, `Pairs`, `OnePrompt`, `Output`.

What can be checked without a model is checked when they are made, before any work, and is bad usage (exit code 2).
Nothing here needs torch before a command runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyses.command_line.kinds import Name
from interp.errors import LabError

if TYPE_CHECKING:
    from interp.prompts import PromptPairs

DEFAULT_MODEL, DEFAULT_TASK = "town", "ioi"
RESULT_FILES = (".html", ".safetensors", ".csv", ".json")
"""What a result can be written as."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is to run. source, target: what one side of an encoder-decoder is given, to look at the
    other.

    Raises:
        click.UsageError: at construction: both sides are given.
    """

    model: str
    device: str | None
    dtype: str | None
    revision: str | None
    backend: str | None = "native"
    source: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.target is not None:
            raise misuse("--source shows the decoder and --target the encoder; expected one of them.")

    def load(self) -> Any:
        """The model, by the loader that the program brought (see `analyses.cli`), or the side of it that was chosen.

        Raises:
            LabError: there is no such model, it cannot be read, or the device is not there; it has no such side.
        """
        model = click.get_current_context().obj.load(self)
        given = self.target if self.source is None else self.source
        if given is None:
            return model
        option, view = ("--target", "encoder_given") if self.source is None else ("--source", "decoder_given")
        if not hasattr(model, view):
            raise LabError(
                f"{option} goes with an encoder-decoder, whose two sides are looked at one by one; {self.model!r} is "
                "none.  Try --model dates, or leave it out."
            )
        return getattr(model, view)(_given(model, given))

    def steps(self) -> list[str]:
        """The revisions that are earlier checkpoints of the model's training, the first one first.

        Raises:
            LabError: there is no such model.
        """
        return click.get_current_context().obj.steps(self)


@dataclass(frozen=True)
class Loaders:
    """How the program gets models: what `analyses.cli` brings, which alone knows where they come from."""

    load: Callable[[ModelChoice], Any]
    steps: Callable[[ModelChoice], list[str]]


@dataclass(frozen=True)
class Output:
    """json: one JSON document on stdout instead of tables. out: a file to write as well."""

    json: bool
    out: Path | None = None


@dataclass(frozen=True)
class Pairs:
    """Pairs of prompts: a task's, or those of the command line, one --corrupted, --right and --wrong for each --prompt.

    Raises:
        click.UsageError: at construction, when the options do not fit together.
    """

    task: str | None
    n: int
    seed: int
    prompt: tuple[str, ...]
    corrupted: tuple[str, ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    ids: bool

    def __post_init__(self) -> None:
        counts = {name: len(getattr(self, name)) for name in ("prompt", "corrupted", "right", "wrong")}
        for name in counts:
            check_not_empty(name, getattr(self, name))
        if self.task and any(counts.values()):
            raise misuse("--task brings its own prompts; expected either --task or --prompt, not both.")
        if len(set(counts.values())) > 1:
            given = ", ".join(f"{count} --{name}" for name, count in counts.items())
            raise misuse(f"{given}; expected as many of each.")
        if self.ids:
            if not self.prompt:
                raise misuse("--ids says that the prompts are token ids, but there is no --prompt.")
            for name in counts:
                for text in getattr(self, name):
                    token_ids(text)

    def read(self, model: Any) -> PromptPairs:
        """The pairs for this model.

        Raises:
            LabError: prompts or answers that the model cannot take.
        """
        from interp import tasks
        from interp.prompts import PromptPairs

        if self.prompt and not self.ids:
            check_text(model)
        if not self.prompt:
            return tasks.get(self.task or DEFAULT_TASK)(model, n=self.n, seed=self.seed)
        if not self.ids:
            return PromptPairs.from_text(model, self.prompt, self.corrupted, self.right, self.wrong)
        sides = (self.prompt, self.corrupted, self.right, self.wrong)
        clean, corrupted, right, wrong = ([token_ids(text) for text in side] for side in sides)
        return PromptPairs.from_tokens(clean, corrupted, right, wrong, model=model)


@dataclass(frozen=True)
class OnePrompt:
    """One prompt: that of the command line, or a task's first.

    Raises:
        click.UsageError: at construction, when the options do not fit together.
    """

    task: str | None
    seed: int
    prompt: str | None
    ids: bool

    def __post_init__(self) -> None:
        check_not_empty("prompt", () if self.prompt is None else (self.prompt,))
        if self.task and self.prompt is not None:
            raise misuse("--task brings its own prompt; expected either --task or --prompt, not both.")
        if self.ids and self.prompt is None:
            raise misuse("--ids says that the prompt is token ids, but there is no --prompt.")
        if self.ids and self.prompt is not None:
            token_ids(self.prompt)

    def read(self, model: Any) -> Any:
        """Text, or a row of token ids."""
        import torch

        from interp import tasks

        if self.prompt is None:
            pairs = tasks.get(self.task or DEFAULT_TASK)(model, n=1, seed=self.seed)
            return pairs.clean[0][pairs.mask[0]]
        if not self.ids:
            check_text(model)
        return torch.tensor(token_ids(self.prompt), dtype=torch.long) if self.ids else self.prompt

    def answer(self, model: Any, text: str) -> int:
        """The token of an answer to the prompt.

        Raises:
            LabError: it is not one token, or not one of the model's.
        """
        from interp.prompt_text import answer_ids

        if self.ids:
            [token] = token_ids(text) if len(token_ids(text)) == 1 else [-1]
        else:
            [token] = answer_ids(model, self.prompt or "", text)
        if not 0 <= token < model.cfg.d_vocab:
            raise LabError(f"the answer {text!r} is not one token id from 0 to {model.cfg.d_vocab - 1}.")
        return token


@dataclass(frozen=True)
class TextOrPrompt(OnePrompt):
    """One prompt, which may also stand by itself, without --prompt."""

    text: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.prompt is not None:
            raise misuse("the text is given twice, by itself and with --prompt; expected one of them.")
        if self.text is not None:
            object.__setattr__(self, "prompt", self.text)
        super().__post_init__()


def with_task(result: Any, prompts: Any) -> Any:
    """The result, its provenance telling which task its prompts were drawn from.

    prompts: `Pairs`, `OnePrompt` or `SomeTexts`.
    """
    if prompts.prompt:
        return result
    known = result.provenance
    settings = {**known.settings, "task": prompts.task or DEFAULT_TASK}
    return replace(result, provenance=replace(known, settings=settings, seed=prompts.seed))


def check_not_empty(name: str, texts: tuple[str, ...]) -> None:
    """Raises:
    click.UsageError: one of the texts is empty.
    """
    if not all(texts):
        raise misuse(f"--{name} is empty; expected at least one token.")


def check_text(model: Any) -> None:
    """Raises:
    LabError: the model takes no text.
    """
    if model.tokenizer is None:
        raise LabError(
            f"the model {model.cfg.model_name!r} has no tokenizer, so it takes no text; "
            "give token ids, as in --ids --prompt '3 1 2'."
        )


def _given(model: Any, text: str) -> Any:
    """A source or target as the model takes it: text, or a row of ids where there is no tokenizer."""
    import torch

    return text if getattr(model, "tokenizer", None) is not None else torch.tensor(token_ids(text), dtype=torch.long)


def axis_names(text: str) -> list[str]:
    """The axes in a text such as "layer,head".

    Raises:
        click.UsageError: one of them is none.
    """
    axis = Name("axis", lambda: ("layer", "head", "pos", "neuron"))
    return [axis.convert(name.strip(), None, click.get_current_context(silent=True)) for name in text.split(",")]


def token_ids(text: str) -> list[int]:
    """The numbers in a text such as "3 1 2" or "3,1,2".

    Raises:
        click.UsageError: something else is in it.
    """
    words = text.replace(",", " ").split()
    if not all(re.fullmatch(r"-?\d{1,18}", word) for word in words):
        raise misuse(f"--ids expects token ids such as '3 1 2'; given {text!r}.")
    return [int(word) for word in words]


def misuse(message: str) -> click.UsageError:
    """The error of options that do not fit together."""
    return click.UsageError(message, click.get_current_context(silent=True))
