"""A sweep on a model that cannot resume: whole runs, stacked into batches, with each row's edits in its own part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.contract import HookedModel
from interp.edits import Window
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sweep.climb import hooks_of, parts_of
from interp.sweep.survey import Row, company_of


def batches(
    rows: Sequence[Row], n_prompts: int, size: int
) -> Iterator[tuple[Int[np.ndarray, "item"], Int[np.ndarray, "item"]]]:
    """All (row, prompt), `size` at a time, of rows that may share a batch."""
    company = np.array([company_of(number, row) for number, row in enumerate(rows)])
    for each in np.unique(company):
        row, prompt = np.meshgrid(np.nonzero(company == each)[0], np.arange(n_prompts), indexing="ij")
        for start in range(0, row.size, size):
            yield row.reshape(-1)[start : start + size], prompt.reshape(-1)[start : start + size]


def run_batch(
    model: HookedModel | Any,
    pairs: PromptPairs,
    rows: Sequence[Row],
    row: Int[np.ndarray, "item"],
    prompt: Int[np.ndarray, "item"],
    metric: AnyMetric,
) -> Float[Tensor, "item"]:
    """The metric of whole runs of some rows on some prompts."""
    index = torch.from_numpy(prompt).to(model.device)
    chosen = pairs.take(index)
    parts = parts_of(row, prompt, np.zeros_like(row))
    edits = [(part, edit) for part in parts for edit in rows[part.row]]
    hooks = hooks_of(edits, lambda part: Window(part.prompts))
    mask = chosen.mask if chosen.padded else None
    logits = model.run_with_hooks(chosen.clean, attention_mask=mask, fwd_hooks=hooks)
    return metric.take(index)(logits, chosen)
