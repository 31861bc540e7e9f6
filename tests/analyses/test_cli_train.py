"""`interp train` on what a user brings: a text, answers, preferences; and what it says to what cannot be learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analyses.command_line.shell import FAILED, MISUSED
from models import GPT, load
from models.checkpoints import read_log
from models.fine_tuning import turns
from models.zoo import gifts, recipes
from models.zoo.plain_text import PlainText
from tests.analyses.test_cli_errors import check
from tests.analyses.tiny_models import interp, save_bare

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 40
FEW = ["--set", "training.steps=2", "--set", "training.eval_every=1", "--set", "training.save_every=1"]
SMALL = [
    *FEW,
    "--set",
    "model.n_layers=1",
    "--set",
    "model.d_model=8",
    "--set",
    "data.batch_size=2",
    "--set",
    "data.n_ctx=16",
]
ANSWERS = [{"prompt": f"Who has the {thing}?", "answer": "Mary."} for thing in ("ring", "book", "hat", "map")]
LIKED = [{"prompt": line["prompt"], "chosen": "Mary.", "rejected": "Mary has it."} for line in ANSWERS]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "fox.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def json_lines(path: Path, lines: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def trained(out: Path, *arguments: object) -> list[dict[str, float]]:
    """Run `interp train`, and give the log."""
    result = interp("train", *arguments, "--out", out, *FEW)
    assert result.exit_code == 0, result.stderr
    return read_log(out)


@pytest.mark.parametrize(("tokenizer", "size"), [("characters", 30), ("bpe", 258)])
def test_a_text_becomes_a_model_that_speaks_its_tokens(text: Path, tmp_path: Path, tokenizer: str, size: int) -> None:
    out = tmp_path / "made"
    result = interp("train", "--text", text, "--tokenizer", tokenizer, "--out", out, *SMALL)
    assert result.exit_code == 0, result.stderr
    model = load(out)
    assert model.cfg.model_name == "made"
    assert len(model.tokenizer) >= size
    assert model.to_string(model.to_tokens("The lazy fox")[0]) == "The lazy fox"
    measured = [record["held_out_loss"] for record in read_log(out) if "held_out_loss" in record]
    assert len(measured) == 3
    assert recipes.find(out).data["file"] == str(text)


def test_a_directory_brings_its_tokenizer(text: Path, town: Path, tmp_path: Path) -> None:
    result = interp("train", "--text", text, "--tokenizer", town, "--out", tmp_path / "made", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert len(load(tmp_path / "made").tokenizer) == len(load(town).tokenizer)


def test_a_trained_model_goes_on_with_a_text(text: Path, town: Path, tmp_path: Path) -> None:
    log = trained(tmp_path / "made", "--text", text, "--model", town)
    made, before = load(tmp_path / "made"), load(town)
    assert (made.cfg.n_ctx, made.cfg.model_name) == (before.cfg.n_ctx, "made")
    assert "held_out_loss" in log[0]
    assert not (made.W_E == before.W_E).all()


def test_answers_and_preferences_are_learned_one_after_the_other(town: Path, tmp_path: Path) -> None:
    answers, liked = json_lines(tmp_path / "a.jsonl", ANSWERS), json_lines(tmp_path / "p.jsonl", LIKED)
    log = trained(tmp_path / "answers", "--instructions", answers, "--model", town)
    assert {"held_out_loss", "exact"} <= set(log[0])
    log = trained(tmp_path / "liked", "--preferences", liked, "--model", tmp_path / "answers")
    assert {"held_out_loss", "margin", "accuracy", "chosen", "kl"} <= set(log[0])
    assert log[0]["margin"] == 0
    assert log[-1]["margin"] != 0
    assert load(tmp_path / "liked").cfg.model_name == "liked"


def test_the_same_command_with_another_file_of_that_name_is_another_run(town: Path, tmp_path: Path) -> None:
    answers = json_lines(tmp_path / "a.jsonl", ANSWERS)
    trained(tmp_path / "made", "--instructions", answers, "--model", town)
    json_lines(answers, ANSWERS[1:])
    command = ["train", "--instructions", str(answers), "--model", str(town), "--out", str(tmp_path / "made"), *FEW]
    check(command, FAILED, "holds another run: data.sha256 was")


def test_the_labs_own_gifts_need_no_file() -> None:
    """They fit into the town's window, and what is measured is not learned."""
    model = load("town")
    lesson = recipes.for_file("instructions", "gifts", "g", "town").further_lesson(model)
    assert turns(model, gifts.examples(1, held_out=True))[0] in lesson.measure.turns
    learned = {turn.prompt for turn in lesson.batches.turns}
    assert learned.isdisjoint(turn.prompt for turn in lesson.measure.turns)


