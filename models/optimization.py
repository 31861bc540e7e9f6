"""How weights are updated: the settings of a run, its learning rates, its optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.errors import LabError, choose


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; steps count updates of the weights.

    lr: the highest learning rate, reached after `warmup_steps`; then "cosine" falls to `final_lr` * lr at the last
    step, "constant" stays. betas, weight_decay: AdamW's (arXiv:1711.05101). decay: what decays: the "matrices" of
    the linear maps, also the "embeddings", or "all", biases and norm gains too. clip_norm: longest gradient, None
    for any. accumulate: batches per update. precision: of the forward's matrix products; weights stay as they are.
    compile: run the model through torch.compile. deterministic: on a GPU, use only kernels that give the same bits
    each time (slower; on a CPU they always do). seed: of the global random state, for models that draw from it.
    log_every, eval_every, save_every: in steps; 0 for only at the end (of save_every: never). keep_steps: after
    which the weights are kept.

    Raises:
        LabError: a value out of range.
    """

    steps: int
    lr: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    final_lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    decay: Literal["matrices", "embeddings", "all"] = "matrices"
    clip_norm: float | None = 1.0
    accumulate: int = 1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 0
    keep_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        choose("schedule", self.schedule, ("cosine", "constant"))
        choose("decay", self.decay, ("matrices", "embeddings", "all"))
        choose("precision", self.precision, ("float32", "bfloat16", "float16"))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or not value >= least):
                raise LabError(f"{name}={value!r}; expected a number of at least {least}.")


_LEAST = {
    "steps": 0,
    "lr": 0,
    "warmup_steps": 0,
    "final_lr": 0,
    "weight_decay": 0,
    "clip_norm": 0,
    "accumulate": 1,
    "log_every": 0,
    "eval_every": 0,
    "save_every": 0,
}


def lr_at(config: TrainingConfig, step: int) -> float:
    """The learning rate of the update after `step` updates: linear warm-up, then cosine (arXiv:1608.03983) or none."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over two groups of the trainable parameters: those that decay, and the others."""
    decaying: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decaying if decays(name, parameter, config.decay) else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise LabError("the model has no trainable parameters; expected some with requires_grad.")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def decays(name: str, parameter: Tensor, decay: str) -> bool:
    """Whether weight decay pulls at a parameter; see `TrainingConfig.decay`."""
    if decay == "all":
        return True
    embedding = name.endswith(("W_E", "W_pos"))
    return parameter.ndim >= 2 and (decay == "embeddings" or not embedding)
