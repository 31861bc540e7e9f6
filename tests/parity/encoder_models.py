"""Tiny random Hugging Face encoders, one of each family, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

D_VOCAB, N_CTX = 31, 12


def bert(seed: int, **own: Any) -> nn.Module:
    """With two or three segments, and for odd seeds other functions, another epsilon and an unembedding of its own."""
    odd = bool(seed % 2)
    sizes = {"vocab_size": D_VOCAB, "max_position_embeddings": N_CTX, "hidden_size": 16, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 20, "type_vocab_size": 2 + odd}
    other = {"hidden_act": "relu", "layer_norm_eps": 1e-5, "tie_word_embeddings": False} if odd else {}
    return BertForMaskedLM(BertConfig(**sizes | other | own))


def roberta(seed: int) -> nn.Module:
    """Whose positions begin at the third row, and whose head has its own activation function."""
    odd = bool(seed % 2)
    sizes = {"vocab_size": D_VOCAB, "max_position_embeddings": N_CTX + 2, "hidden_size": 16, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 24, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return RobertaForMaskedLM(RobertaConfig(**sizes, hidden_act="gelu_new" if odd else "gelu"))


def distilbert(seed: int) -> nn.Module:
    odd = bool(seed % 2)
    sizes = {"vocab_size": D_VOCAB, "max_position_embeddings": N_CTX, "dim": 16, "n_layers": 3, "n_heads": 4}
    return DistilBertForMaskedLM(
        DistilBertConfig(**sizes, hidden_dim=20, activation="relu" if odd else "gelu", sinusoidal_pos_embds=odd)
    )


MAKERS: dict[str, Callable[[int], nn.Module]] = {"bert": bert, "roberta": roberta, "distilbert": distilbert}


def made(family: str, seed: int, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose every parameter, gains and biases included, is random and wide enough to show."""
    torch.manual_seed(seed)
    model = MAKERS[family](seed).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_((1.0 if gain else 0.0) + 0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def saved(family: str, seed: int, folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """The same, also in a folder."""
    model = made(family, seed, dtype)
    model.save_pretrained(folder)
    return model


def drawn(seed: int, batch: int = 3, length: int = 7) -> Tensor:
    """Token ids without those of padding and its kin."""
    return torch.randint(4, D_VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
