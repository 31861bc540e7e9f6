"""Many edited runs of the same prompts, batched.

A sweep has rows: each is a set of edits, made in a run of every prompt. `run` stacks (row, prompt) pairs into
batches, attaches each row's edits to its own part of the batch, and reads the metric. It works on any
`HookedModel`, through hooks alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.contract import HookedModel
from interp.edits import Edit
from interp.errors import LabError, UnknownHookError
from interp.markers import pure
from interp.metrics import AnyMetric, get
from interp.progress import track
from interp.prompts import PromptPairs

Row = Sequence[Edit]
MAX_LOGITS = 2**26  # numbers in one batch's logits: 256 MiB in float32


@dataclass(frozen=True)
class Part:
    """A contiguous stretch of a batch that runs one row: prompts `prompts` in batch rows `rows`."""

    row: int
    rows: slice
    prompts: range


def run(
    model: HookedModel | Any,
    pairs: PromptPairs,
    rows: Sequence[Row],
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Float[Tensor, "row prompt"]:
    """The metric of every row on every prompt.

    pairs: the runs are of `pairs.clean` (`pairs.swapped()` runs the corrupted prompts), and the metric is told
    `pairs`. rows: the edits of each row; an empty row is the unedited run. batch_size: prompts in one forward,
    by default as many as keep the logits below 256 MiB; results do not depend on it beyond float rounding.
    Costs rows x prompts forwards of one prompt.

    Raises:
        UnknownHookError: an edit at a hook point that the model does not have; before anything runs.
        LabError: no rows, a batch size below 1, a site outside its activation, or a metric that is not one
            number per prompt.
    """
    if not rows:
        raise LabError("a sweep needs at least one row; given none.")
    check_sites(model, rows)
    measure = get(metric)
    size = _batch_size(model, pairs, batch_size)
    values = torch.empty(len(rows) * len(pairs), dtype=torch.float64)
    batches = list(_batches(len(rows), len(pairs), size))
    done = 0
    with torch.inference_mode():
        for parts in track(batches, "sweep", len(batches), progress):
            scores = _run_batch(model, pairs, rows, parts, measure)
            values[done : done + len(scores)] = scores.double().cpu()
            done += len(scores)
    return rearrange(values, "(row prompt) -> row prompt", row=len(rows))


def check_sites(model: HookedModel | Any, rows: Sequence[Row]) -> None:
    """Raises:
    UnknownHookError: the first hook name that the model does not have.
    """
    names = dict.fromkeys(edit.site.hook_name for row in rows for edit in row)
    for name in names:
        if name not in model.hook_dict:
            raise UnknownHookError.near(name, model.hook_dict, model.cfg.model_name)


def _batch_size(model: HookedModel | Any, pairs: PromptPairs, given: int | None) -> int:
    if given is None:
        outputs = getattr(model.cfg, "d_vocab_out", None) or model.cfg.d_vocab
        return max(1, MAX_LOGITS // (pairs.clean.shape[1] * max(outputs, 4 * model.cfg.d_model)))
    if given < 1:
        raise LabError(f"batch_size={given}; expected at least 1.")
    return given


def _batches(n_rows: int, n_prompts: int, size: int) -> Iterator[list[Part]]:
    """(row, prompt) pairs in order, `size` at a time, as stretches of one row each."""
    for start in range(0, n_rows * n_prompts, size):
        stop = min(start + size, n_rows * n_prompts)
        parts, at = [], start
        while at < stop:
            row, prompt = divmod(at, n_prompts)
            count = min(n_prompts - prompt, stop - at)
            parts.append(Part(row, slice(at - start, at - start + count), range(prompt, prompt + count)))
            at += count
        yield parts


def _run_batch(
    model: HookedModel | Any, pairs: PromptPairs, rows: Sequence[Row], parts: list[Part], measure: AnyMetric
) -> Float[Tensor, "batch"]:
    index = torch.tensor([prompt for part in parts for prompt in part.prompts])
    chosen = pairs.take(index.to(pairs.clean.device)).to(model.device)
    hooks = _hooks(rows, parts, index.to(model.device))
    mask = chosen.mask if chosen.padded else None
    logits = model.run_with_hooks(chosen.clean, attention_mask=mask, fwd_hooks=hooks)
    return measure.take(index)(logits, chosen)


def _hooks(rows: Sequence[Row], parts: list[Part], prompts: Tensor) -> list[tuple[str, Callable[..., Any]]]:
    """One hook per hook point, which makes every row's edits there in that row's part of the batch."""
    by_name: dict[str, list[tuple[Edit, slice]]] = defaultdict(list)
    for part in parts:
        for edit in rows[part.row]:
            by_name[edit.site.hook_name].append((edit, part.rows))

    def hook_for(work: list[tuple[Edit, slice]]) -> Callable[..., Any]:
        @pure
        def hook(activation: Tensor, hook: Any = None) -> Tensor:
            edited = activation.clone()
            for edit, where in work:
                edit.write(edited, where, prompts[where])
            return edited

        return hook

    return [(name, hook_for(work)) for name, work in by_name.items()]
