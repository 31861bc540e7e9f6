"""The graph's edges against a list written out by hand; names in every spelling; circuits as data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp import LabError
from interp.circuit import Circuit
from interp.graph import Graph
from models import GPT, TransformerConfig
from tests.strategies import SEEDS, SUMMED, models, random_model

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}
GRAPH = Graph(n_layers=2, n_heads=2, n_kv_heads=2)


def test_gpt2_small_has_32491_edges() -> None:
    """The number that the literature has for it."""
    assert len(Graph(n_layers=12, n_heads=12, n_kv_heads=12)) == 32491


@given(models(**SUMMED))
def test_there_is_an_edge_from_each_component_to_each_later_one(model: GPT) -> None:
    """Sequential and parallel blocks, with and without MLPs, shared keys: told plainly, in the order of the forward."""
    cfg, expected = model.cfg, []
    before = ["input"]
    for layer in range(cfg.n_layers):
        heads = [f"a{layer}.h{head}" for head in range(cfg.n_heads)]
        for kind, n in (("q", cfg.n_heads), ("k", cfg.n_kv_heads), ("v", cfg.n_kv_heads)):
            expected += [f"{one}->a{layer}.h{head}<{kind}>" for head in range(n) for one in before]
        if cfg.attn_only:
            before = before + heads
        elif cfg.parallel_attn_mlp:
            expected += [f"{one}->m{layer}" for one in before]
            before = [*before, *heads, f"m{layer}"]
        else:
            before = before + heads
            expected += [f"{one}->m{layer}" for one in before]
            before = [*before, f"m{layer}"]
    expected += [f"{one}->logits" for one in before]
    graph = Graph.of(model)
    assert list(graph.names) == expected
    assert [graph.index(name) for name in expected] == [(place,) for place in range(len(graph))]


@pytest.mark.parametrize("program", ["reverse", "frac_prevs", "sort_unique"])
def test_the_edges_of_compiled_models_are_named_as_they_name_them(shared_data: Path, program: str) -> None:
    folder = shared_data / "tracr" / program
    listed = json.loads((folder / "truth.json").read_text())["all_edges"]
    sizes = json.loads((folder / "config.json").read_text())
    graph = Graph(sizes["n_layers"], sizes["n_heads"], sizes["n_heads"], causal=False)
    assert [graph.index(name) for name in listed] == [(place,) for place in range(len(graph))]


def test_neurons_send_by_themselves_and_their_mlp_receives_whole() -> None:
    model = random_model(TransformerConfig(**SIZES, d_mlp=3))
    graph = Graph.of(model, neurons=True)
    assert graph.sender_names[:7] == ("input", "a0.h0", "a0.h1", "m0.n0", "m0.n1", "m0.n2", "a1.h0")
    assert "m0.n2->m1" in graph.names
    assert "a1.h0->m1" in graph.names
    assert len(graph) == len(Graph.of(model)) + 2 * (6 + 1 + 1) + 2


def test_an_edge_may_act_at_one_position() -> None:
    graph = Graph.of(random_model(TransformerConfig(**SIZES)), n_pos=5)
    assert graph.shape == (len(GRAPH), 5)
    assert len(graph) == 5 * len(GRAPH)
    assert graph.index("a0.0->m1@3") == (*GRAPH.index("a0.h0->m1"), 3)
    assert graph.name(graph.index("a0.h0->m1@3")) == "a0.h0->m1@3"


@pytest.mark.parametrize(
    ("graph", "name", "message"),
    [
        (GRAPH, "a0.h0", "expected a sender and a receiver, such as 'input->a0.h0<q>'"),
        (GRAPH, "a0.h5->m1", "unknown sender 'a0.h5'.  closest: 'a0.h"),
        (GRAPH, "a0.h0->a1.h0<w>", "unknown receiver 'a1.h0<w>'"),
        (GRAPH, "m1->m0", "no edge m1->m0: m1 writes after m0 has read"),
        (GRAPH, "m0->m1@2", "have no @ position"),
        (Graph(2, 2, 2, n_pos=3), "m0->m1", "have a position, @0 to @2"),
        (Graph(2, 2, 2, n_pos=3), "m0->m1@3", "a position from @0 to @2"),
    ],
)
def test_an_edge_that_there_is_not_is_refused_in_words(graph: Graph, name: str, message: str) -> None:
    with pytest.raises(LabError, match=re.escape(message)):
        graph.index(name)


def test_a_graph_of_what_the_model_lacks_is_refused() -> None:
    model = random_model(TransformerConfig(**SIZES, attn_only=True))
    with pytest.raises(LabError, match="has no MLPs"):
        Graph.of(model, neurons=True)
    with pytest.raises(LabError, match="n_pos=0; expected at least 1"):
        Graph.of(model, n_pos=0)


# Circuits


def random_circuit(graph: Graph, seed: int, share: float = 0.3) -> Circuit:
    return Circuit(graph, np.random.default_rng(seed).random(graph.shape) < share)


GRAPHS = st.sampled_from(
    [
        GRAPH,
        Graph(3, 2, 1, n_neurons=3),
        Graph(2, 4, 2, parallel_attn_mlp=True, n_pos=3),
        Graph(3, 2, 2, attn_only=True, n_pos=3),
        Graph(2, 1, 1, causal=False, n_pos=3),
    ]
)


@given(GRAPHS, SEEDS)
def test_a_circuit_is_the_same_after_saving(tmp_path_factory: Any, graph: Graph, seed: int) -> None:
    circuit = random_circuit(graph, seed)
    path = tmp_path_factory.mktemp("circuit") / "circuit.json"
    circuit.save(path)
    assert Circuit.load(path) == circuit


@given(GRAPHS, SEEDS, SEEDS)
def test_circuits_are_sets_of_edges(graph: Graph, one: int, other: int) -> None:
    a, b = random_circuit(graph, one), random_circuit(graph, other)
    names = set(a), set(b)
    assert set(a & b) == names[0] & names[1]
    assert set(a | b) == names[0] | names[1]
    assert set(a - b) == names[0] - names[1]
    assert len(a) == len(names[0])
    assert a.iou(b) == pytest.approx(len(names[0] & names[1]) / len(names[0] | names[1]))
    assert a.iou(a) == 1
    assert Circuit.of(graph, a) == a
    assert all(name in a for name in names[0])


def ways(graph: Graph, kept: set[str]) -> set[str]:
    """The edges on a way from the input to the logits, found by following every way, one step at a time."""

    def component(receiver: str) -> list[str]:
        if receiver == "logits":
            return ["logits"]
        name = receiver.partition("<")[0]
        if name.startswith("m"):
            return [sender for sender in graph.sender_names if sender.partition(".")[0] == name]
        head, kind = int(name.partition(".h")[2]), receiver[-2]
        group = 1 if kind == "q" else graph.n_heads // graph.n_kv_heads
        return [f"{name.partition('.')[0]}.h{head * group + i}" for i in range(group)]

    def steps(edge: str) -> list[tuple[str, int]]:
        """(component, position) that an edge leads to."""
        ends, _, pos = edge.partition("@")
        receiver, at, n = ends.partition("->")[2], int(pos or 0), graph.n_pos or 1
        kind = receiver[-2:-1] if "<" in receiver else ""
        positions = [at] if kind not in ("k", "v") else [p for p in range(n) if p >= at or not graph.causal]
        return [(name, p) for name in component(receiver) for p in positions]

    begins = {edge: (edge.partition("->")[0], int(edge.partition("@")[2] or 0)) for edge in kept}
    reached = {("input", pos) for pos in range(graph.n_pos or 1)}
    for _ in range(2 * graph.n_layers + 2):
        reached |= {step for edge in kept if begins[edge] in reached for step in steps(edge)}
    alive = {edge for edge in kept if begins[edge] in reached}
    useful = {("logits", pos) for pos in range(graph.n_pos or 1)}
    for _ in range(2 * graph.n_layers + 2):
        useful |= {begins[edge] for edge in alive if set(steps(edge)) & useful}
    return {edge for edge in alive if set(steps(edge)) & useful}


@given(GRAPHS, SEEDS, st.sampled_from([0.02, 0.05, 0.1, 0.3]))
def test_pruning_keeps_what_lies_on_a_way_from_the_input_to_the_logits(graph: Graph, seed: int, share: float) -> None:
    circuit = random_circuit(graph, seed, share)
    pruned = circuit.pruned()
    assert set(pruned) == ways(graph, set(circuit))
    assert pruned.pruned() == pruned


def test_nothing_dangles_in_a_whole_graph() -> None:
    assert Circuit.whole(GRAPH).pruned() == Circuit.whole(GRAPH)


def test_a_circuit_names_its_components_and_is_restricted_to_some() -> None:
    circuit = Circuit.of(GRAPH, ["input->a1.h0<k>", "input->m0", "m0->a1.h1<v>", "a1.h1->logits"])
    assert circuit.nodes == ("input", "m0", "a1.h0", "a1.h1", "logits")
    assert set(circuit.restrict(["inp", "m0", "a1.1", "out"])) == {"input->m0", "m0->a1.h1<v>", "a1.h1->logits"}
    assert "input->a1.h0<k>" in circuit
    assert repr(circuit) == f"Circuit(4 of {len(GRAPH)} edges, {4 / len(GRAPH):.2%}, model=None)"
    with pytest.raises(LabError, match=r"no component 'a9\.h0'"):
        circuit.restrict(["a9.h0"])


def test_a_shared_key_belongs_to_all_heads_that_read_it() -> None:
    graph = Graph(1, 4, 2)
    assert Circuit.of(graph, ["input->a0.h1<k>"]).nodes == ("input", "a0.h2", "a0.h3")


def test_a_circuit_of_another_model_is_refused(tmp_path: Path) -> None:
    model, other = (random_model(TransformerConfig(**SIZES), seed=seed) for seed in (1, 2))
    circuit = Circuit.whole(GRAPH, model)
    circuit.check(model)
    circuit.save(tmp_path / "circuit.json")
    read = Circuit.load(tmp_path / "circuit.json")
    assert (read.model, read.weights) == (circuit.model, circuit.weights)
    with pytest.raises(LabError, match="with other weights"):
        read.check(other)
    with pytest.raises(LabError, match="n_layers 2 and 1"):
        read.check(random_model(TransformerConfig(**SIZES | {"n_layers": 1})))
    with pytest.raises(LabError, match="of different graphs"):
        circuit & Circuit.whole(Graph(1, 2, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read a circuit"),
        ("[]", "is not a saved circuit"),
        ('{"format": "interp.circuit/1", "graph": {"n_layers": 1}, "edges": []}', "damaged"),
        ('{"format": "interp.circuit/1"}', "damaged"),
        (
            '{"format": "interp.circuit/1", "graph": {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1}, "edges": ["x"]}',
            "expected a sender and a receiver",
        ),
    ],
)
def test_what_is_no_circuit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "circuit.json").write_text(text)
    with pytest.raises(LabError, match=message):
        Circuit.load(tmp_path / "circuit.json")
    with pytest.raises(LabError, match="cannot read a circuit"):
        Circuit.load(tmp_path / "none.json")
