"""Training learns, resumes to the same bits, and refuses what cannot work before it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from interp.errors import LabError
from models import GPT, TransformerConfig
from models.batches import UNCOUNTED, Batch, Windows, step_generator
from models.checkpoints import read_log, read_weights
from models.optimization import decays, lr_at, make_optimizer
from models.training import TrainingConfig, batch_loss, mean_loss, train

SIZES = TransformerConfig(n_layers=1, n_heads=2, d_model=16, d_vocab=11, n_ctx=8, seed=0)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Counting:
    """Rows that count upwards modulo 11 from a random start."""

    seed: int = 0
    rows: int = 8

    def batch(self, step: int) -> Tensor:
        start = torch.randint(11, (self.rows, 1), generator=step_generator(self.seed, step))
        return (start + torch.arange(8)) % 11


@dataclass(frozen=True)
class Always:
    """The same batch at every step."""

    given: Batch

    def batch(self, step: int) -> Batch:
        return self.given


def weights(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: w.detach().numpy().tobytes() for name, w in model.named_parameters()}


def trained(config: TrainingConfig, folder: Path | None = None, batches: Any = None) -> GPT:
    model = GPT(SIZES)
    train(model, batches or Counting(), config, folder, progress=False)
    return model


def test_the_loss_falls_to_the_entropy_of_the_data() -> None:
    """Counting is certain from the second token on, so the loss goes to 0 from ln 11 = 2.4."""
    model = GPT(SIZES)
    log = train(model, Counting(), TrainingConfig(steps=80, lr=2e-2, warmup_steps=10, log_every=20), progress=False)
    assert mean_loss(GPT(SIZES), [Batch(Counting().batch(0))]) > 2.0
    assert log[-1]["loss"] < 0.1


def test_the_same_run_twice_gives_the_same_bits() -> None:
    config = TrainingConfig(steps=5, lr=1e-2)
    assert weights(trained(config)) == weights(trained(config))


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "float32"), (2, "float32"), (1, "bfloat16")])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, accumulate: int, precision: Any) -> None:
    """20 steps at once, or 10, a stop, and the rest in a new process's worth of objects."""

    class Stopped(Exception):
        pass

    class Stopping(Counting):
        def batch(self, step: int) -> Tensor:
            if step == 13 * accumulate:
                raise Stopped
            return super().batch(step)

    config = TrainingConfig(steps=20, lr=1e-2, warmup_steps=5, save_every=10, log_every=1, eval_every=5)
    config = replace(config, accumulate=accumulate, precision=precision)
    whole = trained(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(config, tmp_path / "halves", Stopping())
    assert [r["step"] for r in read_log(tmp_path / "halves")][-1] == 13
    halves = trained(config, tmp_path / "halves")
    assert weights(whole) == weights(halves)
    without_time = lambda folder: [{**r, "seconds": 0} for r in read_log(folder)]  # noqa: E731
    assert without_time(tmp_path / "whole") == without_time(tmp_path / "halves")


KILLED = """
import os, signal, sys, torch
from models import GPT, TransformerConfig
from models.training import TrainingConfig, train

class Counting:
    def __init__(self, last):
        self.last = last
    def batch(self, step):
        if step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return (torch.arange(8) + torch.arange(8)[:, None] * step) % 11

sizes = TransformerConfig(n_layers=1, n_heads=2, d_model=16, d_vocab=11, n_ctx=8, seed=0)
config = TrainingConfig(steps=20, lr=1e-2, save_every=4, log_every=1)
for folder, last in zip(sys.argv[1::2], sys.argv[2::2]):
    train(GPT(sizes), Counting(int(last)), config, folder, progress=False)
"""


def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at step 15, then the rest; the weights are those of a run that nobody killed."""
    (tmp_path / "run.py").write_text(KILLED)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    codes = []
    for arguments in ((whole, "99", killed, "15"), (killed, "99")):
        command = [sys.executable, str(tmp_path / "run.py"), *arguments]
        codes.append(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)
    assert codes == [-signal.SIGKILL, 0]
    last = "checkpoints/step_000020.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "killed" / last).read_bytes()
    assert [record["step"] for record in read_log(tmp_path / "killed")] == list(range(1, 21))
    assert not list(tmp_path.rglob("*.part"))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    config = TrainingConfig(steps=4, save_every=2)
    first = trained(config, tmp_path / "run")
    model = GPT(SIZES)
    train(model, Counting(), config, tmp_path / "run", progress=False)
    assert weights(model) == weights(first)


def test_only_the_newest_checkpoint_and_the_steps_to_keep_stay(tmp_path: Path) -> None:
    trained(TrainingConfig(steps=9, save_every=2, keep_steps=(0, 3, 4)), tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == [
        "step_000000.safetensors",
        "step_000003.safetensors",
        "step_000004.safetensors",
        "step_000009.resume.pt",
        "step_000009.safetensors",
    ]
    at_start = GPT(replace(SIZES, seed=1))
    read_weights(at_start, tmp_path / "run/checkpoints/step_000000.safetensors")
    assert weights(at_start) == weights(GPT(SIZES))


def test_a_log_line_that_was_cut_short_is_forgotten(tmp_path: Path) -> None:
    trained(TrainingConfig(steps=4, save_every=2, log_every=1), tmp_path / "run")
    with open(tmp_path / "run/log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    trained(TrainingConfig(steps=4, save_every=2, log_every=1), tmp_path / "run")
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    trained(TrainingConfig(steps=2, save_every=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(LabError, match=r"another run: training\.lr was 0\.001, now 0\.5"):
        trained(TrainingConfig(steps=2, save_every=1, lr=0.5), tmp_path / "run")
    with pytest.raises(LabError, match="another run: data"):
        train(GPT(SIZES), Counting(), TrainingConfig(steps=2), tmp_path / "run", None, {"corpus": "b"}, progress=False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(LabError, match="not the folder of a training run"):
        trained(TrainingConfig(steps=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    trained(TrainingConfig(steps=2, save_every=1), tmp_path / "run")
    file = tmp_path / "run/checkpoints/step_000002.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LabError, match=r"cannot resume .* at step 2"):
        trained(TrainingConfig(steps=2, save_every=1), tmp_path / "run")


def test_a_pickle_in_place_of_a_resume_state_does_not_run(tmp_path: Path) -> None:
    trained(TrainingConfig(steps=2, save_every=1), tmp_path / "run")
    torch.save(Mischief(str(tmp_path / "made")), tmp_path / "run/checkpoints/step_000002.resume.pt")
    with pytest.raises(LabError, match="cannot resume"):
        trained(TrainingConfig(steps=2, save_every=1), tmp_path / "run")
    assert not (tmp_path / "made").exists()


class Mischief:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(torch.zeros(0, 8, dtype=torch.long)), "is the data empty"),
        (Batch(torch.full((2, 8), 11)), "token ids of step 0 run from 11 to 11; expected 0 to 10"),
        (Batch(torch.full((2, 8), -1)), "token ids of step 0 run from -1 to -1"),
        (Batch(torch.zeros(2, 9, dtype=torch.long)), "9 positions, but the context window is 8"),
        (Batch(torch.zeros(2, 8, dtype=torch.long), torch.full((2, 8), 11)), "targets of step 0 run from 11"),
        (Batch(torch.zeros(2, 8, dtype=torch.long), torch.full((2, 8), UNCOUNTED)), "no targets that count"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_before_the_start(tmp_path: Path, batch: Batch, message: str) -> None:
    with pytest.raises(LabError, match=message):
        trained(TrainingConfig(steps=1), tmp_path / "run", Always(batch))
    assert not (tmp_path / "run").exists()


def test_a_corpus_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(LabError, match="the corpus has 8 tokens, expected at least 9"):
        Windows(torch.arange(8), n_ctx=8, batch_size=2)


@pytest.mark.parametrize("entry", [{"steps": -1}, {"lr": float("nan")}, {"accumulate": 0}])
def test_a_setting_out_of_range_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(LabError, match=next(iter(entry))):
        TrainingConfig(**{"steps": 1} | entry)


@pytest.mark.usefixtures("unchecked")
def test_a_misspelt_setting_is_answered_with_the_right_one() -> None:
    settings: dict[str, Any] = {"steps": 1, "schedule": "cosin"}
    with pytest.raises(LabError, match="closest: 'cosine'"):
        TrainingConfig(**settings)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    config = TrainingConfig(steps=50, lr=1e30, clip_norm=None, schedule="constant", log_every=1)
    with pytest.raises(LabError, match=r"the loss is (nan|inf) at step"):
        trained(config)


def test_a_loss_that_is_not_finite_is_noticed_at_the_next_checkpoint_at_the_latest(tmp_path: Path) -> None:
    config = TrainingConfig(steps=50, lr=1e30, clip_norm=None, schedule="constant", log_every=0, save_every=1)
    with pytest.raises(LabError, match=r"the loss is (nan|inf) at step"):
        trained(config, tmp_path / "run")
    assert read_log(tmp_path / "run") == []


def test_accumulated_batches_are_one_large_batch() -> None:
    """The mean of two halves' gradients is the gradient of the whole, up to rounding and Adam's division."""

    class Halves(Counting):
        def batch(self, step: int) -> Tensor:
            whole = Counting(rows=8).batch(step // 2)
            return whole[:4] if step % 2 == 0 else whole[4:]

    config = TrainingConfig(steps=3, lr=1e-2)
    large, halves = trained(config), trained(replace(config, accumulate=2), batches=Halves())
    for a, b in zip(large.parameters(), halves.parameters(), strict=True):
        # Adam divides by the gradient's own size, so rounding in a gradient near 0 moves a weight by up to lr.
        assert (a - b).abs().mean() < 1e-4


def test_weight_decay_spares_what_it_should() -> None:
    model = GPT(SIZES)
    named = dict(model.named_parameters())
    decaying = {decay: {n for n, p in named.items() if decays(n, p, decay)} for decay in ("matrices", "embeddings")}
    assert decaying["embeddings"] - decaying["matrices"] == {"embed.W_E", "pos_embed.W_pos"}
    assert {"blocks.0.attn.q.weight", "blocks.0.mlp.out.weight", "unembed.weight"} <= decaying["matrices"]
    assert all(named[name].ndim == 2 for name in decaying["embeddings"])
    assert all(decays(n, p, "all") for n, p in named.items())
    groups = make_optimizer(model, TrainingConfig(steps=1, weight_decay=0.5)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(named)


def test_a_gradient_is_clipped_to_the_norm_asked_for() -> None:
    """Seen by the optimizer: no longer than clip_norm; in the log: its length before."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def before_clipping(parameter: torch.nn.Parameter) -> None:
        assert parameter.grad is not None
        before.append(parameter.grad.norm())

    model = GPT(SIZES)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(before_clipping)

    def see(optimizer: torch.optim.Optimizer, *_: object) -> None:
        after.extend(p.grad.norm() for group in optimizer.param_groups for p in group["params"])

    handle = register_optimizer_step_pre_hook(see)
    log = train(model, Counting(), TrainingConfig(steps=1, clip_norm=1e-3, log_every=1), progress=False)
    handle.remove()
    assert log[0]["grad_norm"] == pytest.approx(float(torch.stack(before).norm()), rel=1e-5)
    assert float(torch.stack(after).norm()) == pytest.approx(1e-3, rel=1e-2)  # clipping adds 1e-6 to the norm


@given(steps=st.integers(1, 500), warmup=st.integers(0, 100), final=st.floats(0, 1), lr=st.floats(1e-6, 1.0))
def test_the_learning_rate_rises_then_falls_within_its_bounds(steps: int, warmup: int, final: float, lr: float) -> None:
    config = TrainingConfig(steps=steps, lr=lr, warmup_steps=warmup, final_lr=final)
    rates = [lr_at(config, step) for step in range(steps)]
    top = min(warmup, steps)
    assert all(0 < rate <= lr * (1 + 1e-9) for rate in rates[: top or None]) or final == 0
    assert all(a <= b for a, b in pairwise(rates[:top]))
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(rates[top:]))
    assert lr_at(config, max(steps, warmup)) == pytest.approx(lr * final, rel=1e-6, abs=1e-12) or steps <= warmup
    assert lr_at(replace(config, schedule="constant"), max(steps, warmup)) == lr


