"""One run's checkpoints, measured alike: induction-2l goes through its phase change before our eyes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from analyses import head_scores, layer_similarity, training_course
from analyses.training_checkpoints import MEASURES, TrainingCourse
from interp import LabError, tasks
from models import GPT, TransformerConfig, load
from tests.strategies import random_model

STEPS = ("step-0", "step-150", "step-300", "step-500", "step-1200")
SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 16}


@pytest.fixture(scope="module")
def course() -> TrainingCourse:
    earlier = ((step, load("induction-2l", revision=step)) for step in STEPS)
    return training_course(load("induction-2l"), earlier)


def measure(course: TrainingCourse, name: str) -> np.ndarray:
    return course.values[:, MEASURES.index(name)]


def test_the_phase_change_is_seen(course: TrainingCourse) -> None:
    """From guessing among 64 letters (4.16 nats) to knowing the repeat, as its heads appear; see the model's card."""
    repeat, induction, previous = (measure(course, name) for name in ("repeat loss", "induction", "previous"))
    assert repeat[0] > 4.1
    assert repeat[-1] < 0.01
    assert np.all(np.diff(repeat) < 0)
    assert induction[0] < 0.1 < 0.5 < induction[2]
    assert previous[2] < 0.4
    assert min(induction[-1], previous[-1]) > 0.8


def test_layers_come_closer_to_the_final_ones(course: TrainingCourse) -> None:
    np.testing.assert_allclose(course.cka[-1], 1, atol=1e-9)
    assert (course.cka[0] < 0.5).all()
    assert (course.cka[-2] > 0.9).all()


def test_each_row_is_what_the_single_analyses_give(course: TrainingCourse) -> None:
    final, model = load("induction-2l"), load("induction-2l", revision="step-300")
    rows = tasks.repeated_tokens(final, 16, 32)
    assert rows.shape[1] == 65  # the start token, and 32 letters twice
    with torch.no_grad():
        losses = model(rows, return_type="loss", loss_per_token=True)
    place = STEPS.index("step-300")
    # the model computes in float32
    assert measure(course, "loss")[place] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert measure(course, "repeat loss")[place] == pytest.approx(float(losses[:, 33:].mean()), rel=1e-5)
    scores = head_scores(model, rows)
    np.testing.assert_allclose(course.scores[place], scores.values)
    assert measure(course, "induction")[place] == pytest.approx(scores.induction.max())
    np.testing.assert_allclose(course.cka[place], np.diagonal(layer_similarity(model, final, rows).values))


def test_it_shows_a_row_for_each_checkpoint_and_the_weights_of_all(course: TrainingCourse) -> None:
    assert [row[0] for row in course.rows()] == [*STEPS, "final"]
    assert all(len(row) == len(course.columns()) for row in course.rows())
    assert list(course.provenance.settings["checkpoints"]) == list(STEPS)
    assert all(step in course.to_html() for step in STEPS)
    assert len(course.plot().data) == 2 + 3 + 3  # losses, roles, streams
    table = course.to_dataframe()
    assert len(table) == len(course.values) * len(MEASURES)


def test_the_loss_is_that_of_the_text_when_there_is_one() -> None:
    final, first = (random_model(TransformerConfig(**SIZES), seed) for seed in (1, 0))
    tokens = torch.tensor([[1, 2, 3, 9, 4, 7]])
    course = training_course(final, [("first", first)], tokens)
    for row, model in enumerate((first, final)):
        assert measure(course, "loss")[row] == pytest.approx(model(tokens, return_type="loss").item())


def test_one_checkpoint_is_held_at_a_time() -> None:
    """A generator is asked for the next checkpoint only when the one before is done with."""
    import weakref

    final, held = random_model(TransformerConfig(**SIZES)), []

    def earlier() -> Iterator[tuple[str, GPT]]:
        for seed in range(3):
            assert all(model() is None for model in held)
            model = random_model(TransformerConfig(**SIZES), seed)
            held.append(weakref.ref(model))
            yield str(seed), model
            del model

    assert len(training_course(final, earlier()).values) == 4


def test_what_is_no_run_is_refused() -> None:
    final = random_model(TransformerConfig(**SIZES))
    with pytest.raises(LabError, match="came without earlier checkpoints"):
        training_course(final, [])
    for change, reason in (({"n_layers": 3}, "n_layers 3 and 2"), ({"d_vocab": 12}, "vocabularies of 12 and 11")):
        with pytest.raises(LabError, match=f"'step-1' is no checkpoint of .*{reason}"):
            training_course(final, [("step-1", random_model(TransformerConfig(**SIZES | change)))])
