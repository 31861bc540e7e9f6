"""`interp embeddings`: which tokens lie near which, what differences mean, and how positions are encoded."""

from __future__ import annotations

import click

from analyses.command_line.choices import (
    RESULT_FILES,
    ModelChoice,
    Output,
    check_not_empty,
    check_text,
    misuse,
    token_ids,
)
from analyses.command_line.options import model_options, output_options, top_option


@click.command()
@model_options
@click.option(
    "--token", "tokens", multiple=True, metavar="TOKEN", help="Its nearest tokens; may be given several times."
)
@click.option(
    "--analogy", "questions", multiple=True, nargs=3, metavar="A B C", help="What lies nearest to A - B + C; several."
)
@click.option("--components", is_flag=True, help="Principal components of all tokens, or of those of --token.")
@click.option("--positions", is_flag=True, help="How alike position vectors are, and of which waves they are made.")
@click.option("--ids", is_flag=True, help="Tokens are given as ids, such as '3'.")
@top_option
@output_options(*RESULT_FILES)
def embeddings(
    chosen: ModelChoice,
    tokens: tuple[str, ...],
    questions: tuple[tuple[str, str, str], ...],
    components: bool,
    positions: bool,
    ids: bool,
    top: int,
    output: Output,
) -> None:
    """The geometry of a model's token and position vectors.

    For example --token ' Mary', or --analogy ' Paris' ' France' ' Japan'.
    """
    from analyses import analogies, embedding_pca, nearest_tokens, position_geometry
    from analyses.command_line import embedding_views as views
    from analyses.command_line.tables import deliver

    asked = {"--token": bool(tokens) and not components, "--analogy": bool(questions)}
    asked |= {"--components": components, "--positions": positions}
    given = [name for name, wanted in asked.items() if wanted]
    if len(given) != 1 or (tokens and (questions or positions)):
        raise misuse(
            f"given {', '.join(given) or 'nothing to look at'}; expected one of {', '.join(asked)} "
            "(--token goes with --components too), such as --token ' Mary'."
        )
    check_not_empty("token", tokens)
    check_not_empty("analogy", tuple(token for question in questions for token in question))
    wanted = [_one(token, ids) for token in tokens]
    triples = [[_one(token, ids) for token in question] for question in questions]
    model = chosen.load()
    if (wanted or triples) and not ids:
        check_text(model)
    if positions:
        found = position_geometry(model)
        deliver(output, found.to_dict(), views.positions_view(found, top), found)
    elif components:
        spread = embedding_pca(model, wanted or None)
        deliver(output, spread.to_dict(["values", "explained"]), views.components_view(spread, top), spread)
    elif triples:
        answered = analogies(model, triples, top)
        deliver(output, answered.to_dict(), views.analogies_view(answered), answered)
    else:
        near = nearest_tokens(model, wanted, top)
        deliver(output, near.to_dict(), views.neighbours_view(near), near)


def _one(token: str, ids: bool) -> str | int:
    """A token as text, or its id.

    Raises:
        click.UsageError: not one id.
    """
    if not ids:
        return token
    found = token_ids(token)
    if len(found) != 1:
        raise misuse(f"--ids: expected one token id at a time, such as '3'; given {token!r}.")
    return found[0]
