"""`interp compare`: two models, or one model's past, as text, as data and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import compare, training_course
from analyses.comparison import ComparisonResult
from interp import Result, tasks
from models import GPT, TransformerConfig, load
from tests.analyses.tiny_models import interp, tokenizer

PROMPTS = ("--prompt", "When Mary and John went to the store", "--prompt", "Mary gave a drink to John")


@pytest.fixture(scope="module")
def other(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The town with the values of a head changed."""
    model = load(town)
    with torch.no_grad():
        model.blocks[1].attn.W_V[2] *= 1.5
    return model.save(tmp_path_factory.mktemp("models") / "other")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two earlier checkpoints, one of which a sort by name would misplace."""
    sizes = TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=16, seed=3, model_name="run")
    folder = GPT(sizes).save(tmp_path_factory.mktemp("models") / "run")
    (folder / "checkpoints").mkdir()
    for step in (1000000, 50):
        saved = GPT(sizes).save(folder / "part")
        (saved / "model.safetensors").rename(folder / "checkpoints" / f"step_{step:06d}.safetensors")
    return folder


def document(*arguments: object) -> dict:
    result = interp(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_planted_error_is_named(town: Path, other: Path) -> None:
    shown = interp("compare", town, other).stdout
    assert "first differ at blocks.1.attn.hook_v" in shown
    assert "a is tiny-town, b is" in shown
    for words in ("KL(a || b)", "loss of a", "layer_a", "head of a", "after layer"):
        assert words in shown


def test_a_model_that_gives_no_numbers_is_shown_as_such(town: Path, tmp_path: Path) -> None:
    model = load(town)
    with torch.no_grad():
        model.embed.W_E.fill_(torch.nan)
    result = interp("compare", town, model.save(tmp_path / "broken"), *PROMPTS)
    assert result.exit_code == 0, result.stderr
    assert "first differ at hook_embed" in result.stdout
    assert "n/a" in result.stdout


def test_it_prints_the_numbers_of_compare(town: Path, other: Path) -> None:
    a, b = load(town), load(other)
    expected = compare(a, b, [PROMPTS[1], PROMPTS[3]])
    found = document("compare", town, other, *PROMPTS)
    # Printed in full precision, computed by the same code on the same machine.
    assert np.array_equal(found["relative"], expected.relative)
    assert expected.layers is not None
    assert np.array_equal(found["layers"]["values"], expected.layers.values)
    assert found["heads"]["labels"]["head_a"][:2] == ["L0H0", "L0H1"]
    assert found["predictions"]["kl"] == expected.kl.tolist()
    assert found["provenance"]["prompts"]["text"] == ["".join(a.to_str_tokens(text)) for text in PROMPTS[1::2]]


def test_a_tasks_prompts_are_the_text_by_default(town: Path, other: Path) -> None:
    found = document("compare", town, other, "-n", 3, "--seed", 5)
    pairs = tasks.ioi(load(town), n=3, seed=5)
    assert len(found["predictions"]["kl"]) == int(pairs.mask.sum())
    assert (found["provenance"]["seed"], found["provenance"]["settings"]["task"]) == (5, "ioi")


@pytest.mark.parametrize("suffix", ["html", "safetensors", "csv", "json"])
def test_it_is_written_as_every_kind_of_file(town: Path, other: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"found.{suffix}"
    result = interp("compare", town, other, *PROMPTS, "--out", path)
    assert result.exit_code == 0, result.stderr
    if suffix == "html":
        assert all(title in path.read_text() for title in ("Similarity of layers", "Heads of two models"))
    elif suffix == "safetensors":
        assert isinstance(Result.load(path), ComparisonResult)
    elif suffix == "csv":
        assert "hook,hook_label,relative,difference" in path.read_text()
    else:
        assert json.loads(path.read_text())["kind"] == "ComparisonResult"


def test_models_of_other_sizes_are_compared_in_what_they_share(town: Path, tmp_path: Path) -> None:
    cfg = TransformerConfig(n_layers=3, n_heads=2, d_model=8, d_vocab=len(tokenizer()), n_ctx=32, seed=1)
    deep = GPT(cfg, tokenizer()).save(tmp_path / "deep")
    shown = interp("compare", town, deep, *PROMPTS).stdout
    assert "not compared: hooks: the models have n_layers 2 and 3" in shown
    assert "first differ" not in shown
    assert list(document("compare", town, deep, *PROMPTS)["left_out"]) == ["hooks"]


def test_token_ids_are_taken_for_models_without_tokenizer(bare: Path) -> None:
    found = document("compare", bare, bare, "--ids", "--prompt", "3 1 2 7 5 9", "--prompt", "4 4")
    assert found["provenance"]["prompts"]["text"] == [[3, 1, 2, 7, 5, 9], [4, 4]]
    assert max(found["relative"]) == 0


def test_the_checkpoints_of_a_run_are_shown_in_their_order(run: Path) -> None:
    shown = interp("compare", run, "--checkpoints")
    assert shown.exit_code == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[1][:4] == ["checkpoint", "loss", "repeat", "loss"]
    assert [row[0] for row in rows[2:]] == ["step-50", "step-1000000", "final"]
    found = document("compare", run, "--checkpoints")
    steps = ("step-50", "step-1000000")
    expected = training_course(load(run), [(step, load(run, revision=step)) for step in steps])
    assert np.array_equal(found["values"], expected.values)


def test_the_loss_of_the_checkpoints_can_be_that_of_a_text(run: Path) -> None:
    found = document("compare", run, "--checkpoints", "--ids", "--prompt", "3 1 2 7 5 9")
    expected = load(run)(torch.tensor([[3, 1, 2, 7, 5, 9]]), return_type="loss").item()
    assert found["values"][-1][0] == pytest.approx(expected, rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{town}"], 2, "expected two models"),
        (["{town}", "{bare}", "--checkpoints"], 2, "expected no second model"),
        (["{town}", "--checkpoints", "--other-revision", "step-1"], 2, "expected no second model"),
        (["{town}", "--checkpoints"], 1, "without earlier checkpoints"),
        (["{town}", "{town}", "--prompt", ""], 2, "--prompt is empty"),
        (["{town}", "{town}", "--ids"], 2, "there is no --prompt"),
        (["{town}", "{town}", "--task", "ioi", "--prompt", "Mary"], 2, "either --task or --prompt"),
        (["{town}", "{bare}", "--prompt", "Mary"], 1, "vocabularies of"),
        (["{bare}", "{bare}", "--prompt", "Mary"], 1, "no tokenizer"),
        (["{bare}", "{bare}", "--ids", "--prompt", "3 99"], 1, "token ids from 0 to 10"),
        (["{town}", "nowhere/"], 2, "no directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told_in_one_line(
    town: Path, bare: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    given = [argument.format(town=town, bare=bare) for argument in arguments]
    result = interp("compare", *given, "--out", tmp_path / "found.csv")
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
