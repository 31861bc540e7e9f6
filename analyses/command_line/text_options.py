"""The texts of a command that takes several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from analyses.command_line.choices import DEFAULT_TASK, check_not_empty, check_text, misuse, token_ids
from analyses.command_line.options import bundle, ids_option, n_option, seed_option, task_option


@dataclass(frozen=True)
class SomeTexts:
    """Texts to run models on: those of the command line, or the clean prompts of a task.

    Raises:
        click.UsageError: at construction, when the options do not fit together.
    """

    task: str | None
    n: int
    seed: int
    prompt: tuple[str, ...]
    ids: bool

    def __post_init__(self) -> None:
        check_not_empty("prompt", self.prompt)
        if self.task and self.prompt:
            raise misuse("--task brings its own prompts; expected either --task or --prompt, not both.")
        if self.ids and not self.prompt:
            raise misuse("--ids says that the prompts are token ids, but there is no --prompt.")
        if self.ids:
            for text in self.prompt:
                token_ids(text)

    def read(self, model: Any) -> Any:
        """Texts, or a list of rows of token ids.

        Raises:
            LabError: the model has no tokenizer, or cannot do the task.
        """
        import torch

        from interp import tasks

        if self.ids:
            return [torch.tensor(token_ids(text), dtype=torch.long) for text in self.prompt]
        if self.prompt:
            check_text(model)
            return list(self.prompt)
        pairs = tasks.get(self.task or DEFAULT_TASK)(model, n=self.n, seed=self.seed)
        return [row[real] for row, real in zip(pairs.clean, pairs.mask, strict=True)]


_PROMPT = click.option("--prompt", multiple=True, metavar="TEXT", help="A text; may be given several times.")
texts_options = bundle(SomeTexts, "texts", task_option, n_option, seed_option, _PROMPT, ids_option)
