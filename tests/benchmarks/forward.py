"""A forward without hooks, beside transformers' with its fused attention: `python -m tests.benchmarks.forward`.

Promised: at most 5 % over transformers.
"""

from __future__ import annotations

from functools import partial

import click
import torch

from tests.benchmarks.harness import compare, options
from tests.benchmarks.subjects import FAMILIES, pair, tokens

SHAPES = ((8, 16), (1, 512))


@click.command()
@options
@torch.inference_mode()
def main(device: str, dtype: str, rounds: int) -> None:
    for family in FAMILIES:
        ours, peer = pair(family, device, dtype)
        for batch, positions in SHAPES:
            ids = tokens(ours, batch, positions)
            compare(
                "forward",
                {
                    "ours": partial(ours, ids),
                    "transformers, sdpa": partial(peer, ids, use_cache=False),
                },
                f"{family}, logits of {batch} x {positions} tokens",
                rounds,
                device=device,
                dtype=dtype,
            )


if __name__ == "__main__":
    main()
