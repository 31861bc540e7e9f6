"""Tiny random checkpoints that transformers builds and saves, for tests that load one twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB, LAYERS, HEADS, CONTEXT = 61, 2, 4, 24
FAMILIES = ("gpt2", "llama")


def tiny_hugging_face_model(family: str) -> Any:
    """A random model whose attention is far from uniform and whose gains and biases are far from trivial.

    The Llama has two key/value heads for its four query heads.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        sizes = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": 32, "vocab_size": VOCAB, "n_positions": CONTEXT}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **ends))
    else:
        sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2}
        sizes |= {"hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **ends))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def saved(family: str, directory: Path) -> Path:
    """The directory, with the model's config and weights in it, and no tokenizer."""
    tiny_hugging_face_model(family).save_pretrained(directory)
    return directory
