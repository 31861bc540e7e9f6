"""Path patching from the heads to the logits and to a later layer's heads, beside three passes a path.

    python -m tests.benchmarks.path_patching                        # 2 CPU cores: about a quarter of an hour
    python -m tests.benchmarks.path_patching --senders 144 --rounds 2
    python -m tests.benchmarks.path_patching --quick

Three passes, through hooks on our own model: both runs are cached (once for all paths, outside the time); a run in
which every head and MLP but the sender keeps its output, and which the receiver's input is read from; a run with that
input put into the receiver. "second shared" makes the second only once for each sender. A path to the logits ends with
the second pass. TransformerLens: `get_act_patch_direct_path` on its bridge, one forward a path.

Those are timed on some paths and scaled up, as every path takes them whole forwards. Ours to the logits is timed whole.
Ours to heads is timed on `--senders` of the heads, drawn at random, and scaled up to all that have a path to the
receivers: to our disadvantage, as each call pays for its two baseline runs.

Promised: at least 10 times faster than three passes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from transformer_lens import patching as transformer_lens_patching

from analyses import path_patching
from analyses.paths import PathPatchingResult
from interp import PromptPairs, Site, edits, metrics, sweep
from models import GPT
from tests.benchmarks import limits
from tests.benchmarks.harness import RESULTS, compare, options
from tests.benchmarks.sweep_subjects import FULL, QUICK, Size, both, prompt_pairs, sampled

OURS, THREE, SHARED, PEER = "ours", "three passes", "three passes, second shared", "TransformerLens"
GOAL = 10
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.3, "float16": 0.03}
"""Between two ways to compute a logit difference of the order of 3: some hundred roundings of it."""
Head = tuple[int, ...]  # (layer, head)


@dataclass(frozen=True)
class Paths:
    """Paths from heads in the corrupted run, the senders taking their clean outputs; MLPs are frozen.

    clean, corrupted: caches of both runs.
    """

    model: GPT
    bridge: Any
    pairs: PromptPairs
    layer: int
    clean: Any
    corrupted: Any

    @classmethod
    def of(cls, model: GPT, bridge: Any, pairs: PromptPairs, layer: int) -> Paths:
        names = [Site(kind, n).hook_name for kind in ("z", "mlp_out") for n in range(model.cfg.n_layers)]
        clean, corrupted = (model.run_with_cache(ids, names_filter=names)[1] for ids in (pairs.clean, pairs.corrupted))
        return cls(model, bridge, pairs, layer, clean, corrupted)

    @property
    def receivers(self) -> list[Site]:
        """Every head's query, key and value in the layer."""
        heads = range(self.model.cfg.n_heads)
        return [Site(kind, self.layer, head=head) for kind, head in product(("q", "k", "v"), heads)]

    def metric(self, logits: Tensor) -> Tensor:
        return metrics.get("logit_diff")(logits, self.pairs)

    def ours(self, senders: list[Head], receivers: Any) -> PathPatchingResult:
        sites = [Site("z", layer, head=head) for layer, head in senders]
        return path_patching(self.model, self.pairs, receivers, sites, direction="denoise", progress=False)

    def second_pass(self, sender: Head, stop_at_layer: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """What the frozen run gives when the sender's output changes, and the layer's queries, keys and values."""
        layer, head = sender
        read: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any) -> None:
            read[hook.name] = activation

        n_layers = self.model.cfg.n_layers
        kept = [edits.freeze(Site(kind, n), self.corrupted) for kind in ("z", "mlp_out") for n in range(n_layers)]
        sent = edits.replace(Site("z", layer, head=head), self.clean)
        hooks = [edit.as_hook() for edit in (*kept, sent)]
        hooks += [(Site(kind, self.layer).hook_name, keep) for kind in ("q", "k", "v")]
        return self.model.run_with_hooks(self.pairs.corrupted, fwd_hooks=hooks, stop_at_layer=stop_at_layer), read

    def third_pass(self, receiver: Site, read: dict[str, Tensor]) -> Tensor:
        """The metric [prompt] of the corrupted run with a receiver's input of the second pass."""
        hooks = [edits.replace(receiver, read).as_hook()]
        return self.metric(self.model.run_with_hooks(self.pairs.corrupted, fwd_hooks=hooks))

    def to_logits(self, senders: list[Head]) -> Tensor:
        """[sender prompt], a frozen run each."""
        return torch.stack([self.metric(self.second_pass(sender)[0]) for sender in senders])

    def three_passes(self, paths: list[tuple[Head, Site]]) -> Tensor:
        """[path prompt]"""
        stop = self.layer + 1
        return torch.stack([self.third_pass(site, self.second_pass(sender, stop)[1]) for sender, site in paths])

    def second_shared(self, sender: Head, receivers: list[Site]) -> Tensor:
        """[receiver prompt]"""
        _, read = self.second_pass(sender, self.layer + 1)
        return torch.stack([self.third_pass(receiver, read) for receiver in receivers])

    def peer_caches(self) -> list[Any]:
        return [self.bridge.run_with_cache(ids)[1] for ids in (self.pairs.clean, self.pairs.corrupted)]

    def peer(self, sender: Head, caches: list[Any]) -> Tensor:
        """[layer head], of a sender's paths to every later head's query."""
        function = transformer_lens_patching.get_act_patch_direct_path
        mean = partial(_mean, self.metric)
        return function(self.bridge, self.pairs.corrupted, *caches, mean, *sender, "q", verbose=False)


