"""Edge attribution and exact edge patching beside EAP-IG's and auto-circuit's own code: time, memory, agreement.

    python -m tests.benchmarks.edges_against_peers --rounds 3    # 2 CPU cores: some ten minutes
    python -m tests.benchmarks.edges_against_peers --quick

It needs an environment with TransformerLens 3 and both of them (see `edge_peers.py`). All run in one process, turn
about, on the same weights and the same prompts, which differ half-way, at one position. Every side gives the score of
every edge of the model; ratios are times, ours being 1.

Exact patching is timed on some edges and scaled up to all: of theirs a few, as each takes whole forwards; of ours
`--edges`, to our disadvantage, as each call pays for its two baseline runs.

Goals: EAP 8 times faster than EAP-IG's, EAP-IG with 5 steps 12 times, each in a fifth of the memory, and scores that
correlate above 0.99999.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from analyses.agreement import Agreement, agreement
from interp import PromptPairs
from interp.graph import Graph
from models import GPT
from tests.benchmarks.edge_peers import AutoCircuit, EapIg, hooked_transformer
from tests.benchmarks.edges import STEPS, at_one_position, estimated, exactly, some_edges
from tests.benchmarks.harness import RESULTS, compare, options
from tests.benchmarks.sweep_subjects import FULL, QUICK, random_gpt2

OURS, EAP_IG, AUTO_CIRCUIT = "ours", "EAP-IG", "auto-circuit"
FEW = 3
"""How many edges the others patch exactly."""


@dataclass(frozen=True)
class Subject:
    """What is measured, and how often. auto_circuit: None leaves it out."""

    model: GPT
    pairs: PromptPairs
    graph: Graph
    eap_ig: EapIg
    auto_circuit: AutoCircuit
    rounds: int
    results: Path

    def compare(
        self, work: str, sides: Mapping[str, Any], shares: Mapping[str, float], apart: Mapping[str, Agreement]
    ) -> str:
        """Measure, print and keep; the lines say how ours compares. apart: how far each is from ours."""
        record = compare(
            "edges_against_peers",
            sides,
            f"{work}, {len(self.graph)} edges, {len(self.pairs)} prompts of {self.pairs.clean.shape[1]}",
            self.rounds,
            against=OURS,
            device=str(self.model.device),
            warmup=0,  # each has run, for the agreement
            shares=shares,
            notes={
                "agreement": {name: vars(found) for name, found in apart.items()},
                "versions": versions(),
                "huge pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "") == "1",
            },
            results=self.results,
        )
        ours, lines = record["sides"][OURS], []
        for name, found in apart.items():
            theirs = record["sides"][name]
            memory = theirs["peak_bytes"] / ours["peak_bytes"]
            numbers = f"{theirs['ratio']:>8.1f}{memory:>9.1f}   1 - {1 - found.pearson:.1e}"
            lines.append(f"{work:<16}{name:<14}{numbers}, {found}")
        return "\n".join(lines)


HEADER = f"{'':<16}{'against':<14}{'times':>8}{'memory':>9}   Pearson with ours, and how else they agree"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("transformer-lens", "eap", "auto-circuit", "torch")}


def agreements(ours: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, Agreement]:
    return {name: agreement(theirs, ours) for name, theirs in others.items()}


def measure_eap(it: Subject) -> str:
    ours = partial(estimated, it.model, it.pairs, it.graph, "EAP")
    others = {EAP_IG: it.eap_ig.eap, AUTO_CIRCUIT: it.auto_circuit.eap}
    apart = agreements(ours(), {name: score() for name, score in others.items()})
    return it.compare("EAP", {OURS: ours, **others}, {}, apart)


def measure_eap_ig(it: Subject) -> str:
    ours = partial(estimated, it.model, it.pairs, it.graph, "EAP-IG-inputs")
    theirs = partial(it.eap_ig.eap_ig, STEPS)
    return it.compare(
        f"EAP-IG, {STEPS} steps", {OURS: ours, EAP_IG: theirs}, {}, agreements(ours(), {EAP_IG: theirs()})
    )


def measure_exact(it: Subject, edges: int) -> str:
    among, few = some_edges(it.graph, edges), some_edges(it.graph, FEW)
    others = {
        name: partial(peer.exact, list(few)) for name, peer in ((EAP_IG, it.eap_ig), (AUTO_CIRCUIT, it.auto_circuit))
    }
    found = exactly(it.model, it.pairs, few).values[few.kept]
    apart = agreements(found, {name: score() for name, score in others.items()})
    shares = {OURS: len(among) / len(it.graph)} | dict.fromkeys(others, len(few) / len(it.graph))
    return it.compare("exact", {OURS: partial(exactly, it.model, it.pairs, among), **others}, shares, apart)


@click.command()
@options
@click.option("--edges", default=200, type=click.IntRange(3), help="How many edges ours patches exactly.")
@click.option("--quick", is_flag=True, help="A tiny model, to see that all runs; nothing is kept.")
def main(device: str, dtype: str, rounds: int, edges: int, quick: bool) -> None:
    size = QUICK if quick else FULL
    model = random_gpt2(size, device, dtype)
    pairs, graph = at_one_position(model, size.prompts, size.positions), Graph.of(model)
    peers = [peer(hooked_transformer(model), pairs, graph) for peer in (EapIg, AutoCircuit)]
    with tempfile.TemporaryDirectory() as scratch:
        it = Subject(model, pairs, graph, *peers, rounds, Path(scratch) if quick else RESULTS)
        lines = [measure_eap(it), measure_eap_ig(it), measure_exact(it, edges)]
    click.echo("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