@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**9))
def test_a_window_is_a_function_of_seed_and_step(seed: int, step: int) -> None:
    windows = Windows(torch.arange(50) % 11, n_ctx=8, batch_size=3, seed=seed)
    batch, again = windows.batch(step), windows.batch(step)
    assert torch.equal(batch.tokens, again.tokens)
    assert batch.targets is not None
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert torch.equal(batch.targets, (batch.tokens + 1) % 11) or 49 % 11 in batch.tokens


def test_the_loss_is_the_models_own_next_token_loss() -> None:
    model, tokens = GPT(SIZES), Counting().batch(0)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :3] = False
    # Both sum the same float32 terms, in another order.
    torch.testing.assert_close(batch_loss(model, Batch(tokens)), model(tokens, return_type="loss"))
    masked = batch_loss(model, Batch(tokens, mask=mask))
    torch.testing.assert_close(masked, model(tokens, attention_mask=mask, return_type="loss"))


def test_the_mean_loss_weighs_targets_not_batches() -> None:
    model, long, short = GPT(SIZES), Batch(Counting().batch(0)), Batch(Counting(rows=2).batch(1)[:, :3])
    together = mean_loss(model, [long, short])
    losses = [model(b.tokens, return_type="loss", loss_per_token=True).flatten() for b in (long, short)]
    assert together == pytest.approx(float(torch.cat(losses).detach().mean()), rel=1e-5)


