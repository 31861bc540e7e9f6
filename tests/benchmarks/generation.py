"""Greedy writing with a cache of keys and values, beside transformers': `python -m tests.benchmarks.generation`.

Promised: at least as fast as `transformers.generate`. Both write the same number of tokens from the same prompt, and
the same tokens, or this stops.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import torch
from torch import Tensor

from models import GPT
from tests.benchmarks.harness import compare, options
from tests.benchmarks.subjects import FAMILIES, pair, tokens

PROMPT, NEW = 32, 64


def ours(model: GPT, prompt: Tensor) -> Tensor:
    return model.generate(prompt, max_new_tokens=NEW, temperature=0, stop_tokens=())


def theirs(peer: Any, prompt: Tensor) -> Tensor:
    return peer.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        use_cache=True,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        pad_token_id=0,
    )


@click.command()
@options
def main(device: str, dtype: str, rounds: int) -> None:
    for family in FAMILIES:
        model, peer = pair(family, device, dtype)
        for batch in (1, 8):
            prompt = tokens(model, batch, PROMPT)
            if dtype == "float32" and not torch.equal(ours(model, prompt), theirs(peer, prompt)):
                raise click.ClickException(f"{family}: the two write different tokens from the same prompt.")
            compare(
                "generation",
                {
                    "ours": partial(ours, model, prompt),
                    "transformers.generate": partial(theirs, peer, prompt),
                },
                f"{family}, {batch} x {NEW} tokens after {PROMPT}",
                rounds,
                device=device,
                dtype=dtype,
            )


if __name__ == "__main__":
    main()
