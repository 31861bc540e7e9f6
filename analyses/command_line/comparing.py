"""`interp compare`: two models, or the checkpoints of one."""

from __future__ import annotations

from dataclasses import replace

import click

from analyses.command_line.choices import RESULT_FILES, ModelChoice, Output, misuse, with_task
from analyses.command_line.kinds import BACKEND
from analyses.command_line.options import compared_model_options, output_options, top_option
from analyses.command_line.text_options import SomeTexts, texts_options


@click.command()
@compared_model_options
@click.argument("other", metavar="[B]", required=False)
@click.option("--other-backend", type=BACKEND, help="Of B.")
@click.option("--other-revision", help="A version of B's weights.")
@click.option("--checkpoints", is_flag=True, help="Instead of B: the earlier checkpoints of A's training.")
@texts_options
@top_option
@output_options(*RESULT_FILES)
def compare(
    chosen: ModelChoice,
    other: str | None,
    other_backend: str | None,
    other_revision: str | None,
    checkpoints: bool,
    texts: SomeTexts,
    top: int,
    output: Output,
) -> None:
    """Two models on the same text: where their activations part, and whether they do the same in another way.

    A and B are zoo models, directories or hub ids; --backend and --revision are of A. With --checkpoints and no B, how
    A became what it is: measured on repeated random tokens, or on the texts that are given.
    """
    if checkpoints:
        if other is not None or other_backend is not None or other_revision is not None:
            raise misuse("--checkpoints compares A with its own past; expected no second model beside it.")
        _course(chosen, texts, output)
        return
    if other is None:
        raise misuse("expected two models, as in `interp compare A B`, or `interp compare A --checkpoints`.")
    from analyses import compare as compare_models
    from analyses.command_line.comparison_views import comparison_view
    from analyses.command_line.tables import deliver

    model = chosen.load()
    second = replace(chosen, model=other, backend=other_backend, revision=other_revision).load()
    found = with_task(compare_models(model, second, texts.read(model), seed=texts.seed), texts)
    deliver(output, found.to_dict(), comparison_view(found, top), found)


def _course(chosen: ModelChoice, texts: SomeTexts, output: Output) -> None:
    """The course of training of one model."""
    from analyses import training_course
    from analyses.command_line.comparison_views import course_view
    from analyses.command_line.tables import deliver

    final = chosen.load()
    earlier = ((step, replace(chosen, revision=step).load()) for step in chosen.steps())
    given = bool(texts.prompt or texts.task)
    found = training_course(final, earlier, texts.read(final) if given else None, texts.seed)
    found = with_task(found, texts) if given else found
    deliver(output, found.to_dict(), course_view(found), found)