def test_half_precision_changes_the_arithmetic_and_not_the_weights_dtype() -> None:
    config = TrainingConfig(steps=30, lr=1e-2)
    exact, rounded = trained(config), trained(replace(config, precision="bfloat16"))
    assert {w.dtype for w in rounded.parameters()} == {torch.float32}
    assert weights(exact) != weights(rounded)
    batch = Batch(Counting().batch(10**6))
    # bfloat16 has 8 bits, about 1 % per product; on a loss of about 1 nat the two runs stay within a tenth.
    assert abs(mean_loss(exact, [batch]) - mean_loss(rounded, [batch])) < 0.1


def test_evaluation_runs_without_gradients_and_leaves_training_mode(tmp_path: Path) -> None:
    seen = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled()))
        return {"score": 1.0}

    model = GPT(SIZES)
    log = train(model, Counting(), TrainingConfig(steps=4, eval_every=2), None, evaluate, progress=False)
    assert [r["step"] for r in log if "score" in r] == [0, 2, 4]
    assert set(seen) == {(False, False)}
    assert not model.training


COMPILED = """
import torch
from models import GPT, TransformerConfig
from models.training import TrainingConfig, train

class Counting:
    def batch(self, step):
        return (torch.arange(8) + torch.arange(8)[:, None] * step) % 11

def trained(compile):
    model = GPT(TransformerConfig(n_layers=1, n_heads=2, d_model=16, d_vocab=11, n_ctx=8, seed=0))
    train(model, Counting(), TrainingConfig(steps=5, compile=compile), progress=False)
    return model.parameters()

# Fused kernels round otherwise, and Adam's first steps have the size of lr (1e-3) whatever the gradient's.
print(max((a - b).abs().mean().item() for a, b in zip(trained(False), trained(True), strict=True)) < 1e-4)
"""


@pytest.mark.slow
def test_a_compiled_model_learns_the_same() -> None:
    """In a process of its own, where no annotation is checked: a checked function cannot be compiled."""
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_on_a_gpu_learns_and_resumes(tmp_path: Path, precision: Any) -> None:
    class Stopping(Counting):
        def batch(self, step: int) -> Tensor:
            if step == 70:
                raise KeyboardInterrupt
            return super().batch(step)

    config = TrainingConfig(steps=100, lr=1e-2, precision=precision, deterministic=True, save_every=50)
    whole, halves, resumed = (GPT(SIZES, device="cuda") for _ in range(3))
    log = train(whole, Counting(), config, tmp_path / "whole", progress=False)
    assert log[-1]["loss"] < 0.5
    with pytest.raises(KeyboardInterrupt):
        train(halves, Stopping(), config, tmp_path / "halves", progress=False)
    train(resumed, Counting(), config, tmp_path / "halves", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_progress_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    train(GPT(SIZES), Counting(), TrainingConfig(steps=2, log_every=1))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