MISUSES = {
    "nothing": ([], "nothing to learn; expected a recipe, --text, --instructions or --preferences"),
    "two files": (["--text", "a.txt", "--instructions", "b.jsonl"], "--text, --instructions; expected"),
    "recipe and file": (["induction-2l", "--text", "a.txt"], "a recipe, --text; expected"),
    "recipe and model": (["induction-2l", "--model", "town"], "no --model and no --tokenizer beside it"),
    "no model": (["--instructions", "a.jsonl"], "--instructions needs a trained model to go on from"),
    "no model to prefer": (["--preferences", "a.jsonl"], "--preferences needs a trained model"),
    "tokenizer of a trained model": (
        ["--text", "a.txt", "--model", "town", "--tokenizer", "bpe"], "a trained model keeps its own",
    ),
    "no such model": (["--text", "{folder}/a.txt", "--model", "./twon"], "no directory './twon'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSES)
def test_a_wrong_command_line_trains_nothing(case: str, tmp_path: Path) -> None:
    arguments, message = MISUSES[case]
    (tmp_path / "a.txt").write_text(TEXT)
    command = [part.format(folder=tmp_path) for part in arguments]
    check(["train", *command, "--out", str(tmp_path / "made")], MISUSED, message)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "a.txt' is empty"),
        (b"caf\xe9 au lait", [], "is not UTF-8: byte 0xe9 at offset 3 (line 1)"),
        (b"too short", [], "expected at least 129"),
        (TEXT.encode()[:400], [], "the held-out end of"),
        (TEXT.encode(), ["--tokenizer", "bpee"], "no tokenizer 'bpee'.  closest: 'bpe'"),
        (TEXT.encode(), ["--tokenizer", "bpe", "--set", "data.vocab_size=100"], "vocab_size=100"),
        (TEXT.encode(), ["--set", "data.held_out=1.5"], "held_out=1.5"),
        (TEXT.encode(), ["--set", "data.n_ctxt=3"], "closest: 'n_ctx'"),
        (TEXT.encode(), ["--set", "model.n_ctx=64"], "128 positions, but the context window is 64"),
        (None, [], "cannot read the text"),
    ],
)
def test_a_text_that_cannot_be_learned_is_refused_before_any_work(
    tmp_path: Path, content: bytes | None, options: list[str], message: str
) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    check(["train", "--text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "made"), *options], FAILED, message)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "b"}, "line 2: chosen and rejected are both 'b'"),
        ("preferences", {"prompt": "a", "answer": "b"}, "line 2: no 'chosen'"),
        ("instructions", {"prompt": "a", "answer": ""}, "line 2: the answer is empty"),
        ("instructions", {"prompt": "a", "answer": "b" * 99}, "but the context window is 32"),
    ],
)
def test_examples_that_cannot_be_learned_are_refused_before_any_work(
    kind: str, line: dict[str, str], message: str, town: Path, tmp_path: Path
) -> None:
    first = ANSWERS[0] if kind == "instructions" else LIKED[0]
    path = json_lines(tmp_path / "a.jsonl", [first, line])
    check(["train", f"--{kind}", str(path), "--model", str(town), "--out", str(tmp_path / "made")], FAILED, message)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["text", "instructions"])
def test_a_model_without_text_cannot_go_on_with_it(kind: str, text: Path, tmp_path: Path) -> None:
    save_bare(tmp_path / "bare")
    path = text if kind == "text" else json_lines(tmp_path / "a.jsonl", ANSWERS)
    command = ["train", f"--{kind}", str(path), "--model", str(tmp_path / "bare"), "--out", str(tmp_path / "made")]
    check(command, FAILED, "has no tokenizer")


@pytest.mark.parametrize("source", [["--instructions", "gifts"], ["--preferences", "gifts"], ["--text", "{text}"]])
def test_an_encoder_cannot_learn_to_answer(source: list[str], text: Path, town: Path, tmp_path: Path) -> None:
    """Its name is the one under which it was saved, not that of the model to be."""
    encoder = GPT(replace(load(town).cfg, attention_dir="bidirectional", model_name="both-ways"), load(town).tokenizer)
    encoder.save(tmp_path / "encoder")
    command = [part.format(text=text) for part in source]
    command += ["--model", str(tmp_path / "encoder"), "--out", str(tmp_path / "made")]
    check(["train", *command], FAILED, "the model 'both-ways' does not write from left to right")
    assert not (tmp_path / "made").exists()


def test_a_recipe_that_mixes_fresh_and_trained_is_refused(tmp_path: Path) -> None:
    for changes, message in (
        (["data.kind=instructions"], "needs a trained model to go on from"),
        (["model.start=town"], "brings its own sizes; expected no n_layers"),
    ):
        options = [part for change in changes for part in ("--set", change)]
        check(["train", "induction-2l", "--out", str(tmp_path / "made"), *options], FAILED, message)
    recipe = recipes.find("induction-2l")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.text.partition("[model]")[0] + '[model]\nstart = "town"\n[training]\nsteps = 1\n')
    check(["train", str(path), "--out", str(tmp_path / "made")], FAILED, "'repeats' makes a fresh model")


def test_the_end_of_a_text_is_never_trained_on(text: Path) -> None:
    """With a text that counts, the windows of training and the measured ones have no character in common."""
    text.write_text("".join(chr(0x4E00 + i) for i in range(1000)), encoding="utf-8")
    lesson = PlainText(str(text), n_ctx=16, held_out=0.3).lesson()
    learned = {int(token) for step in range(50) for token in lesson.batches.batch(step).targets.unique()}
    assert learned.isdisjoint(lesson.measure.windows.flatten().tolist())
    assert lesson.measure.windows.min() == 700
