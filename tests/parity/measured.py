"""The README's table of errors: `python -m tests.parity.measured`.

For each family a tiny random checkpoint (4 layers, width 64, 48 positions, weights large enough that attention is far
from flat) runs in transformers and here, in each dtype, fused and with the explicit softmax. float32 and float64 are
compared with transformers in the same dtype; for bfloat16 both are compared with transformers in float64.
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from models import load

N_CTX, D_VOCAB, LAYERS = 48, 101, 4
SEEDS = range(5)


def checkpoint(family: str, seed: int, directory: str) -> None:
    """Save a random model of the family."""
    torch.manual_seed(seed)
    if family == "GPT-2":
        sizes = {"n_layer": LAYERS, "n_head": 4, "n_embd": 64, "vocab_size": D_VOCAB, "n_positions": N_CTX}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    else:
        sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
        sizes |= {"intermediate_size": 96, "vocab_size": D_VOCAB, "max_position_embeddings": N_CTX}
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.save_pretrained(directory)


@torch.no_grad()
def theirs(directory: str, dtype: torch.dtype, tokens: Tensor) -> Tensor:
    """transformers' logits."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    return model(tokens).logits.double()


@torch.no_grad()
def ours(directory: str, dtype: torch.dtype, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Our logits, by the fused kernel and by the explicit softmax."""
    model = load(directory, dtype=dtype)
    return model(tokens).double(), model.run_with_cache(tokens)[0].double()


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def row(family: str) -> str:
    """The worst errors of a family over `SEEDS`, as a row of the table."""
    worst: dict[str, float] = {}

    def keep(name: str, value: float) -> None:
        worst[name] = max(worst.get(name, 0.0), value)

    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as directory:
            checkpoint(family, seed, directory)
            tokens = torch.randint(D_VOCAB, (4, N_CTX))
            exact = theirs(directory, torch.float64, tokens)
            for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
                reference = exact if name == "float64" else theirs(directory, dtype, tokens)
                for logits in ours(directory, dtype, tokens):
                    keep(name, error(logits, reference))
            fused, explicit = ours(directory, torch.bfloat16, tokens)
            keep("bfloat16", max(error(fused, exact), error(explicit, exact)))
            keep("their bfloat16", error(theirs(directory, torch.bfloat16, tokens), exact))
    return f"| {family} | " + " | ".join(f"{value:.1e}" for value in worst.values()) + " |"


def main() -> None:
    transformers_logging.disable_progress_bar()
    print("| family | float64 | float32 | bfloat16, from float64 | transformers' bfloat16, from float64 |")
    print("|---|---|---|---|---|")
    for family in ("GPT-2", "Llama"):
        print(row(family))


if __name__ == "__main__":
    main()
