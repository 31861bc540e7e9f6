"""How a command ends: its errors as one message, its warnings as one line, its exit code.

    0   done
    1   the run failed: the model, the files or the machine did not allow it, or it was interrupted
    2   the command line was wrong: an unknown command, option, model or name, or a value out of range

Messages go to stderr. Nothing here needs torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any

import click

from interp.errors import LabError, UnknownHookError, UnknownModelError, choose

DONE, FAILED, MISUSED = 0, 1, 2


class Shell(click.Group):
    """A group of commands that keeps their order, offers near misses, and reports what goes wrong without traceback."""

    def main(  # type: ignore[override]  # the overloads of click say no more
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **settings: Any
    ) -> Any:
        """Run a command and leave the process with its exit code; `standalone_mode=False` raises errors instead."""
        if not settings.pop("standalone_mode", True):
            return super().main(args, prog_name or "interp", standalone_mode=False, **settings)
        _print_anything()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _exit_code(lambda: super(Shell, self).main(args, "interp", standalone_mode=False, **settings))
        sys.exit(code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-"):
            try:
                choose("command", args[0], self.commands)
            except LabError as problem:
                raise click.UsageError(str(problem), ctx) from problem
        return super().resolve_command(ctx, args)


def _exit_code(run: Callable[[], Any]) -> int:
    """Run, and tell on stderr what went wrong, if anything."""
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except click.exceptions.NoArgsIsHelpError as nothing:
        click.echo(nothing.format_message(), err=True)
        return MISUSED
    except click.UsageError as problem:
        command = problem.ctx.command_path if problem.ctx is not None else "interp"
        complain(f"{problem.format_message()}  try: {command} --help")
        return MISUSED
    except (UnknownModelError, UnknownHookError) as problem:
        complain(str(problem))
        return MISUSED
    except LabError as problem:
        complain(str(problem))
        return FAILED
    except click.ClickException as problem:
        complain(problem.format_message())
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted; nothing was left half-written.")
        return FAILED
    except (MemoryError, RuntimeError) as problem:
        if not _out_of_memory(problem):
            raise
        complain(
            "there is not enough memory. Try fewer prompts (-n), shorter ones, a smaller --budget where there is one, "
            f"or --dtype bfloat16.  ({(str(problem) or 'MemoryError').splitlines()[0][:200]})"
        )
        return FAILED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _out_of_memory(problem: Exception) -> bool:
    """Whether memory could not be had, in PyTorch's words on a CPU or by its error on a GPU."""
    kinds = {kind.__name__ for kind in type(problem).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(problem)


def complain(message: str) -> None:
    """Print an error."""
    click.echo(f"error: {message}", err=True)


def note(message: str) -> None:
    """Print what is not a result: a file that was written, a hint."""
    click.echo(message, err=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning | RuntimeWarning):
        click.echo(f"warning: {message}", err=True)


def _print_anything() -> None:
    """Show characters that the terminal's encoding lacks as escapes instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
