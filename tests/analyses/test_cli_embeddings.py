"""`interp embeddings`: the numbers of the analyses; what does not fit together is refused before the model loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analyses import analogies, embedding_pca, nearest_tokens, position_geometry
from analyses.command_line.shell import FAILED, MISUSED
from interp import Result as LabResult
from models import load
from tests.analyses.tiny_models import interp

RUNS = {
    "neighbours": (["--token", " Mary", "--token", " John"], lambda model: nearest_tokens(model, [" Mary", " John"])),
    "analogies": (
        ["--analogy", " Mary", " John", " store"],
        lambda model: analogies(model, [(" Mary", " John", " store")], 10),
    ),
    "positions": (["--positions"], position_geometry),
    "ids": (["--ids", "--token", "300", "--top", "3"], lambda model: nearest_tokens(model, [300], 3)),
}


@pytest.mark.parametrize(("arguments", "analysis"), RUNS.values(), ids=RUNS)
def test_it_prints_and_writes_the_numbers_of_the_analysis(
    arguments: list[str], analysis, town: Path, tmp_path: Path
) -> None:
    expected = analysis(load(town))
    path = tmp_path / "it.safetensors"
    done = interp("embeddings", "--model", town, *arguments, "--json", "--out", path)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["values"] == expected.to_dict()["values"]
    assert LabResult.load(path) == expected


def test_components_are_of_all_tokens_or_of_those_named(town: Path) -> None:
    named = ["--token", " Mary", "--token", " John", "--token", " store"]
    for some, tokens in ((named, [" Mary", " John", " store"]), ([], None)):
        done = interp("embeddings", "--model", town, "--components", *some, "--json")
        found = json.loads(done.stdout)
        assert found["explained"] == embedding_pca(load(town), tokens).explained.tolist()


def test_tables_name_the_tokens(town: Path) -> None:
    done = interp("embeddings", "--model", town, "--token", " Mary", "--top", 2)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["·Mary", "cosine"], ["·Mary", "dot"]]
    nearest = nearest_tokens(load(town), [" Mary"], 2).tokens[0, 0, 0]
    assert nearest.strip() in lines[2]
    for view in (["--positions"], ["--components"], ["--analogy", " Mary", " John", " store"]):
        assert interp("embeddings", "--model", town, *view).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        ([], MISUSED, "nothing to look at; expected one of --token, --analogy, --components, --positions"),
        (["--token", " Mary", "--positions"], MISUSED, "given --token, --positions"),
        (["--components", "--analogy", "a", "b", "c"], MISUSED, "given --analogy, --components"),
        (["--token", ""], MISUSED, "--token is empty"),
        (["--analogy", "a", "b"], MISUSED, "requires 3 arguments"),
        (["--ids", "--token", "a"], MISUSED, "token ids such as '3 1 2'"),
        (["--ids", "--token", "1 2"], MISUSED, "one token id at a time"),
        (["--token", " Maximilian"], FAILED, "tokens"),
        (["--ids", "--token", "99999"], FAILED, "token id 99999"),
        (["--model", "{bare}", "--token", "a"], FAILED, "has no tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: list[str], code: int, fragment: str, town: Path, bare: Path) -> None:
    given = ["--model", town, *(argument.format(bare=bare) for argument in arguments)]
    done = interp("embeddings", *given)
    assert (done.exit_code, done.stdout) == (code, "")
    assert fragment in done.stderr
    assert done.stderr.count("\n") == 1
