"""A cache keeps no more memory than the tensors that it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models import GPT, TransformerConfig

SHAPE: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": 41, "n_ctx": 16, "seed": 0}
KINDS = {
    "GPT-2-like": TransformerConfig(**SHAPE),
    "Llama-like": TransformerConfig(
        **SHAPE,
        n_key_value_heads=2,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=4,
        gated_mlp=True,
        act_fn="silu",
    ),
}
WAYS: dict[str, dict[str, Any]] = {
    "everything": {},
    "on demand too": {"names_filter": lambda name: True},
    "a few points": {"names_filter": ["blocks.*.attn.hook_q", "blocks.*.attn.hook_v", "blocks.1.attn.hook_z"]},
    "some positions": {"pos_slice": slice(2, 5)},
    "one position": {"pos_slice": -1},
    "gradients": {"incl_bwd": True, "return_type": "loss"},
}


def unseen_bytes(cache: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes held beyond what is shown, by the names of the tensors that hold them; tensors may share memory."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in cache.items():
        names[tensor.untyped_storage().data_ptr()].append(name)
    excess = {}
    for sharing in names.values():
        shown = max(cache[name].numel() * cache[name].itemsize for name in sharing)
        excess[", ".join(sharing)] = cache[sharing[0]].untyped_storage().nbytes() - shown
    return {sharing: unseen for sharing, unseen in excess.items() if unseen > 0}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_keeps_no_more_bytes_than_its_tensors(kind: str, way: str) -> None:
    model = GPT(KINDS[kind])
    tokens = torch.randint(41, (3, 12), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens, **WAYS[way])
    assert unseen_bytes(dict(cache.items())) == {}


def test_a_view_of_a_larger_tensor_would_be_noticed() -> None:
    large = torch.zeros(10, 10)
    assert unseen_bytes({"row": large[0], "all": torch.zeros(3)}) == {"row": 360}
