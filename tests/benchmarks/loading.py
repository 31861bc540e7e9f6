"""Loading and running a sharded checkpoint of 1 GB, each time in a fresh process: `python -m tests.benchmarks.loading`.

Promised: memory never above 1.15 times the checkpoint's size, from before loading until after a run.

Two peaks, both beyond what the process held once everything was imported. "resident" is the kernel's own high-water
mark (VmHWM): every page in memory, those of mapped files too, although the kernel may drop these at any time without
harm. "private" is sampled (RssAnon, every 2 ms): without the pages of files. The promise is about the first, the
larger. A table of token vectors is an eighth of these checkpoints: a loader that maps all of one tensor while it
copies it comes close to the promise's edge. transformers and TransformerLens leave weights that need no other dtype in
the mapped file, whose pages come into memory when a run reads them; ours are read at once, into memory of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import click
import torch

from tests.benchmarks.harness import RESULTS, commit, describe_machine

# Llamas of 1 GB by dtype: the layers differ, the width does not.
LAYERS = {"float32": 14, "bfloat16": 36}
WAYS = (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"))  # stored, asked for


def ours(directory: str, dtype: str) -> Any:
    from models import load

    return lambda: load(directory, dtype=dtype)


def transformers(directory: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401 what is imported on demand, before the baseline

    return lambda: AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))


def transformer_lens(directory: str, dtype: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.models.llama import modeling_llama  # noqa: F401

    return lambda: TransformerBridge.boot_transformers(directory, dtype=getattr(torch, dtype))


SIDES: dict[str, Callable[[str, str], Any]] = {
    "ours": ours,
    "transformers": transformers,
    "TransformerLens 4.3": transformer_lens,
}


def memory(entry: str, process: int | str = "self") -> int:
    """Bytes of an entry of /proc/<process>/status, such as VmRSS."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) * 1024
    return 0


@torch.inference_mode()
def child(side: str, directory: str, dtype: str) -> None:
    """Import; say so and wait; load and run; print what it took as JSON."""
    loader = SIDES[side](directory, dtype)
    tokens = torch.arange(16)[None]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = {"resident": memory("VmRSS"), "private": memory("RssAnon")}
    print(json.dumps(before), flush=True)
    sys.stdin.readline()
    start = perf_counter()
    model = loader()
    loaded = perf_counter() - start
    at_load = memory("VmHWM") - before["resident"]
    model(tokens)
    first = perf_counter() - start - loaded
    peak = memory("VmHWM") - before["resident"]
    print(json.dumps({"load_s": loaded, "first_run_s": first, "resident_at_load": at_load, "resident": peak}))


def measure(side: str, directory: str, dtype: str) -> dict[str, float]:
    """One fresh process of a side: seconds, and bytes beyond those that it held before it loaded."""
    command = [sys.executable, "-m", "tests.benchmarks.loading", "--child", side, directory, dtype]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        private = before = json.loads(process.stdout.readline())["private"]
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            private = max(private, memory("RssAnon", process.pid))
            sleep(0.002)
        found = json.loads(process.stdout.read().splitlines()[-1])
    return found | {"private": private - before}


def save_checkpoint(directory: Path, dtype: str) -> int:
    """A random Llama of 1 GB in shards, with a tokenizer, which TransformerLens needs; how many bytes they are."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 32000, "num_attention_heads": 16}
    config = LlamaConfig(**sizes, num_hidden_layers=LAYERS[dtype], max_position_embeddings=1024)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="200MB")
    torch.set_default_dtype(torch.float32)
    words = Tokenizer(WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<eos>", eos_token="<eos>").save_pretrained(directory)
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def compare(stored: str, asked: str, rounds: int) -> dict[str, Any]:
    """All sides on one checkpoint, interleaved; memory is the largest of the rounds, time the median."""
    with tempfile.TemporaryDirectory() as folder:
        size = save_checkpoint(Path(folder), stored)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(rounds):
            for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                runs[side].append(measure(side, folder, asked))
    held = size * torch.finfo(getattr(torch, asked)).bits // torch.finfo(getattr(torch, stored)).bits
    return {
        "name": "loading",
        "work": f"a sharded Llama of {size / 1e9:.2f} GB in {stored}, as {asked}: load it, run 16 tokens",
        "bytes": size,
        "model_bytes": held,
        "rounds": rounds,
        "sides": {side: _row(taken, held) for side, taken in runs.items()},
        "machine": describe_machine(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _row(runs: list[dict[str, float]], held: int) -> dict[str, float]:
    """Seconds, and peaks in units of the model's weights in the dtype asked for."""
    times = {name: median(run[name] for run in runs) for name in ("load_s", "first_run_s")}
    return times | {name: max(run[name] for run in runs) / held for name in ("resident_at_load", "resident", "private")}


def table(record: dict[str, Any]) -> str:
    """A record as text: one line per side."""
    machine = record["machine"]
    lines = [
        f"{record['work']} ({machine['cpu']}, {machine['threads']} threads, load {machine['load']})",
        f"{'':<24}{'load':>9}{'first run':>11}{'resident at load':>18}{'resident':>10}{'private':>9}",
    ]
    for side, row in record["sides"].items():
        peaks = f"{row['resident_at_load']:>17.2f}x{row['resident']:>9.2f}x{row['private']:>8.2f}x"
        lines.append(f"{side:<24}{row['load_s']:>7.2f} s{row['first_run_s']:>9.2f} s{peaks}")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often each side runs.")
@click.option("--child", nargs=3, hidden=True, default=None)
def main(rounds: int, child: tuple[str, str, str] | None) -> None:
    if child is not None:
        globals()["child"](*child)
        return
    for stored, asked in WAYS:
        record = compare(stored, asked, rounds)
        click.echo(table(record))
        with (RESULTS / "loading.jsonl").open("a") as lines:
            lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
