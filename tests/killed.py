"""A sweep in a process of its own, for tests that kill it. A server that imports this forks, so starts are quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from interp import Site, edits, metrics, sweep
from interp.sweep import saved
from models import GPT, TransformerConfig
from tests.pairs import random_pairs

torch.set_num_threads(1)


def sweep_to(path: Path, seed: int) -> None:
    """A sweep of a second or two: one row at a time, with a save every few of them."""
    saved.SAVE_EVERY = 0.01
    sizes = {"n_layers": 3, "n_heads": 4, "d_model": 32, "d_vocab": 11, "n_ctx": 16, "init_range": 0.3}
    model = GPT(TransformerConfig(**sizes, seed=seed))
    pairs = random_pairs(seed, (12, 7, 9), ("left", "right")[seed % 2])
    with torch.no_grad():
        logits, cache = model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter="*hook_z")
    metric = metrics.kl(logits, pairs) if seed % 3 == 0 else metrics.logit_diff
    sites = [Site("z", layer, head, pos) for layer in range(3) for head in range(4) for pos in range(12)]
    rows = [[edits.replace(site, cache), edits.scale(Site("q", site.layer), 0.5)] for site in sites]
    sweep.run(model, pairs, rows, metric, budget=220_000, out=path)


def finished(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The numbers in the file and which of them are done; an error if it cannot be read."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return tensors["values"], tensors["done"]
