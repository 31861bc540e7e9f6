"""Every edge of a model, exactly and by gradients: time, memory, and how far the ranks agree.

    python -m tests.benchmarks.edges                    # 2 CPU cores: some ten minutes
    python -m tests.benchmarks.edges --edges 32491      # every edge is patched: a quarter of an hour a round
    python -m tests.benchmarks.edges --quick

First on GPT-2 small's shape with random weights, prompts differing half-way, at one position. Exact patching is timed
on `--edges` of the edges, drawn at random, and scaled up to all, which is to its disadvantage, as each call pays
for its two baseline runs; gradients are timed whole, without the exact checks. Then on `town`, whose weights mean
something: its indirect objects, every edge exactly. Agreement is over the edges that were patched: of estimates with
exact effects, by value and by rank, and how many of the strongest tenth by one are among the strongest tenth by the
other.

    python -m tests.benchmarks.edges --long --rounds 2  # gradients at 8 prompts of 512, within a budget
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from analyses.agreement import agreement
from analyses.edge_estimates import edge_scores_of
from analyses.edges import EdgePatchingResult, edge_patching, edge_patching_plan
from interp import PromptPairs, metrics, tasks
from interp.circuit import Circuit
from interp.graph import Graph
from interp.text import megabytes
from models import GPT, load
from tests.benchmarks.harness import RESULTS, compare, options
from tests.benchmarks.sweep_subjects import FULL, QUICK, Size, prompt_pairs, random_gpt2, sampled

EXACT, STEPS = "exact", 5
ALONG = ("EAP", "EAP-IG-inputs")
LONG, BUDGET = 512, 2**30
EVERY = 10**6


def at_one_position(model: GPT, prompts: int, positions: int) -> PromptPairs:
    """Random prompts whose two sides differ half-way, at one position."""
    pairs = prompt_pairs(model, prompts, positions, positions // 2)
    corrupted = pairs.clean.clone()
    corrupted[:, positions // 2] = pairs.corrupted[:, positions // 2]
    return PromptPairs.from_tokens(pairs.clean, corrupted, pairs.right, pairs.wrong)


def some_edges(graph: Graph, n: int) -> Circuit:
    """n of the edges, at random but always the same."""
    kept = np.zeros(graph.shape, dtype=bool)
    kept[[place for (place,) in sampled(graph.shape, n)]] = True
    return Circuit(graph, kept)


def exactly(model: GPT, pairs: PromptPairs, among: Circuit) -> EdgePatchingResult:
    return edge_patching(model, pairs, among=among, normalize=False, progress=False)


def estimated(model: GPT, pairs: PromptPairs, graph: Graph, method: str) -> np.ndarray:
    """[edge]"""
    return edge_scores_of(model, pairs, metrics.logit_diff, graph, method, STEPS).effects.mean(-1)


def agreement_line(method: str, scores: np.ndarray, exact: np.ndarray) -> str:
    n = max(1, len(exact) // 10)
    top = [set(np.argsort(-np.abs(values), kind="stable")[:n].tolist()) for values in (scores, exact)]
    return f"{method:<20}{agreement(scores, exact)}; of the strongest {n}, {len(top[0] & top[1])} in common"


@dataclass(frozen=True)
class Subject:
    """What is measured on. among: the edges that are patched exactly."""

    name: str
    model: GPT
    pairs: PromptPairs
    among: Circuit

    @classmethod
    def random(cls, size: Size, device: str, dtype: str, edges: int) -> Subject:
        model = random_gpt2(size, device, dtype)
        pairs = at_one_position(model, size.prompts, size.positions)
        return cls("GPT-2 small, random", model, pairs, some_edges(Graph.of(model), edges))

    @classmethod
    def town(cls, device: str, dtype: str, edges: int) -> Subject:
        model = load("town", device=device, dtype=dtype)
        return cls("town, indirect objects", model, tasks.ioi(model, n=32, seed=0), some_edges(Graph.of(model), edges))

    def __str__(self) -> str:
        return "{}: {} edges, {} prompts of {}".format(self.name, len(self.among.graph), *self.pairs.clean.shape)


@dataclass(frozen=True)
class Setting:
    """The options of a run."""

    device: str
    dtype: str
    rounds: int
    results: Path

    def compare(self, sides: Mapping[str, Any], work: str, against: str, **more: Any) -> None:
        given = {"device": self.device, "dtype": self.dtype, "results": self.results}
        compare("edges", sides, work, self.rounds, against, warmup=1, **given, **more)


def measure(subject: Subject, setting: Setting) -> list[str]:
    """Time and memory; the lines say how far estimates agree with exact effects."""
    model, pairs, among = subject.model, subject.pairs, subject.among
    click.echo(f"{subject}\n{edge_patching_plan(model, pairs)}\n")
    exact = exactly(model, pairs, among).values[among.kept]
    found = {method: estimated(model, pairs, among.graph, method)[among.kept] for method in ALONG}
    lines = [agreement_line(method, scores, exact) for method, scores in found.items()]
    sides: dict[str, Any] = {EXACT: partial(exactly, model, pairs, among)}
    sides |= {method: partial(estimated, model, pairs, among.graph, method) for method in ALONG}
    notes = {"agreement": lines, "edges": len(among), "steps": STEPS}
    shares = {EXACT: len(among) / len(among.graph)}
    setting.compare(sides, str(subject), "EAP", shares=shares, notes=notes)
    return [str(subject), *lines]


def measure_long(model: GPT, prompts: int, positions: int, setting: Setting) -> None:
    """Gradients at long prompts, a few prompts and positions at a time."""
    pairs, graph, label = at_one_position(model, prompts, positions), Graph.of(model), f"EAP within {megabytes(BUDGET)}"
    estimate = partial(edge_scores_of, model, pairs, metrics.logit_diff, graph, budget=BUDGET)
    work = f"{len(graph)} edges, {prompts} prompts of {positions} that differ at one position"
    setting.compare({label: estimate}, work, label)


@click.command()
@options
@click.option("--edges", default=400, type=click.IntRange(3), help="How many edges are patched exactly.")
@click.option("--long", is_flag=True, help="Instead, the memory of gradients at long prompts.")
@click.option("--quick", is_flag=True, help="A tiny model, to see that all runs; nothing is kept.")
def main(device: str, dtype: str, rounds: int, edges: int, long: bool, quick: bool) -> None:
    size = QUICK if quick else FULL
    subject, lines = Subject.random(size, device, dtype, edges), []
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(device, dtype, rounds, Path(scratch) if quick else RESULTS)
        if long:
            measure_long(subject.model, size.prompts, 12 if quick else LONG, setting)
        else:
            lines = measure(subject, setting) + measure(Subject.town(device, dtype, 100 if quick else EVERY), setting)
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