def _shape(paths: Paths) -> str:
    return "{} prompts of {}".format(*paths.pairs.clean.shape)


def _mean(metric: Any, logits: Tensor) -> Tensor:
    return metric(logits).mean()


@dataclass(frozen=True)
class Setting:
    """The options of a run. senders: how many of the heads send in ours to heads."""

    size: Size
    device: str
    dtype: str
    rounds: int
    senders: int
    results: Path

    def compare(self, sides: Any, work: str, shares: dict[str, float], notes: dict[str, Any]) -> dict[str, Any]:
        return compare(
            "path_patching",
            sides,
            work,
            self.rounds,
            against=THREE,
            device=self.device,
            dtype=self.dtype,
            warmup=1,
            shares=shares,
            notes=notes,
            results=self.results,
        )

    def agree(self, what: str, ours: Any, theirs: Tensor) -> float:
        """The largest difference.

        Raises:
            ClickException: it is more than rounding.
        """
        apart = float(np.abs(np.asarray(ours) - theirs.double().cpu().numpy()).max())
        if apart > TOLERANCE[self.dtype]:
            raise click.ClickException(f"{what}: the sides disagree by {apart:.2g}.")
        return apart


def measure_logits(paths: Paths, setting: Setting, start: int) -> str:
    """Every head to the logits."""
    cfg = paths.model.cfg
    senders, some = sampled((cfg.n_layers, cfg.n_heads), 10**6), sampled((cfg.n_layers, cfg.n_heads), 16)
    raw = paths.ours(some, "logits").raw[:, 0]
    apart = setting.agree("logits", raw, paths.to_logits(some))
    record = setting.compare(
        {OURS: partial(paths.ours, senders, "logits"), THREE: partial(paths.to_logits, some)},
        f"{len(senders)} heads to the logits, {_shape(paths)}, differing from {start} on",
        {THREE: len(some) / len(senders)},
        {"agreement": apart, "sampled": some},
    )
    click.echo(f"agreement: {apart:.2g}\n")
    return summary_line(record)


