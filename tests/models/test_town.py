"""The town: a corpus that keeps its secrets, and a model that learned what it tells."""

from __future__ import annotations

import random
import re
from itertools import combinations, cycle, islice
from math import log

import pytest
import torch

from interp.errors import LabError
from interp.tasks import indirect_object, repeated_tokens, verb_number, world, year_order
from models import load
from models.batches import UNCOUNTED
from models.gpt import GPT
from models.loss import next_token_loss
from models.zoo.corpus import Town, documents
from models.zoo.recipes import ZOO, find
from models.zoo.scores import task_scores
from models.zoo.stories import STORIES

DOCUMENTS = list(islice(documents(seed=7), 20_000))


@pytest.fixture(scope="module")
def town() -> GPT:
    model = load("town")
    assert isinstance(model, GPT)
    return model


@pytest.fixture(scope="module")
def corpus(town: GPT) -> Town:
    assert town.tokenizer is not None
    return Town(town.tokenizer)


def test_names_kept_apart_never_meet_in_a_document() -> None:
    names = set(indirect_object.NAMES)
    met = 0
    for text in DOCUMENTS:
        for one, other in combinations(sorted(names & set(re.findall(r"\w+", text))), 2):
            met += 1
            assert not indirect_object.never_together(one, other), text
    assert met > 5000


def test_no_event_begins_in_a_year_held_out_for_it() -> None:
    begun = [m for text in DOCUMENTS for m in re.findall(r"The (\w+) (?:lasted from|began in) the year (..)(..)", text)]
    assert len(begun) > 3000
    assert not any(year_order.never_begins(event, int(century), int(year)) for event, century, year in begun)


def test_events_end_after_they_begin() -> None:
    spans = [re.findall(r"the year (\d{4})", text) for text in DOCUMENTS]
    assert all(first < last and first[:2] == last[:2] for first, last in (span for span in spans if span))


def test_no_noun_held_out_for_another_stands_between_it_and_its_verb() -> None:
    single = {plural: noun for noun, plural in verb_number.NOUNS.items()} | {noun: noun for noun in verb_number.NOUNS}
    pattern = rf"The (\w+) (?:{'|'.join(verb_number.BESIDE)}) the (\w+) "
    seen = [m for text in DOCUMENTS for m in re.findall(pattern, text)]
    assert len(seen) > 1000
    assert not any(verb_number.never_beside(single[noun], single[other]) for noun, other in seen)


def test_no_fact_is_told_in_words_held_out_for_its_country() -> None:
    for template, which in world.TEMPLATES:
        for country, answers in world.COUNTRIES.items():
            text = f"{template.format(country=country)} {answers[which]}."
            if world.never_asked(country, template):
                assert text not in DOCUMENTS


def test_every_kind_of_document_is_told_and_the_same_for_the_same_seed() -> None:
    assert list(islice(documents(3), 50)) == list(islice(documents(3), 50))
    for story in STORIES:
        assert story(random.Random(0)) == story(random.Random(0))
        assert story(random.Random(0)).endswith(".")


def test_a_batch_depends_on_the_step_alone(corpus: Town) -> None:
    first, again, other = corpus.batch(5), corpus.batch(5), corpus.batch(6)
    assert torch.equal(first.tokens, again.tokens)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


def test_targets_are_the_next_tokens_and_first_blocks_do_not_count(corpus: Town) -> None:
    batch = corpus.batch(0)
    assert batch.targets is not None
    counted = batch.targets != UNCOUNTED
    assert torch.equal(batch.targets[:, :-1][counted[:, :-1]], batch.tokens[:, 1:][counted[:, :-1]])
    assert not counted[:, -1].any()
    starts = counted.int().argmax(dim=1)
    rows = [(tokens, start) for tokens, start in zip(batch.tokens.tolist(), starts.tolist(), strict=True) if start]
    assert rows
    for tokens, start in rows:
        assert tokens[1:] == list(islice(cycle(tokens[1:start]), len(tokens) - 1))


def test_every_word_of_the_town_is_one_token(corpus: Town) -> None:
    tokenizer = corpus.tokenizer
    words = {word for text in DOCUMENTS[:5000] for word in re.findall(r" [A-Za-z]+", text)}
    assert [word for word in words if len(tokenizer.encode(word)) != 1] == []


def test_the_shipped_model_does_its_tasks_on_what_it_never_saw(town: GPT) -> None:
    # The card has the scores on 500 prompts each; here are 200, so the bounds leave room for two prompts more.
    scores = task_scores(town, n=200)
    assert scores["ioi"] >= 0.98
    assert scores["ioi_logit_diff"] >= 3
    assert scores["greater_than"] >= 0.8
    assert scores["facts"] >= 0.98
    assert scores["agreement"] >= 0.94
    assert scores["induction_top"] >= 0.9  # one guess in 20 for who only knows which tokens were there


@torch.no_grad()
@pytest.mark.parametrize("length", [8, 20, 30])
def test_the_shipped_model_predicts_the_repeat_of_a_random_block(town: GPT, length: int) -> None:
    rows = repeated_tokens(town, n=200, length=length)
    losses = next_token_loss(town(rows), rows, per_token=True)
    assert losses[:, :length].mean() > log(town.cfg.d_vocab)
    assert losses[:, length + 1 :].mean() < 0.5  # knowing the block but not its order costs ln 8 = 2.1 at least


def test_the_shipped_folder_is_complete_small_and_of_its_recipe(town: GPT) -> None:
    files = {path.name for path in (ZOO / "town").iterdir()}
    needed = "config.json model.safetensors tokenizer.json tokenizer_config.json README.md recipe.toml"
    assert files >= set(needed.split())
    assert (ZOO / "town" / "model.safetensors").stat().st_size < 8e6
    recipe = find("town")
    assert {name: getattr(town.cfg, name) for name in recipe.model} == dict(recipe.model)
    assert (town.cfg.n_layers >= 4, town.cfg.n_heads >= 8, town.cfg.model_name) == (True, True, "town")


def test_the_recipe_makes_the_shipped_tokenizer(town: GPT) -> None:
    assert town.tokenizer is not None
    assert find("town").lesson().tokenizer.core.to_str() == town.tokenizer.core.to_str()


def test_repeats_begin_often_and_with_few_tokens_and_end_with_all(corpus: Town) -> None:
    def rows_of_repeats(step: int) -> list[list[int]]:
        batches = [corpus.batch(step + i) for i in range(20)]
        return [
            tokens
            for batch in batches
            for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True)  # type: ignore[union-attr]
            if targets[0] == UNCOUNTED
        ]

    first, last = rows_of_repeats(0), rows_of_repeats(corpus.lead_in)
    assert len(first) > 2 * len(last) > 0
    assert len({token for row in first for token in row[1:]}) <= 64
    assert len({token for row in last for token in row[1:]}) > 1000


@pytest.mark.parametrize("options", [{"lead_in": 0}, {"repeats": 1.0}, {"repeats": -0.1}])
def test_a_lead_in_or_share_that_makes_no_sense_is_refused(town: GPT, options: dict[str, float]) -> None:
    assert town.tokenizer is not None
    with pytest.raises(LabError, match="expected at least one step and a share"):
        Town(town.tokenizer, **options)  # type: ignore[arg-type]
