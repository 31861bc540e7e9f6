"""The six things without which a statement about a circuit says nothing (Miller et al. 2024, arXiv:2407.08734)."""

from __future__ import annotations

from interp import provenance
from interp.graph import Graph
from interp.prompts import PromptPairs

WORDS = {
    "resample": "its value on the corrupted prompt",
    "mean": "its mean over the corrupted prompts, position by position where they correspond",
    "pooled mean": "its mean over the corrupted prompts and positions",
    "zero": "zero",
}


def six_tuple(graph: Graph, value: str, pairs: PromptPairs) -> dict[str, str]:
    """Granularity, components, ablation, positions, direction and prompts, each in words.

    value: what an ablated sender is replaced with, a key of `WORDS`.
    """
    mlps = "" if graph.attn_only else ", MLPs" if graph.n_neurons is None else ", neurons of MLPs"
    tokens = provenance.tensor_hash(pairs.clean)[:12]
    lengths = sorted({int(length) for length in pairs.mask.sum(1)})
    return {
        "granularity": "edges",
        "components": f"input, heads (queries, keys and values apart){mlps}, logits",
        "ablation": f"{value}: {WORDS[value]}",
        "positions": "all together" if graph.n_pos is None else f"each of {graph.n_pos} apart",
        "direction": "clean prompts, everything outside the circuit ablated",
        "prompts": f"{len(pairs)} of {lengths[0]}{f' to {lengths[-1]}' if lengths[1:] else ''} tokens, sha256 {tokens}",
    }
