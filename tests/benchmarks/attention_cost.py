"""What length costs: `python -m tests.benchmarks.attention_cost --rounds 5`.

Attention over n positions, explicit (scores, softmax, values mixed) and in the fused kernel; and writing n tokens, with
a cache of keys and values and reading everything again for each. Time, and the most memory held at once, against n,
with the exponent of the power law that fits the three longest best. All sizes are timed in turns.

By count, the explicit pattern takes n² of operations and of memory; the fused kernel as many operations, but memory as
n. A written token attends to all before it: a text takes n² with the cache (n as long as the weights are most of the
work), and n³ (n²) without it.

Writes `results/attention_cost.svg` and appends to `results/attention_cost.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from json import dumps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from torch import Tensor

from models import GPT, TransformerConfig
from models.attention import causal_mask, dot_product_attention, fused_attention
from tests.benchmarks.growth import MIB, exponent
from tests.benchmarks.growth_picture import Curve, svg
from tests.benchmarks.harness import RESULTS, commit, describe_machine, interleaved, options, peak_bytes

LENGTHS, TEXTS = (128, 256, 512, 1024, 2048), (16, 32, 64, 128, 256)
QUICK = (8, 16, 32)
FITTED = 3
"""How many of the longest the exponents are fitted to: short ones cost what calls cost."""
HEADS, D_HEAD = 8, 64
Work = Callable[[], Tensor]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dot_product_attention(q, k, v, causal_mask(q.shape[1], k.shape[1], q.device))


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fused_attention(q, k, v, None, causal=True)


def attending(attend: Callable[[Tensor, Tensor, Tensor], Tensor], n: int, device: str, dtype: torch.dtype) -> Work:
    source = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(1, n, HEADS, D_HEAD, generator=source).to(device, dtype) for _ in range(3))
    return partial(attend, q, k, v)


def with_cache(model: GPT, n: int) -> Tensor:
    return model.generate(_start(model), n, temperature=0, stop_tokens=())


@torch.inference_mode()
def reading_again(model: GPT, n: int) -> Tensor:
    tokens = _start(model)
    for _ in range(n):
        resid = model(tokens, stop_at_layer=model.cfg.n_layers)
        tokens = torch.cat([tokens, model.logits_at(resid[:, -1:]).argmax(-1)], 1)
    return tokens


def _start(model: GPT) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.long, device=model.device)


def works(lengths: Sequence[int], texts: Sequence[int], device: str, dtype: torch.dtype) -> dict[str, dict[int, Work]]:
    """What is measured: name -> length -> the work."""
    cfg = TransformerConfig(4, n_heads=4, d_model=128, d_vocab=1000, n_ctx=max(texts) + 1, seed=0, dtype=dtype)
    model = GPT(cfg).to(device).eval()
    return {
        "explicit": {n: attending(explicit, n, device, dtype) for n in lengths},
        "fused": {n: attending(fused, n, device, dtype) for n in lengths},
        "writing, cached": {n: partial(with_cache, model, n) for n in texts},
        "writing, read again": {n: partial(reading_again, model, n) for n in texts},
    }


def check_alike(found: Mapping[str, Mapping[int, Work]]) -> None:
    """Raises:
    ClickException: two ways to do the same give something else.
    """
    for one, other, same in (
        ("explicit", "fused", lambda a, b: torch.allclose(a.float(), b.float(), atol=0.02 if a.itemsize < 4 else 1e-4)),
        ("writing, cached", "writing, read again", torch.equal),
    ):
        n = min(found[one])
        if not same(found[one][n](), found[other][n]()):
            raise click.ClickException(f"{one} and {other} differ at length {n}.")


def curve(name: str, what: str, sizes: Sequence[int], values: Sequence[float]) -> Curve:
    """With the exponent of its longest sizes."""
    power = exponent(sizes[-FITTED:], values[-FITTED:])
    return Curve("positions", list(sizes), list(values), f"{name}: {what} ~ n^{power:.2f}")


def measured(
    found: Mapping[str, Mapping[int, Work]], rounds: int, device: str
) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Seconds and mebibytes of each way by length."""
    sides = {f"{name} {n}": work for name, by_length in found.items() for n, work in by_length.items()}
    for work in sides.values():
        work()
    taken = interleaved(sides, rounds, device=device)
    times, peaks = {}, {}
    for name, by_length in found.items():
        sizes = list(by_length)
        times[name] = curve(name, "time", sizes, [median(taken[f"{name} {n}"]) for n in sizes])
        held = [peak_bytes(work, device) / MIB for work in by_length.values()]
        peaks[name] = curve(name, "memory", sizes, held)
    return times, peaks


def report(groups: Mapping[str, Mapping[str, Curve]], record: Mapping[str, Any]) -> str:
    """The numbers as text."""
    lines = [dumps(record["machine"]), f"commit {record['commit']}, {record['rounds']} rounds, {record['dtype']}"]
    for unit, curves in groups.items():
        for each in curves.values():
            points = ", ".join(f"{x}: {y:.3g}" for x, y in zip(each.x, each.y, strict=True))
            lines.append(f"{each.finding} ({unit} by length: {points})")
    return "\n".join(lines)


@click.command()
@options
@click.option("--quick", is_flag=True, help="Few and small sizes, to see that all runs; nothing is kept.")
def main(device: str, dtype: str, rounds: int, quick: bool) -> None:
    found = works(*((QUICK, QUICK) if quick else (LENGTHS, TEXTS)), device, getattr(torch, dtype))
    check_alike(found)
    times, peaks = measured(found, rounds, device)
    record = {
        "name": "attention_cost",
        "work": f"attention of {HEADS} heads of {D_HEAD}; texts of a GPT of 4 layers, d_model 128",
        "device": device,
        "dtype": dtype,
        "rounds": rounds,
        "seconds": {name: vars(each) for name, each in times.items()},
        "mebibytes": {name: vars(each) for name, each in peaks.items()},
        "machine": describe_machine(device),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    click.echo(report({"s": times, "MiB": peaks}, record))
    with TemporaryDirectory() as scratch:
        results = Path(scratch) if quick else RESULTS
        results.mkdir(exist_ok=True)
        suffix = "" if device == "cpu" else f"-{device.partition(':')[0]}-{dtype}"
        (results / f"attention_cost{suffix}.svg").write_text(svg(list(times.values()), list(peaks.values())))
        with (results / "attention_cost.jsonl").open("a") as file:
            file.write(dumps(record) + "\n")


if __name__ == "__main__":
    main()
