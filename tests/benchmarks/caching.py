"""`run_with_cache` of everything, beside the plain forward: `python -m tests.benchmarks.caching`.

Promised: at most 15 % over the forward, and no more bytes kept than the tensors' own. Without a filter the scores and
the pattern of every head are kept too, so the softmax is explicit. "the same, without scores and pattern" keeps the
fused attention and shows what this costs. What is kept lies in memory that no later step reuses: on a CPU the system
hands it over page by page, which for long prompts costs more than the arithmetic (MALLOC_TRIM_THRESHOLD_=4000000000
MALLOC_MMAP_THRESHOLD_=4000000000 in the environment leave that out, with glibc).
"""

from __future__ import annotations

from functools import partial

import click
import torch

from interp import ActivationCache
from tests.benchmarks.harness import compare, options
from tests.benchmarks.subjects import FAMILIES, pair, tokens

SHAPES = ((8, 16), (1, 128), (1, 512))
EXPLICIT = ("hook_attn_scores", "hook_pattern")


def bytes_kept(cache: ActivationCache) -> tuple[int, int]:
    """Bytes of the cached tensors by their shapes, and bytes of the memory that stays held because of them."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.values()}
    return sum(t.numel() * t.itemsize for t in cache.values()), sum(storages.values())


@click.command()
@options
@torch.inference_mode()
def main(device: str, dtype: str, rounds: int) -> None:
    for family in FAMILIES:
        model, _ = pair(family, device, dtype)
        fused = set(model.select_hooks(None)) - {n for n in model.hook_dict if n.endswith(EXPLICIT)}
        for batch, positions in SHAPES:
            ids = tokens(model, batch, positions)
            own, held = bytes_kept(model.run_with_cache(ids)[1])
            compare(
                "caching",
                {
                    "run_with_cache": partial(model.run_with_cache, ids),
                    "forward": partial(model, ids),
                    "without scores and pattern": partial(model.run_with_cache, ids, names_filter=fused.__contains__),
                },
                f"{family}, everything of {batch} x {positions} tokens",
                rounds,
                device=device,
                dtype=dtype,
                notes={"cache_bytes": own, "held_bytes": held},
            )
            click.echo(f"kept: {own / 2**20:.1f} MiB of tensors in {held / 2**20:.1f} MiB of memory\n")


if __name__ == "__main__":
    main()