def measure_heads(paths: Paths, setting: Setting, start: int) -> str:
    """Heads to every head's query, key and value of one layer."""
    cfg, receivers = paths.model.cfg, paths.receivers
    before = sampled((paths.layer, cfg.n_heads), 10**6)
    senders = sampled((paths.layer, cfg.n_heads), setting.senders)
    some = [(before[i], receivers[j]) for i, j in sampled((len(before), len(receivers)), 8)]
    few = [receivers[j] for (j,) in sampled((len(receivers),), 7)]
    sender, caches = (paths.layer - 1, cfg.n_heads // 2), paths.peer_caches()
    agreement = check(paths, setting, sender, some, few, caches)
    every = len(before) * len(receivers)
    asked = (cfg.n_layers - 1 - sender[0]) * cfg.n_heads
    products = limits.Products.of(paths.model)
    record = setting.compare(
        {
            OURS: partial(paths.ours, senders, receivers),
            THREE: partial(paths.three_passes, some),
            SHARED: partial(paths.second_shared, sender, few),
            PEER: partial(paths.peer, sender, caches),
            **products.sides,
        },
        f"{len(before)} heads to q, k, v of layer {paths.layer}, {_shape(paths)}, differing from {start} on",
        {
            OURS: len(senders) / len(before),
            THREE: len(some) / every,
            # As many forwards of all those that a whole sweep would take.
            SHARED: (1 + len(few)) / (len(before) + every),
            PEER: asked / every,
        },
        {"agreement": agreement, "senders": senders},
    )
    click.echo("agreement: " + ", ".join(f"{name} {value:.2g}" for name, value in agreement.items()))
    click.echo("\n".join(limit(paths, len(before), len(senders), record, products)) + "\n")
    return summary_line(record)


def check(
    paths: Paths, setting: Setting, sender: Head, some: list[tuple[Head, Site]], few: list[Site], caches: list[Any]
) -> dict[str, float]:
    """The largest differences between ours and the others.

    Raises:
        ClickException: they are more than rounding.
    """
    singles = np.stack([paths.ours([head], [site]).raw[0, 0] for head, site in some])
    queries = paths.receivers[: paths.model.cfg.n_heads]
    found = paths.ours([sender], queries).raw[0].mean(-1)
    return {
        THREE: setting.agree(THREE, singles, paths.three_passes(some)),
        SHARED: setting.agree(SHARED, paths.ours([sender], few).raw[0], paths.second_shared(sender, few)),
        PEER: setting.agree(PEER, found, paths.peer(sender, caches)[paths.layer]),
    }


def limit(paths: Paths, before: int, calls: int, record: dict[str, Any], products: limits.Products) -> list[str]:
    """How far ours is from its limit: for each sender the operations of one change of every receiver."""
    model, (prompts, positions) = paths.model, paths.pairs.clean.shape
    names = [receiver.hook_name for receiver in paths.receivers]
    _, cache = model.run_with_cache(paths.pairs.clean, names_filter=names)
    rows = [[edits.replace(receiver, cache)] for receiver in paths.receivers]
    one = sweep.plan(model, paths.pairs.swapped(), rows)
    whole = replace(one, operations=before * one.operations, naive=2 * before * one.naive)
    baselines = before / calls * limits.baseline_operations(model, prompts, positions)
    return limits.reading(whole, baselines, record, products, OURS, THREE)


def summary_line(record: dict[str, Any]) -> str:
    """How many times faster than each side."""
    ours = record["sides"][OURS]
    times = [
        record["sides"][name]["ratio"] / ours["ratio"] for name in (THREE, SHARED, PEER) if name in record["sides"]
    ]
    faster = "".join(f"{each:>9.1f}" for each in times) + " " * 9 * (3 - len(times))
    return f"{record['work']:<84}{faster}{GOAL:>7}{ours['median_s']:>10.3f}{ours['peak_bytes'] / 2**20:>8.0f}"


HEADER = f"{'times faster than':<84}{'three':>9}{'shared':>9}{'TL':>9}{'goal':>7}{'ours, s':>10}{'MiB':>8}"


@click.command()
@options
@click.option("--senders", default=18, type=click.IntRange(1), help="How many heads send in ours to heads.")
@click.option("--quick", is_flag=True, help="A tiny model, to see that all runs; nothing is kept.")
def main(device: str, dtype: str, rounds: int, senders: int, quick: bool) -> None:
    size = QUICK if quick else FULL
    model, bridge = both(size, device, dtype)
    lines = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        setting = Setting(size, device, dtype, rounds, senders, Path(scratch) if quick else RESULTS)
        for start in size.starts:
            paths = Paths.of(model, bridge, prompt_pairs(model, size.prompts, size.positions, start), size.layer)
            lines += [measure_logits(paths, setting, start), measure_heads(paths, setting, start)]
    click.echo("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
