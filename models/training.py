"""Training: a plain loop over step-indexed batches, with checkpoints from which a run resumes to the same bits.

    train(model, batches, TrainingConfig(steps=2000, lr=1e-3), folder="runs/mine")

A run that was stopped, however it was stopped, goes on from its last checkpoint when the same call is made again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import LabError
from models.batches import UNCOUNTED, Batch, Batches, batch_of, sizes
from models.checkpoints import RunFolder
from models.optimization import TrainingConfig, lr_at, make_optimizer

__all__ = ["TrainingConfig", "train"]

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Loss = Callable[[Callable[..., Tensor], Batch], Float[Tensor, ""]]
Record = dict[str, Any]


def batch_loss(model: Callable[..., Tensor], batch: Batch) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the targets that count."""
    targets = batch.with_targets().targets
    assert targets is not None
    return cross_entropy(batch.logits(model), targets)


def cross_entropy(logits: Float[Tensor, "batch pos d_vocab"], targets: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean over the counted targets, in float32 at least; logits are read where they lie, not copied."""
    flat = rearrange(logits, "batch pos vocab -> (batch pos) vocab")
    wide = flat.float() if flat.itemsize < 4 else flat
    return F.cross_entropy(wide, rearrange(targets, "batch pos -> (batch pos)"), ignore_index=UNCOUNTED)


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    folder: str | os.PathLike[str] | None = None,
    evaluate: Evaluate | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: bool = True,
    loss: Loss = batch_loss,
) -> list[Record]:
    """Train `model` in place, on the device where it is, and return the log.

    A record has `step` (updates so far), `loss` (nats, of that step's last batch before its update), `lr`,
    `grad_norm` (before clipping), `seconds`; one of an evaluation has `step` and what `evaluate` measured.

    folder: where log and checkpoints go; the run resumes from what is there. evaluate: measures the model before
    the first step, every `eval_every` steps and at the end. identity: what else makes this run this run (the data's
    description), for a folder to refuse another. loss: what is minimised, a function of model and batch.

    Raises:
        LabError: before the start: empty data, ids out of range, a folder with another run; later: a loss that
            is not finite.
    """
    shape = sizes(model)
    batch_of(batches, 0, *shape)
    run = None if folder is None else RunFolder.open(folder, _identity(model, config, identity))
    device = next(model.parameters()).device
    torch.manual_seed(config.seed)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    step, log = _resume(run, model, optimizer, scaler, device)
    recorder = _Recorder(run, model, config, evaluate, log)
    if step == 0:
        recorder.evaluate_and_keep(0)
    forward = torch.compile(model) if config.compile else model

    with _training(model), _determinism(config), _bar(config.steps, step, progress) as show:
        while step < config.steps:
            lr = lr_at(config, step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            for part in range(config.accumulate):
                batch = batch_of(batches, step * config.accumulate + part, *shape).to(device)
                with _autocast(device, config):
                    value = loss(forward, batch)
                scaler.scale(value / config.accumulate).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            step += 1

            if _due(config.log_every, step, config.steps):
                show(step, recorder.measured(step, value, lr, norm))
            recorder.evaluate_and_keep(step)
            if run is not None and config.save_every and _due(config.save_every, step, config.steps):
                finite(value, step, lr)
                run.save(model, _state(optimizer, scaler, device), step, frozenset(config.keep_steps))
    return recorder.log


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The loss over some batches, each counted target weighing the same."""
    device = next(model.parameters()).device
    counts = [int((batch.with_targets().targets != UNCOUNTED).sum()) for batch in batches]  # type: ignore[union-attr]
    losses = [float(batch_loss(model, batch.to(device))) * n for batch, n in zip(batches, counts, strict=True)]
    return sum(losses) / sum(counts)


def finite(loss: Float[Tensor, ""], step: int, lr: float) -> float:
    """The loss as a number; asking for it waits for the device.

    Raises:
        LabError: it is infinite or not a number.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise LabError(
            f"the loss is {value} at step {step}; try a lower lr (now {lr:g}), a warm-up, clip_norm, or float32."
        )
    return value


class _Recorder:
    """Measures on the way: logs losses, evaluates, keeps weights."""

    def __init__(
        self,
        run: RunFolder | None,
        model: nn.Module,
        config: TrainingConfig,
        evaluate: Evaluate | None,
        log: list[Record],
    ) -> None:
        self.run, self.model, self.config, self.evaluate, self.log = run, model, config, evaluate, log
        self.before = log[-1].get("seconds", 0.0) if log else 0.0
        self.start = perf_counter()

    def measured(self, step: int, loss: Tensor, lr: float, norm: Tensor) -> float:
        """Log one step. Only here does the loop wait for the device."""
        value = finite(loss, step, lr)
        self._add({"step": step, "loss": value, "lr": lr, "grad_norm": norm.item(), "seconds": self._seconds()})
        return value

    def evaluate_and_keep(self, step: int) -> None:
        """What is due after `step` steps besides the loss."""
        at_start = step == 0 and self.config.eval_every > 0
        if self.evaluate is not None and (at_start or _due(self.config.eval_every, step, self.config.steps)):
            with _evaluating(self.model):
                self._add({"step": step, **self.evaluate(self.model), "seconds": self._seconds()})
        if self.run is not None and step in self.config.keep_steps:
            self.run.save_weights(self.model, step)

    def _add(self, record: Record) -> None:
        self.log.append(record)
        if self.run is not None:
            self.run.log(record)

    def _seconds(self) -> float:
        return round(self.before + perf_counter() - self.start, 3)


def _resume(
    run: RunFolder | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> tuple[int, list[Record]]:
    """The step at which to go on, and the log so far."""
    found = None if run is None else run.load(model, device)
    if run is None or found is None:
        return 0, [] if run is None else run.rewind_log(-1)
    step, state = found
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"])
    if device.type == "cuda" and "random_cuda" in state:
        torch.cuda.set_rng_state(state["random_cuda"], device)
    return step, run.rewind_log(step)


def _state(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, device: torch.device) -> dict[str, Any]:
    state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "random": torch.get_rng_state()}
    if device.type == "cuda":
        state["random_cuda"] = torch.cuda.get_rng_state(device)
    return state


def _identity(model: nn.Module, config: TrainingConfig, identity: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a run is, as plain values. How often it writes, and where it computes, do not make another run of it."""
    habits = ("log_every", "eval_every", "save_every", "keep_steps", "compile")
    optimisation = {name: value for name, value in asdict(config).items() if name not in habits}
    cfg: Any = getattr(model, "cfg", None)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    described = cfg.to_dict() if hasattr(cfg, "to_dict") else shapes
    return {"training": optimisation, "model": described, "data": dict(identity or {})}


def _due(every: int, step: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0 and step > 0)


def _autocast(device: torch.device, config: TrainingConfig) -> AbstractContextManager[Any]:
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, config.precision))


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _determinism(config: TrainingConfig) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _bar(steps: int, first: int, visible: bool) -> Iterator[Callable[[int, float], None]]:
    """A progress bar on stderr; what is yielded sets it to a step and a loss."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as progress:
        task = progress.add_task("training", total=steps, completed=first)
        yield lambda step, loss: progress.update(task, completed=step, description=f"loss {loss:.4f}")
