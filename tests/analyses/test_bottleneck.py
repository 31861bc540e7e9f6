"""Accuracy by length: what is counted, what is refused, and what the runs that the notebook shows have found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from analyses.bottleneck import AccuracyByLength, accuracy_by_length
from interp.errors import LabError
from models import GPT, TransformerConfig
from models.zoo.bottleneck import ATTENTION, PLAIN, TRANSFORMER, train_all
from models.zoo.copies import Copies
from tests.models.test_rnn import ids, random_rnn
from tests.strategies import SEEDS

RESULT = Path(__file__).parents[1] / "benchmarks/results/bottleneck.safetensors"


class Writes(nn.Module):
    """An encoder-decoder that writes what it is told to, whatever it reads."""

    def __init__(self, written: Tensor) -> None:
        super().__init__()
        self.encoder, self.device, self.written = nn.Linear(2, 3), torch.device("cpu"), written

    def generate(self, input: Tensor, max_new_tokens: int) -> Tensor:
        return torch.cat([torch.zeros(len(input), 1, dtype=torch.long), self.written[:, :max_new_tokens]], 1)


@given(SEEDS, st.integers(1, 5))
def test_a_token_is_right_where_the_model_writes_it_and_wrong_where_it_has_stopped(seed: int, written: int) -> None:
    """Few symbols, so that guesses are often right."""
    target, guess = ids(seed, 4, 5) % 3, ids(seed + 1, 4, written) % 3
    found = accuracy_by_length({"guess": Writes(guess)}, [(ids(seed, 4, 6), target)])
    right = [[j < written and int(guess[i, j]) == int(target[i, j]) for j in range(5)] for i in range(4)]
    assert found.values[0, 0] == pytest.approx(np.mean(right))
    assert found.whole[0, 0] == pytest.approx(np.mean([all(row) for row in right]))
    assert found.parameters.tolist() == [2 * 3 + 3]
    assert found.labels["length"] == (6,)


def test_what_comes_through_leaves_the_guesses_out() -> None:
    """All right: every token came through. As many right as guessing gives: none did."""
    row, half = torch.tensor([[1, 2, 1, 2]]), torch.tensor([[1, 1, 1, 1]])
    found = accuracy_by_length({"all": Writes(row), "half": Writes(half)}, [(row, row)], chance=0.5)
    np.testing.assert_allclose(found.through, [[4.0], [0.0]], atol=1e-12)


def test_runs_on_other_data_are_refused(tmp_path: Path) -> None:
    train_all(Copies(max_length=2, symbols=4, batch_size=2), 1, 0, tmp_path, progress=False)
    with pytest.raises(LabError, match=r"another run: .*data\.symbols was 4, now 5"):
        train_all(Copies(max_length=2, symbols=5, batch_size=2), 1, 0, tmp_path, progress=False)


def test_the_result_survives_its_file_and_draws_a_line_for_each_model(tmp_path: Path) -> None:
    models = {name: random_rnn("GRU", name != "a", dtype=torch.float32) for name in ("a", "b<i>")}
    found = accuracy_by_length(models, [(ids(n, 3, n), ids(n, 3, n)) for n in (1, 3, 5)], chance=1 / 11)
    found.save(tmp_path / "found.safetensors")
    assert AccuracyByLength.load(tmp_path / "found.safetensors") == found
    assert found.to_dataframe().shape[0] == 6
    figure = found.plot()
    assert len(figure.data) == 2
    page = found.to_html()
    assert "b&lt;i&gt;" in page
    assert "b<i>" not in page
    with pytest.raises(LabError, match="no model 'c' here; expected one of a, b<i>"):
        found.of("c")


ROW = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("models", "tests", "message"),
    [
        ({}, [(ROW, ROW)], "given 0 models and 1 tests; expected at least one of each"),
        ({"a": random_rnn("GRU", False)}, [], "given 1 models and 0 tests"),
        ({"a": random_rnn("GRU", False)}, [(ROW, ROW), (ROW, ROW)], r"tests of lengths \[3, 3\]"),
        ({"a": random_rnn("GRU", False)}, [(ROW, ROW[:1])], r"with \[1, 2\] rows; expected each length once"),
        (
            {"g": GPT(TransformerConfig(n_layers=1, n_heads=1, d_model=4, d_vocab=11, n_ctx=8))},
            [(ROW, ROW)],
            "g: no encoder that could read a source; expected encoder-decoders",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(models: Any, tests: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        accuracy_by_length(models, tests)


def test_all_three_models_train_on_the_same_data_and_write(tmp_path: Path) -> None:
    data = Copies(max_length=3, symbols=4, batch_size=4)
    trained = train_all(data, steps=2, seed=0, folder=tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GRU", "GRU-with-attention", "transformer"]
    rows = data.rows(3, 8, seed=0)
    found = accuracy_by_length(trained, [(rows, data.copies_of(rows))], 1 / data.symbols)
    assert found.labels["model"] == (PLAIN, ATTENTION, TRANSFORMER)


def test_the_measured_bottleneck() -> None:
    """The runs that ship: one size, and only the model without attention loses long rows."""
    found = AccuracyByLength.load(RESULT)
    assert found.parameters.max() / found.parameters.min() < 1.05
    assert found.labels["length"][-1] == 32
    assert (found.values[:, 0] > 0.99).all()
    assert found.of(PLAIN)[-1] < 0.5 < 0.9 < min(found.of(ATTENTION)[-1], found.of(TRANSFORMER)[-1])
    assert (np.diff(found.of(PLAIN)) < 0.02).all()
