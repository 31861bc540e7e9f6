"""Our GPT and TransformerLens's bridge on the same tiny random checkpoint, one for each kind of architecture."""

from __future__ import annotations

from pathlib import Path

import torch

from models import GPT, load
from models.bridge import Bridge
from tests.parity.family_models import D_VOCAB, MAKERS

Pair = tuple[GPT, Bridge]

# Family -> the seed of its config. Layer norm and biases; keys shared by two, RMS norm and gates; parallel blocks;
# norms before and after with gains kept as their distance from 1, windows, capped scores and capped logits; the same
# without caps; norms after alone.
KINDS = {"gpt2": 0, "llama": 3, "gpt_neox": 0, "gemma2": 3, "gemma3": 3, "olmo2": 3}
VOCAB = D_VOCAB


def saved(family: str, directory: Path, seed: int | None = None) -> Path:
    """A checkpoint whose attention is far from uniform and whose gains and biases are far from trivial."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MAKERS[family](KINDS[family] if seed is None else seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def both(directory: Path) -> Pair:
    return load(str(directory)), load(str(directory), backend="transformer-lens")
