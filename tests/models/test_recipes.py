"""A recipe is checked before work begins, and replaying it makes a model that loads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from interp.errors import LabError
from models import load
from models.batches import Batch, batch_of
from models.training import train
from models.zoo import recipes
from models.zoo.modular import ModularAddition, numbers
from models.zoo.recipes import Recipe, find, replay
from models.zoo.repeats import Repeats, second_time

SMALL = ["data.batch_size=4", "model.n_heads=2", "model.d_model=8"]
TINY = ["training.steps=4", "training.save_every=2", "training.eval_every=2", "training.keep_steps=[0, 2]"]


@pytest.mark.parametrize(
    "name",
    # The town's tokenizer is learned from 80,000 documents.
    [pytest.param(name, marks=[pytest.mark.slow] if name == "town" else []) for name in recipes.names()],
)
def test_every_recipe_of_the_zoo_fits_together(name: str) -> None:
    """Data, sizes and settings agree: the first batch suits the model."""
    recipe = find(name)
    lesson = recipe.lesson()
    cfg = recipe.config(lesson)
    assert recipe.name == name == cfg.model_name
    batch_of(lesson.batches, 0, cfg.d_vocab, cfg.d_vocab_out, cfg.n_ctx)
    assert recipe.training_config().steps > 0


def test_a_replay_makes_a_model_that_loads(tmp_path: Path) -> None:
    recipe = find("induction-2l").changed([*SMALL, *TINY])
    model = replay(recipe, tmp_path / "made", progress=False)
    loaded = load(tmp_path / "made")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert loaded.to_str_tokens("AZ")[-2:] == ["A", "Z"]
    assert load(tmp_path / "made", revision="step-2").cfg == loaded.cfg
    card = (tmp_path / "made/README.md").read_text()
    for fact in ("# induction-2l", "| steps | 4 |", "| seed |", "hardware", "repeat loss"):
        assert fact in card
    kept = Recipe.read(tmp_path / "made/recipe.toml")
    assert kept.summary == recipe.summary
    assert "# changed: data.batch_size=4" in kept.text


@pytest.mark.parametrize("name", recipes.names())
def test_a_card_says_what_was_found_in_its_model_and_in_no_other(name: str) -> None:
    """What a recipe notes is in the shipped card; a changed recipe makes another model, of which nothing is known."""
    recipe, card = find(name), (recipes.ZOO / name / "README.md").read_text()
    assert recipe.notes.strip()
    assert recipe.summary.strip() in card
    assert recipe.notes.strip() in card
    assert find(name).changed(["seed=7"]).notes == ""


def test_a_replay_of_a_replay_gives_the_same_bits(tmp_path: Path) -> None:
    recipe = find("addition-1l").changed(["data.p=7", "data.batch_size=8", "model.d_vocab_out=7", *SMALL[1:], *TINY])
    first = replay(recipe, tmp_path / "one", progress=False)
    second = replay(recipe, tmp_path / "two", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_interrupted_replay_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = find("induction-2l").changed([*SMALL, *TINY])
    whole = replay(recipe, tmp_path / "whole", progress=False)
    usual = Repeats.batch

    def interrupted(self: Repeats, step: int) -> Batch:
        if step == 3:
            raise KeyboardInterrupt
        return usual(self, step)

    monkeypatch.setattr(Repeats, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay(recipe, tmp_path / "halves", progress=False)
    assert not (tmp_path / "halves/model.safetensors").exists()
    monkeypatch.setattr(Repeats, "batch", usual)
    halves = replay(recipe, tmp_path / "halves", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("induction-2", r"unknown recipe 'induction-2'.*closest: 'induction-2l'"),
        ("nothing.toml", r"cannot read the recipe 'nothing.toml'"),
    ],
)
def test_an_unknown_recipe_is_answered_with_those_that_exist(name: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        find(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ('name = "x"', "lacks data, model, training"),
        ('name = "x"\nsead = 1\n[data]\n[model]\n[training]', "closest: 'seed'"),
    ],
)
def test_a_recipe_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(LabError, match=message):
        find(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.kind=repeat", "closest: 'repeats'"),
        ("data.shortist=3", "closest: 'shortest'"),
        ("model.n_layer=3", "closest: 'n_layers'"),
        ("training.step=3", "closest: 'steps'"),
        ("training.lr=-1", "lr=-1; expected"),
        ("model.n_ctx=10", "65 positions, but the context window is 10"),
        ("layers=3", "cannot change 'layers=3'; expected"),
        ("model.n_layers", "cannot change 'model.n_layers'"),
        ("seed=one", "cannot change 'seed=one'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_change_is_refused_before_any_work(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(LabError, match=re.escape(message)):
        replay(find("induction-2l").changed([change]), tmp_path / "made", progress=False)
    assert not (tmp_path / "made").exists()


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    recipe = find("induction-2l").changed([*SMALL, *TINY])
    replay(recipe, tmp_path / "made", progress=False)
    with pytest.raises(LabError, match=r"holds another run: .*shortest"):
        replay(recipe.changed(["data.shortest=9"]), tmp_path / "made", progress=False)


def test_repeated_blocks_repeat() -> None:
    rows, lengths = Repeats(batch_size=16, seed=3).rows(5)
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        assert row[0] == 64
        assert row[1 + length :] == row[1:-length]
    second = second_time(rows.shape[1], lengths)
    assert second.sum(1).tolist() == (lengths - 1).tolist()


def test_the_pairs_of_addition_are_all_there_once_and_right() -> None:
    data = ModularAddition(p=11, fraction=0.3, seed=1)
    train_rows, test_rows = data.batch(0), data.test
    assert len(train_rows.tokens) == int(0.3 * 121)
    assert {tuple(r) for r in torch.cat([train_rows.tokens, test_rows.tokens]).tolist()} == {
        (a, b, 11) for a in range(11) for b in range(11)
    }
    assert test_rows.targets is not None
    assert torch.equal(test_rows.targets[:, -1], test_rows.tokens[:, :2].sum(1) % 11)
    assert (test_rows.targets[:, :-1] == -100).all()


def test_sums_are_written_as_people_write_them() -> None:
    tokenizer = numbers(113)
    assert tokenizer.encode("3 + 112 =") == tokenizer.encode("3+112=") == [3, 112, 113]
    with pytest.raises(LabError, match="cannot encode"):
        tokenizer.encode("3 + 113 =")


def test_the_log_is_json_lines(tmp_path: Path) -> None:
    recipe = find("induction-2l").changed([*SMALL, *TINY])
    lesson = recipe.lesson()
    model = recipes.replay(recipe, tmp_path / "made", progress=False)
    lines = (tmp_path / "made/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "repeat_loss" in line] == [0, 2, 4]
    assert train(model, lesson.batches, recipe.training_config(), tmp_path / "made", identity=recipe.identity())
