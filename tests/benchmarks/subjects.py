"""The models of the benchmarks: random weights that transformers saves, loaded by transformers and by us."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from models import GPT, load

FAMILIES = ("gpt2-small", "llama-small")


def config_of(family: str) -> Any:
    """GPT-2 small as published; a Llama of about its width with 4 key/value heads for its 12 query heads."""
    if family == "gpt2-small":
        return GPT2Config()
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32000}
    return LlamaConfig(**sizes, num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=1024)


def pair(family: str, device: str = "cpu", dtype: str = "float32") -> tuple[GPT, Any]:
    """The same random weights (ours, transformers' with its fused attention); their logits agree or this raises."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    build = GPT2LMHeadModel if family == "gpt2-small" else LlamaForCausalLM
    with tempfile.TemporaryDirectory() as directory:
        build(config_of(family)).save_pretrained(directory)
        ours = load(directory, device=device, dtype=dtype)
        wanted = getattr(torch, dtype)
        peer = AutoModelForCausalLM.from_pretrained(directory, dtype=wanted, attn_implementation="sdpa")
        peer = peer.to(device).eval()
    with torch.inference_mode():
        probe = tokens(ours, 2, 16)
        tolerance = 1e-3 if dtype in ("float32", "float64") else 0.1
        torch.testing.assert_close(ours(probe), peer(probe).logits, atol=tolerance, rtol=tolerance)
    return ours, peer


def tokens(model: GPT, batch: int, positions: int) -> Tensor:
    """Random token ids on the model's device."""
    source = torch.Generator().manual_seed(1)
    return torch.randint(model.cfg.d_vocab, (batch, positions), generator=source).to(model.device)
