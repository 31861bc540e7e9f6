"""What a sweep costs: floating-point operations, memory, and the memory that there is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from interp.sites import axes_of

LAUNCH = {"cpu": 5e7, "cuda": 1e10, "mps": 2e9}
"""Floating-point operations that take as long as starting one layer's kernels does, by kind of device."""
POSITIONS = {"cpu": 2048, "cuda": 65536, "mps": 16384}
"""Positions in one climb, by kind of device: with more, a layer's activations leave the cache and gain nothing."""


@dataclass(frozen=True)
class Costs:
    """Of one model and one width of prompts. Operations count a multiplication and an addition as two.

    launch, positions: see LAUNCH, POSITIONS. block: operations of one layer at one position, attention apart. tail: of
    the keys and values alone, for a position that does not leave the last layer. attention: of one layer's scores and
    mixing, for one query and one key. known: what each of `survey.KNOWN` spares of a block. logit: of one logit.
    token, item: bytes that a position and a prompt need while a layer runs. base: bytes that the base run keeps for
    a prompt.
    """

    n_layers: int
    n_pos: int
    launch: float
    positions: int
    block: float
    tail: float
    attention: float
    logit: float
    known: tuple[float, ...]
    vocabulary: int
    token: int
    item: int
    base: int

    @classmethod
    def of(cls, model: Any, n_pos: int, kept_bytes: int = 0) -> Costs:
        """kept_bytes: what the base run keeps of a prompt for its edits."""
        cfg, size = model.cfg, model.dtype.itemsize
        head_width, kv_width = cfg.n_heads * cfg.d_head, (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
        d_mlp, matrices = (0, 0) if cfg.attn_only else (cfg.d_mlp, 3 if getattr(cfg, "gated_mlp", False) else 2)
        weights = cfg.d_model * (2 * head_width + 2 * kv_width + matrices * d_mlp)
        streams = 6 * cfg.d_model + 3 * (head_width + 2 * kv_width) + (matrices + 1) * d_mlp
        scores = 3 * 4 * cfg.n_heads * n_pos  # float32: scores, pattern, and the one being made from the other
        return cls(
            n_layers=cfg.n_layers,
            n_pos=n_pos,
            launch=LAUNCH.get(model.device.type, LAUNCH["cuda"]),
            positions=POSITIONS.get(model.device.type, POSITIONS["cuda"]),
            block=2.0 * weights,
            tail=2.0 * 2 * cfg.d_model * kv_width,
            attention=4.0 * head_width,
            logit=2.0 * cfg.d_model,
            known=(0.0, 2.0 * cfg.d_model * (head_width + 2 * kv_width), 4.0 * cfg.d_model * (head_width + kv_width)),
            vocabulary=model.W_U.shape[1],
            token=size * streams + scores,
            item=size * 4 * n_pos * kv_width,
            base=size * n_pos * (cfg.n_layers * (cfg.d_model + 2 * kv_width) + cfg.d_model) + kept_bytes,
        )

    def forward(self) -> float:
        """Operations of one prompt's forward with all its logits, which is what the naive loop runs for every row."""
        attention = self.attention * self.n_pos * (self.n_pos + 1) / 2
        return self.n_layers * (self.block * self.n_pos + attention) + self.n_pos * self.logit * self.vocabulary

    def layer(self, start: int) -> float:
        """Operations of one prompt in one layer, from a position on."""
        new = self.n_pos - start
        return self.block * new + self.attention * new * (start + self.n_pos + 1) / 2

    def last_layer(self, start: int, finish: int) -> float:
        """The same where only `finish` positions leave the layer."""
        new = self.n_pos - start
        return self.tail * new + (self.block - self.tail) * finish + self.attention * finish * self.n_pos


def activation_bytes(model: Any, name: str, n_pos: int) -> int:
    """Bytes of one prompt's activation at a hook point."""
    cfg = model.cfg
    sizes = {
        "pos": n_pos,
        "q_pos": n_pos,
        "k_pos": n_pos,
        "head": cfg.n_heads,
        "kv_head": cfg.n_key_value_heads or cfg.n_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp,
        "d_vocab": model.W_U.shape[1],
    }
    return model.dtype.itemsize * prod(sizes.get(axis, 1) for axis in axes_of(name) or ())


def free_memory(device: torch.device) -> int:
    """Bytes that are free now: of the device, or of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
