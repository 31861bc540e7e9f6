"""The README's table of errors: `python -m tests.parity.measured`.

For each family random tiny checkpoints that transformers saved (`tests.parity.family_models`: windows and rotary
contexts shorter than the prompts, attention far from flat) run in transformers and here, fused and with the explicit
softmax. float64 and float32: the largest difference of logits and of the stream after every layer, relative to the
largest value; in float64 transformers' float32 parts are widened (`tests.parity.wide`). bfloat16 and
float16: the mean distance of the logits from float64's, ours divided by transformers'.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from tests.parity.family_models import MAKERS
from tests.parity.test_families import HALVES, SEEDS, half_errors, made, prompts, their_run
from tests.parity.test_huggingface import explicit, fused, loaded


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def worst(family: str, dtype: torch.dtype) -> float:
    """The worst error of a family in a dtype over `SEEDS`, both ways of attention and every layer."""
    found = []
    for seed in SEEDS:
        theirs, tokens = made(family, seed, dtype), prompts(seed)
        ours = loaded(theirs)
        logits, stream = their_run(theirs, tokens)
        for run in (fused, explicit):
            our_logits, our_stream = run(ours, tokens)
            found += [error(a, b) for a, b in zip([our_logits, *our_stream], [logits, *stream], strict=True)]
    return max(found)


@torch.no_grad()
def distance(family: str, dtype: torch.dtype) -> float:
    """Our mean distance from float64 in a dtype of 16 bits, divided by transformers'."""
    ours, theirs = zip(*(half_errors(family, seed, dtype) for seed in SEEDS), strict=True)
    return float(torch.cat(ours).mean() / torch.cat(theirs).mean())


def row(family: str) -> str:
    """A family's row of the table."""
    errors = " | ".join(f"{worst(family, dtype):.1e}" for dtype in (torch.float64, torch.float32))
    return f"| {family} | {errors} | {' | '.join(f'{distance(family, dtype):.3f}' for dtype in HALVES)} |"


def main() -> None:
    transformers_logging.disable_progress_bar()
    print("| family | float64 | float32 | bfloat16 | float16 |")
    print("|---|---|---|---|---|")
    for family in MAKERS:
        print(row(family), flush=True)


if __name__ == "__main__":
    main()
