"""Activation patching of every site of a kind, beside TransformerLens and the naive loop.

    python -m tests.benchmarks.patching                  # 2 CPU cores: about half an hour
    python -m tests.benchmarks.patching --device cuda --dtype bfloat16 --sample 192
    python -m tests.benchmarks.patching --site resid_pre --quick

Ours: `activation_patching`, whole, its two baseline runs included. TransformerLens: its `patching` on its bridge; the
naive loop: a `run_with_hooks` of our model for each site. Both of these run one whole forward a site, whichever it is,
so they are timed on some sites, drawn at random, and scaled up to all; their cache of the clean run, one forward more,
is made outside the time. All three have the same weights, and their numbers agree or this stops.

Promised, beside TransformerLens: on 2 CPU cores at least 5 times for resid_pre at all positions where the prompts
differ from position 1 on, and 25 times where they differ from position 10 on; 3 and 8 times for the heads' z; on one
NVIDIA H200 60 and 150 times for resid_pre.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens import patching as transformer_lens_patching

from analyses import activation_patching
from analyses.patching import PatchingResult, patching_plan
from interp import PromptPairs, Site, metrics
from interp.edits import replace
from models import GPT
from tests.benchmarks import limits
from tests.benchmarks.harness import RESULTS, compare, options
from tests.benchmarks.sweep_subjects import FULL, QUICK, Size, both, prompt_pairs, sampled

PEERS = {
    "resid_pre": "get_act_patch_resid_pre",
    "z": "get_act_patch_attn_head_out_all_pos",
    "q": "get_act_patch_attn_head_q_all_pos",
    "k": "get_act_patch_attn_head_k_all_pos",
    "v": "get_act_patch_attn_head_v_all_pos",
    "pattern": "get_act_patch_attn_head_pattern_all_pos",
}
GOALS = {("cpu", "resid_pre"): (5, 25), ("cpu", "z"): (3, 8), ("cuda", "resid_pre"): (60, 150)}
"""How many times faster than TransformerLens, for prompts that differ early and late."""
OURS, PEER, NAIVE = "ours", "TransformerLens", "naive loop on our model"
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.3, "float16": 0.03}
"""Between two ways to compute a logit difference of the order of 3: some hundred roundings of it."""


@dataclass(frozen=True)
class Case:
    """One sweep three times. places: the sampled sites, as (layer, position) or (layer, head)."""

    model: GPT
    bridge: Any
    pairs: PromptPairs
    site: str
    places: Sequence[tuple[int, ...]]
    clean: Any
    bridge_clean: Any

    @classmethod
    def of(cls, model: GPT, bridge: Any, pairs: PromptPairs, site: str, sample: int) -> Case:
        second = pairs.clean.shape[1] if site == "resid_pre" else model.cfg.n_heads
        places = sampled((model.cfg.n_layers, second), sample)
        names = [Site(site, layer).hook_name for layer in range(model.cfg.n_layers)]
        _, clean = model.run_with_cache(pairs.clean, names_filter=names)
        _, bridge_clean = bridge.run_with_cache(pairs.clean, names_filter=lambda name: name in set(names))
        return cls(model, bridge, pairs, site, places, clean, bridge_clean)

    def metric(self, logits: Tensor) -> Tensor:
        return metrics.get("logit_diff")(logits, self.pairs)

    def ours(self) -> PatchingResult:
        return activation_patching(self.model, self.pairs, self.site, progress=False)

    def naive(self) -> Tensor:
        """[place prompt]"""
        return torch.stack([self.metric(self._patched(*place)) for place in self.places])

    def _patched(self, layer: int, second: int) -> Tensor:
        at = Site(self.site, layer, **{"pos" if self.site == "resid_pre" else "head": second})
        return self.model.run_with_hooks(self.pairs.corrupted, fwd_hooks=[replace(at, self.clean).as_hook()])

    def peer(self) -> Tensor:
        """[place prompt]"""
        function = getattr(transformer_lens_patching, PEERS[self.site])
        index = pd.DataFrame(self.places, columns=["layer", "second"])
        of = (self.bridge, self.pairs.corrupted, self.bridge_clean, self.metric)
        return function(*of, index_axis_names=None, index_df=index, reduce="none").values

    def check(self, tolerance: float) -> dict[str, float]:
        """The largest differences between the three, and the largest effect of a sampled site.

        Raises:
            ClickException: they differ by more than rounding.
        """
        found = self.ours()
        mine = np.stack([found.raw[place] for place in self.places])
        sides = {PEER: self.peer(), NAIVE: self.naive()}
        apart = {name: float(np.abs(values.double().cpu().numpy() - mine).max()) for name, values in sides.items()}
        if max(apart.values()) > tolerance:
            raise click.ClickException(f"{self.site}: the sides disagree, by {apart} (allowed: {tolerance}).")
        return {f"ours - {name}": value for name, value in apart.items()} | {
            "largest effect": float(np.abs(mine - found.corrupted).max())
        }


@dataclass(frozen=True)
class Setting:
    """The options of a run."""

    size: Size
    device: str
    dtype: str
    rounds: int
    sample: int
    results: Path


def measure(model: GPT, bridge: Any, site: str, late: bool, setting: Setting) -> str:
    """Measure one sweep, print it and how far its limit is, and give its line of the summary."""
    size, device = setting.size, setting.device
    start = size.starts[late]
    pairs = prompt_pairs(model, size.prompts, size.positions, start)
    case = Case.of(model, bridge, pairs, site, setting.sample)
    agreement = case.check(TOLERANCE[setting.dtype])
    plan, products = patching_plan(model, pairs, site), limits.Products.of(model)
    share, shares = len(case.places) / plan.rows, limits.heaviest(case.ours, device)
    baselines = limits.baseline_operations(model, size.prompts, size.positions)
    work = f"{site} at {plan.rows} sites, {size.prompts} prompts of {size.positions}, differing from {start} on"
    record = compare(
        "patching",
        {OURS: case.ours, PEER: case.peer, NAIVE: case.naive, **products.sides},
        work,
        setting.rounds,
        device=device,
        dtype=setting.dtype,
        warmup=1,
        shares={PEER: share, NAIVE: share},
        notes={
            "sites": plan.rows,
            "sampled": case.places,
            "skipped": plan.skipped,
            "operations": {"rows": plan.operations, "baselines": baselines, "naive": plan.naive} | products.operations,
            "agreement": agreement,
            "time by operator": shares,
        },
        results=setting.results,
    )
    click.echo("agreement: " + ", ".join(f"{name} {value:.2g}" for name, value in agreement.items()))
    click.echo("\n".join(limits.reading(plan, baselines, record, products, OURS, NAIVE)))
    click.echo("time by operator: " + ", ".join(f"{name} {part:.0%}" for name, part in shares.items()) + "\n")
    goals = GOALS.get((model.device.type, site)) if size == FULL else None
    return summary_line(work, record, goals[late] if goals else None)


def summary_line(work: str, record: dict[str, Any], goal: float | None) -> str:
    """How many times faster than each, beside the goal."""
    ours, naive = record["sides"][OURS], record["sides"][NAIVE]
    low, high = sorted(1 / ratio for ratio in ours["ratio_quartiles"])
    peak = ours["peak_bytes"] / 2**20
    return (
        f"{work:<72}{1 / ours['ratio']:>8.1f}{f'{low:.1f}-{high:.1f}':>14}{naive['ratio'] / ours['ratio']:>8.1f}"
        f"{'-' if goal is None else f'{goal:g}':>7}{ours['median_s']:>10.3f}{peak:>8.0f}"
    )


HEADER = f"{'times faster than':<72}{'TL':>8}{'quartiles':>14}{'naive':>8}{'goal':>7}{'ours, s':>10}{'MiB':>8}"


@click.command()
@options
@click.option("--site", "sites", multiple=True, type=click.Choice(list(PEERS)), help="Only these; may be repeated.")
@click.option("--sample", default=16, type=click.IntRange(1), help="How many sites the peers are timed on.")
@click.option("--quick", is_flag=True, help="A tiny model, to see that all runs; nothing is kept.")
def main(device: str, dtype: str, rounds: int, sites: Sequence[str], sample: int, quick: bool) -> None:
    transformer_lens_patching.tqdm = partial(transformer_lens_patching.tqdm, disable=True)  # no time for its bar
    size = QUICK if quick else FULL
    model, bridge = both(size, device, dtype)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        setting = Setting(size, device, dtype, rounds, sample, Path(scratch) if quick else RESULTS)
        lines = [measure(model, bridge, site, late, setting) for site in sites or PEERS for late in (False, True)]
    click.echo("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
