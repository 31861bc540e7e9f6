"""Every edge of a model, exactly and by gradients: time, memory, and how far the ranks agree.

    python -m tests.benchmarks.edges                    # 2 CPU cores: some ten minutes
    python -m tests.benchmarks.edges --edges 32491      # every edge is patched: half an hour a round
    python -m tests.benchmarks.edges --quick

Prompts differ at one position, half-way. Exact patching is timed on `--edges` of the edges, drawn at random, and scaled
up to all of them, which is to its disadvantage, as each call pays for its two baseline runs; gradients are timed whole,
without the exact checks. Agreement is over the edges that were patched: of estimates with exact effects, by value and
by rank, and how many of the strongest tenth by one are among the strongest tenth by the other.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from analyses.agreement import agreement
from analyses.edge_estimates import edge_scores_of
from analyses.edges import EdgePatchingResult, edge_patching, edge_patching_plan
from interp import PromptPairs, metrics
from interp.circuit import Circuit
from interp.graph import Graph
from models import GPT
from tests.benchmarks.harness import RESULTS, compare, options
from tests.benchmarks.sweep_subjects import FULL, QUICK, both, prompt_pairs, sampled

EXACT, STEPS = "exact", 5
ALONG = ("EAP", "EAP-IG-inputs")


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


@click.command()
@options
@click.option("--edges", default=400, type=click.IntRange(3), help="How many edges are patched exactly.")
@click.option("--quick", is_flag=True, help="A tiny model, to see that all runs; nothing is kept.")
def main(device: str, dtype: str, rounds: int, edges: int, quick: bool) -> None:
    size = QUICK if quick else FULL
    model, _ = both(size, device, dtype)
    pairs = at_one_position(model, size.prompts, size.positions)
    graph = Graph.of(model)
    among = some_edges(graph, edges)
    click.echo(f"every edge of {len(graph)}:\n{edge_patching_plan(model, pairs)}\n")
    exact = exactly(model, pairs, among).values[among.kept]
    found = {method: estimated(model, pairs, graph, method)[among.kept] for method in ALONG}
    lines = [agreement_line(method, scores, exact) for method, scores in found.items()]
    sides: dict[str, Any] = {EXACT: partial(exactly, model, pairs, among)}
    sides |= {method: partial(estimated, model, pairs, graph, method) for method in ALONG}
    with tempfile.TemporaryDirectory() as scratch:
        compare(
            "edges",
            sides,
            f"{len(graph)} edges, {size.prompts} prompts of {size.positions} that differ at one position",
            rounds,
            against="EAP",
            device=device,
            dtype=dtype,
            warmup=1,
            shares={EXACT: len(among) / len(graph)},
            notes={"agreement": lines, "edges": len(among), "steps": STEPS},
            results=Path(scratch) if quick else RESULTS,
        )
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
