"""Recurrent encoder-decoders are trained, killed, taken up again, saved and loaded as every model of the lab is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import LabError
from models import load
from models.batches import UNCOUNTED, Batch, SourceBatch
from models.checkpoints import read_log
from models.rnn import RNNEncoderDecoder
from models.rnn_config import CELLS, RNNConfig
from models.training import TrainingConfig, batch_loss, train
from models.zoo.bottleneck import models_of_one_size, training_config
from models.zoo.copies import END, FIRST, START, Copies
from tests.models.test_rnn import ids, random_rnn
from tests.strategies import SEEDS

ROOT = Path(__file__).resolve().parents[2]


# -- the data ---------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(0, 10**6), st.booleans())
def test_a_batch_of_copies_is_a_function_of_seed_and_step(seed: int, step: int, reverse: bool) -> None:
    data = Copies(max_length=5, symbols=4, batch_size=3, reverse=reverse, seed=seed)
    batch, again = data.batch(step), data.batch(step)
    assert torch.equal(batch.source, again.source)
    assert 1 <= batch.source.shape[1] <= 5
    assert batch.targets is not None
    for source, read, target in zip(batch.source.tolist(), batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        written = source[::-1] if reverse else source
        assert read == [START, *written]
        assert target == [*written, END]
        assert all(FIRST <= symbol < data.d_vocab for symbol in source)


def test_every_length_comes_up_and_test_rows_are_of_their_own() -> None:
    data = Copies(max_length=6, symbols=16, batch_size=2)
    assert {data.batch(step).source.shape[1] for step in range(60)} == set(range(1, 7))
    trained = {tuple(row) for step in range(300) for row in data.batch(step).source.tolist() if len(row) == 6}
    assert trained.isdisjoint(map(tuple, data.rows(6, 200, seed=0).tolist()))
    assert torch.equal(data.rows(6, 8, 0), data.rows(6, 8, 0))
    assert not torch.equal(data.rows(6, 8, 0), data.rows(6, 8, 1))


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(LabError, match="symbols=0; expected at least 1"):
        Copies(symbols=0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (SourceBatch(torch.zeros(2, 3, dtype=torch.long), source=torch.full((2, 3), 18)), "run from 18 to 18"),
        (SourceBatch(torch.full((2, 3), 18), source=torch.zeros(2, 3, dtype=torch.long)), "run from 18 to 18"),
        (SourceBatch(torch.zeros(2, 3, dtype=torch.long), source=torch.zeros(2, 0, dtype=torch.long)), "at least one"),
    ],
)
def test_sources_and_targets_outside_the_vocabulary_are_refused_before_the_start(
    batch: SourceBatch, message: str
) -> None:
    class Always:
        def batch(self, step: int) -> Batch:
            return batch

    model = RNNEncoderDecoder(RNNConfig("GRU", 18, 4, 4))
    with pytest.raises(LabError, match=message):
        train(model, Always(), TrainingConfig(steps=1), progress=False)


# -- training ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_is_that_of_the_targets_that_count() -> None:
    model, source, tokens = random_rnn("GRU", True), ids(1, 3, 4), ids(2, 3, 5)
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    targets = torch.where(ids(3, 3, 5) > 3, ids(4, 3, 5), UNCOUNTED)
    loss = batch_loss(model, SourceBatch(tokens, targets, source=source, source_mask=real))
    log_probs = model(source, tokens, attention_mask=real).log_softmax(-1)
    counted = [log_probs[b, t, targets[b, t]] for b in range(3) for t in range(5) if targets[b, t] != UNCOUNTED]
    torch.testing.assert_close(loss, -torch.stack(counted).mean())


@pytest.mark.parametrize(("cell", "attention"), [("RNN", False), ("LSTM", True), ("GRU", True)])
def test_it_learns_to_copy_two_symbols(cell: str, attention: bool) -> None:
    """ln 6 = 1.8 nats a symbol before; of 3 symbols one is always the end, so guessing stays above 0.9."""
    data = Copies(max_length=2, symbols=4, batch_size=32)
    model = RNNEncoderDecoder(RNNConfig(cell, data.d_vocab, 16, 24, 16 if attention else None, seed=0))
    log = train(model, data, TrainingConfig(steps=120, lr=1.5e-2, warmup_steps=10, weight_decay=0.0), progress=False)
    assert log[-1]["loss"] < 0.1
    rows = data.rows(2, 32, seed=1)
    assert (model.generate(rows, 2)[:, 1:] == rows).float().mean() > 0.95


KILLED = """
import os, signal, sys
from models.rnn import RNNEncoderDecoder
from models.rnn_config import RNNConfig
from models.training import TrainingConfig, train
from models.zoo.copies import Copies

