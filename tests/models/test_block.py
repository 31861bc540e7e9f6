"""The block of 2017, whose norms stand on the stream, against torch's and against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from analyses import ablation, edge_patching, head_attribution, path_patching
from analyses.directions import ablate_direction
from analyses.stream_weights import read, written
from interp import LabError, Site
from interp.graph import Graph
from models import GPT, TransformerConfig
from models.attention import padding_mask
from models.processing import fold_norms
from tests.pairs import random_pairs
from tests.strategies import configs, padding_masks, random_model, token_batches

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_mlp": 20, "d_vocab": 11, "n_ctx": 10}
EXACT: Any = {"atol": 1e-10, "rtol": 1e-10}  # float64; a few layers of the same products in another order


def torchs(model: GPT) -> nn.TransformerEncoder:
    """torch's encoder with the weights of the model's blocks."""
    cfg = model.cfg
    layer = nn.TransformerEncoderLayer(
        cfg.d_model, cfg.n_heads, cfg.mlp_size, 0.0, layer_norm_eps=cfg.eps, batch_first=True, dtype=torch.float64
    )
    encoder = nn.TransformerEncoder(layer, cfg.n_layers, enable_nested_tensor=False)
    for ours, theirs in zip(model.blocks, encoder.layers, strict=True):
        heads = (ours.attn.q, ours.attn.k, ours.attn.v)
        state = {
            "self_attn.in_proj_weight": torch.cat([linear.weight for linear in heads]),
            "self_attn.in_proj_bias": torch.cat([linear.bias for linear in heads]),
            "self_attn.out_proj.weight": ours.attn.o.weight,
            "self_attn.out_proj.bias": ours.attn.o.bias,
            "linear1.weight": ours.mlp.in_.weight,
            "linear1.bias": ours.mlp.in_.bias,
            "linear2.weight": ours.mlp.out.weight,
            "linear2.bias": ours.mlp.out.bias,
            **{f"norm{i}.weight": norm.w for i, norm in ((1, ours.ln1), (2, ours.ln2))},
            **{f"norm{i}.bias": norm.b for i, norm in ((1, ours.ln1), (2, ours.ln2))},
        }
        theirs.load_state_dict({name: weight.detach() for name, weight in state.items()})
    return encoder


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@given(token_batches(), padding_masks(3, 7))
def test_it_is_torchs(direction: str, tokens: Tensor, mask: Tensor) -> None:
    cfg = TransformerConfig(**SIZES, norm_places="stream", act_fn="relu", attention_dir=direction)
    model, mask = random_model(cfg, 4), mask[: tokens.shape[0], : tokens.shape[1]]
    mask = mask | ~mask.any(1, keepdim=True)
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    hidden = cache["resid_pre", 0]
    # Both let a padding position see itself, so that it stays finite.
    visible = padding_mask(mask, tokens.shape[1], cfg.causal).expand(-1, cfg.n_heads, -1, -1).flatten(0, 1)
    for layer, block in enumerate(torchs(model).layers):
        hidden = block(hidden, src_mask=~visible)
        torch.testing.assert_close(cache["normalized_resid_post", layer], hidden, **EXACT)


@given(configs(norm_places="stream", parallel_attn_mlp=False), token_batches())
def test_hook_points_are_the_sums_and_their_norms(cfg: TransformerConfig, tokens: Tensor) -> None:
    model = random_model(cfg, 5)
    logits, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        stream = cache["resid_pre", layer] + cache["attn_out", layer]
        if not cfg.attn_only:
            torch.testing.assert_close(cache["resid_mid", layer], stream, **EXACT)
            stream = block.ln1.unhooked(stream) + cache["mlp_out", layer]
        torch.testing.assert_close(cache["resid_post", layer], stream, **EXACT)
        last = block.ln1 if cfg.attn_only else block.ln2
        torch.testing.assert_close(cache["normalized_resid_post", layer], last.unhooked(stream), **EXACT)
        if layer:
            assert torch.equal(cache["resid_pre", layer], cache["normalized_resid_post", layer - 1])
    torch.testing.assert_close(model.unembed(cache["normalized_resid_post", -1]), logits, **EXACT)


def test_attention_and_mlp_at_once_leave_no_place_between_them() -> None:
    with pytest.raises(LabError, match="parallel_attn_mlp"):
        TransformerConfig(**SIZES, norm_places="stream", parallel_attn_mlp=True)


def test_what_takes_the_stream_for_a_sum_refuses_by_name() -> None:
    given_pairs = random_pairs(1)
    model = random_model(TransformerConfig(**SIZES, norm_places="stream"), 1)
    asked = [
        lambda: head_attribution(model, given_pairs),
        lambda: path_patching(model, given_pairs),
        lambda: edge_patching(model, given_pairs),
        lambda: Graph.of(model),
        lambda: ablate_direction(model, torch.ones(12)),
        lambda: written(model, Site("z", 0, 0)),
        lambda: read(model, Site("q", 0, 0)),
        lambda: fold_norms(model),
        lambda: model.tl_parameters(),
    ]
    for ask in asked:
        with pytest.raises(LabError, match="on the stream"):
            ask()
    ablation(model, given_pairs)  # what needs no sum runs
