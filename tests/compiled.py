"""Programs compiled to weights (`../shared/data/tracr`) as models of ours, with inputs and a metric.

What is true of them is for inputs of the greatest length, with every output that is not the start token's read.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from interp import PromptPairs
from models import GPT, TransformerConfig

PROGRAMS = ("reverse", "frac_prevs", "sort_unique")
N_PROMPTS = 48
Program = tuple[GPT, PromptPairs, Any]
"""The model, pairs of inputs, and the truth."""


def compiled(folder: Path) -> GPT:
    """A compiled program as a model of ours, in float64."""
    sizes = json.loads((folder / "config.json").read_text())
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn")
    cfg = TransformerConfig(
        **{name: sizes[name] for name in same},
        d_vocab_out=max(2, sizes["d_vocab_out"]),  # pairs of prompts have two answers; what is added stays zero
        normalization_type=None,
        attention_dir="bidirectional",
        unembed_bias=True,
        model_name=sizes["name"],
        dtype=torch.float64,
    )
    model = GPT(cfg)
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        model.embed.W_E.copy_(weights["embed.W_E"])
        model.pos_embed.W_pos.copy_(weights["pos_embed.W_pos"])
        for layer, block in enumerate(model.blocks):
            mine = {name.partition(f"blocks.{layer}.")[2]: value for name, value in weights.items()}
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
                getattr(block.attn, name).copy_(mine[f"attn.{name}"])
            for name in ("W_in", "b_in", "W_out", "b_out"):
                getattr(block.mlp, name).copy_(mine[f"mlp.{name}"])
        model.unembed.weight.zero_()[: sizes["d_vocab_out"]] = weights["unembed.W_U"].T
        model.unembed.bias.zero_()[: sizes["d_vocab_out"]] = weights["unembed.b_U"]
    return model


def inputs(folder: Path) -> torch.Tensor:
    """Random inputs of the greatest length, behind the start token."""
    sizes = json.loads((folder / "config.json").read_text())
    ids = [sizes["token_to_id"][str(token)] for token in sizes["input_tokens"]]
    choose = itertools.permutations if sizes["unique_tokens_only"] else itertools.product
    repeat = {} if sizes["unique_tokens_only"] else {"repeat": sizes["max_seq_len"]}
    every = torch.tensor(list(choose(ids, sizes["max_seq_len"]) if not repeat else choose(ids, **repeat)))
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    return torch.cat([torch.full((len(every), 1), sizes["bos_id"]), every], 1)


def program_in(folder: Path) -> Program:
    """A compiled program, pairs of its inputs, and its circuits by ablation."""
    ids = inputs(folder)
    answers = torch.zeros(N_PROMPTS, dtype=torch.long)
    pairs = PromptPairs.from_tokens(ids[:N_PROMPTS], ids[N_PROMPTS : 2 * N_PROMPTS], answers, answers + 1)
    return compiled(folder), pairs, json.loads((folder / "truth.json").read_text())


def changed_outputs(model: GPT, pairs: PromptPairs) -> Any:
    """How far the outputs are from the clean run's, start token apart: 0 in the clean run."""
    with torch.no_grad():
        expected = model(pairs.clean)[:, 1:]

    def metric(logits: torch.Tensor, asked: PromptPairs) -> torch.Tensor:
        rows = (asked.clean[:, None] == pairs.clean[None]).all(-1).int().argmax(1)
        return (logits[:, 1:] - expected[rows]).abs().amax((1, 2))

    return metric