class Killing(Copies):
    last = None
    def batch(self, step):
        if step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step)

data = Killing(max_length=5, symbols=4, batch_size=4)
for folder, last in zip(sys.argv[1::2], sys.argv[2::2]):
    Killing.last = int(last)
    model = RNNEncoderDecoder(RNNConfig("LSTM", data.d_vocab, 6, 8, 5, seed=0))
    train(model, data, TrainingConfig(steps=20, lr=1e-2, save_every=4, log_every=1), folder, progress=False)
"""


def test_a_killed_training_resumes_to_the_same_loss_curve(tmp_path: Path) -> None:
    """SIGKILL at step 15, then the rest: every loss and every weight is that of a run that nobody killed."""
    (tmp_path / "run.py").write_text(KILLED)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    codes = []
    for arguments in ((whole, "99", killed, "15"), (killed, "99")):
        command = [sys.executable, str(tmp_path / "run.py"), *arguments]
        codes.append(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)
    assert codes == [-signal.SIGKILL, 0]
    curves = [[(r["step"], r["loss"], r["grad_norm"]) for r in read_log(folder)] for folder in (whole, killed)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 20
    last = "checkpoints/step_000020.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "killed" / last).read_bytes()


def test_the_three_models_of_the_bottleneck_have_one_size_and_one_training() -> None:
    """Within 5 % of each other."""
    found = models_of_one_size(Copies(), seed=0)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in found.values()]
    assert max(sizes) / min(sizes) < 1.05
    assert training_config(10, seed=3).seed == 3


# -- saving and loading -----------------------------------------------------------------------------------------------


@given(st.sampled_from(CELLS), st.booleans(), SEEDS)
@torch.no_grad()
def test_a_saved_model_is_loaded_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, cell: str, attention: bool, seed: int
) -> None:
    model, folder = random_rnn(cell, attention, seed), tmp_path_factory.mktemp("rnn") / "mine"
    same = load(model.save(folder))
    assert isinstance(same, RNNEncoderDecoder)
    assert same.cfg == model.cfg
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert torch.equal(same(ids(1, 2, 4), ids(2, 2, 3)), model(ids(1, 2, 4), ids(2, 2, 3)))


@torch.no_grad()
def test_it_is_loaded_in_another_dtype_when_asked(tmp_path: Path) -> None:
    model = random_rnn("LSTM", True)
    rounded: Tensor = load(model.save(tmp_path / "mine"), dtype="float32")(ids(1, 2, 4), ids(2, 2, 3))
    assert rounded.dtype == torch.float32
    # float32 keeps 24 bits of numbers of order one, over some ten steps.
    torch.testing.assert_close(rounded.double(), model(ids(1, 2, 4), ids(2, 2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "LSTM"}, "config.json contradicts the weights|does not fit its config.json"),
        ({"d_hidden": 7}, "config.json contradicts the weights"),
        ({"d_attn": None}, "not expected .*attention"),
        ({"d_hidden": "six"}, "d_hidden='six'; expected a positive integer"),
        ({"n_layers": 2}, "unknown config entry 'n_layers'"),
        ({"architecture": "rn"}, "unknown architecture 'rn'.*closest: 'rnn'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_config_that_contradicts_the_weights_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = random_rnn("GRU", True).save(tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LabError, match=message):
        load(folder)
