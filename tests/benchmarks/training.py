"""Tokens trained per second, beside nanoGPT: `python -m tests.benchmarks.training --nanogpt DIR`.

DIR is a checkout of github.com/karpathy/nanoGPT. Its model and optimizer are imported from there as they are; around
them stands the loop of its train.py for one process: batch, forward, backward, clipping, AdamW, the learning rate,
and the loss read every `log_interval` steps. Ours is `models.training.train`, called as a user calls it.

Promised: within 5 % of nanoGPT's tokens per second. The sizes are those of its character-level Shakespeare: "cpu" as
its README runs it on a laptop, "gpu" as its config file has it (here without dropout, which our model does not have).
Our layer norms have biases, nanoGPT's at these settings do not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import torch
from torch import Tensor

from models import GPT, TransformerConfig
from models.batches import Windows
from models.training import TrainingConfig, train
from tests.benchmarks.harness import compare, options

VOCAB, CORPUS, LOG_EVERY = 65, 1_000_000, 10
SIZES = {
    "cpu": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12},
    "gpu": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64},
}
LR, WARMUP, BETAS, DECAY, CLIP = 1e-3, 100, (0.9, 0.99), 0.1, 1.0
RUN = 5000
"""Steps of the whole run, for the learning rate."""


def ours(size: dict[str, int], corpus: Tensor, steps: int, device: str, dtype: str) -> Callable[[], object]:
    """A call trains for `steps` more steps."""
    cfg = TransformerConfig(
        n_layers=size["n_layer"],
        n_heads=size["n_head"],
        d_model=size["n_embd"],
        d_vocab=VOCAB,
        n_ctx=size["block_size"],
        act_fn="gelu",
        attn_bias=False,
        mlp_bias=False,
        tie_embeddings=True,
        seed=0,
    )
    model = GPT(cfg, device=device)
    settings = TrainingConfig(
        steps=steps,
        lr=LR,
        schedule="cosine",
        betas=BETAS,
        weight_decay=DECAY,
        decay="embeddings",
        clip_norm=CLIP,
        precision=dtype,  # type: ignore[arg-type]
        log_every=LOG_EVERY,
    )
    batches = Windows(corpus, size["block_size"], size["batch_size"])
    return lambda: train(model, batches, settings, progress=False)


def theirs(
    nanogpt: ModuleType, size: dict[str, int], corpus: Tensor, steps: int, device: str, dtype: str
) -> Callable[[], object]:
    """The same for nanoGPT."""
    sizes = {name: value for name, value in size.items() if name != "batch_size"}
    kind = torch.device(device).type
    with contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        model = nanogpt.GPT(nanogpt.GPTConfig(**sizes, vocab_size=VOCAB, dropout=0.0, bias=False)).to(device)
        new_optimizer = lambda: model.configure_optimizers(DECAY, LR, BETAS, kind)  # noqa: E731
        new_optimizer()

    def work() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return nanogpt_steps(model, new_optimizer(), size, corpus, steps, kind, device, dtype)

    return work


def nanogpt_steps(
    model: Any, optimizer: Any, size: dict[str, int], corpus: Tensor, steps: int, kind: str, device: str, dtype: str
) -> float:
    """The loop of train.py; the last loss that it read."""
    autocast = contextlib.nullcontext() if dtype == "float32" else torch.autocast(kind, dtype=getattr(torch, dtype))
    scaler = torch.amp.GradScaler(kind, enabled=dtype == "float16")
    model.train()
    last = math.nan
    batch = nanogpt_batch(size, corpus, device)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / (WARMUP + 1))
        with autocast:
            _, loss = model(*batch)
        batch = nanogpt_batch(size, corpus, device)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0:
            last = loss.item()
    return last


def nanogpt_batch(size: dict[str, int], corpus: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Random windows and the token after each, as train.py draws them."""
    block = size["block_size"]
    starts = torch.randint(len(corpus) - block, (size["batch_size"],)).tolist()
    x = torch.stack([corpus[start : start + block] for start in starts]).long()
    y = torch.stack([corpus[start + 1 : start + 1 + block] for start in starts]).long()
    if device.startswith("cuda"):
        x, y = x.pin_memory(), y.pin_memory()
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def nanogpt_module(directory: Path) -> ModuleType:
    """Its model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", directory / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@click.command()
@click.option("--nanogpt", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--size", "name", default="cpu", type=click.Choice(list(SIZES)))
@click.option("--steps", default=50, help="Updates per round.")
@options
def main(nanogpt: Path, name: str, steps: int, device: str, dtype: str, rounds: int) -> None:
    size = SIZES[name]
    corpus = torch.randint(VOCAB, (CORPUS,), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    record = compare(
        "training",
        {
            "ours": ours(size, corpus, steps, device, dtype),
            "nanoGPT": theirs(nanogpt_module(nanogpt), size, corpus, steps, device, dtype),
        },
        f"{steps} steps of {size}",
        rounds,
        device=device,
        dtype=dtype,
        warmup=1,
    )
    tokens = steps * size["batch_size"] * size["block_size"]
    for label, row in record["sides"].items():
        click.echo(f"{label}: {tokens / row['median_s']:.0f} tokens per second")


if __name__ == "__main__":
    main()
