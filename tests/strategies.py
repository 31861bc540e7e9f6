"""Random models and inputs for property-based tests.

Configs cover the parts that a model is put together from; weights are drawn wide enough that attention is far
from uniform and norms far from the identity, so that a wrong axis, a missing bias or a lost gain shows.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from models import GPT, TransformerConfig
from models.rotary_scaling import RotaryScaling

D_VOCAB = 11
N_CTX = 10

SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def configs(draw: st.DrawFn, summed: bool = False, **fixed: Any) -> TransformerConfig:
    """A small config: every kind of position, norm and MLP, shared heads, biases; `fixed` entries are kept.

    summed: the stream is the sum of what is written to it, so that no norms stand on it. One in three also has what
    only some families have (see `rare`), except what the fixed entries rule out.
    """
    n_heads = draw(st.sampled_from([2, 4]))
    positions = draw(st.sampled_from(["learned", "rotary", "sinusoidal", "none"]))
    drawn = {
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": n_heads,
        "d_model": 12,
        "d_head": draw(st.sampled_from([4, 6])),
        "d_mlp": 16,
        "d_vocab": D_VOCAB,
        "n_ctx": N_CTX,
        "n_key_value_heads": draw(st.sampled_from([None, n_heads // 2, 1])),
        "act_fn": draw(st.sampled_from(["gelu_new", "silu", "relu"])),
        "gated_mlp": draw(st.booleans()),
        "attn_only": draw(st.sampled_from([False, False, True])),
        "parallel_attn_mlp": draw(st.sampled_from([False, False, True])),
        "normalization_type": draw(st.sampled_from(["LN", "RMS", None])),
        "positional_embedding_type": positions,
        "rotary_dim": draw(st.sampled_from([None, 2])) if positions == "rotary" else None,
        "attn_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "unembed_bias": draw(st.booleans()),
    }
    drawn |= fixed
    if draw(st.sampled_from([False, False, True])):
        drawn = draw(rare(drawn, summed)) | drawn
    return TransformerConfig(**drawn)


# A cap on the logits, or norms on the stream, leave components no share of them.
SUMMED: dict[str, Any] = {"summed": True}
ADDITIVE: dict[str, Any] = {"output_logits_soft_cap": None, **SUMMED}


@st.composite
def rare(draw: st.DrawFn, drawn: dict[str, Any], summed: bool) -> dict[str, Any]:
    """Layers with a window, norms in other places, caps, scales, kinds of rotary positions, for a config as drawn."""
    places = ["pre", "post", "both"]
    if not summed and not drawn["parallel_attn_mlp"]:
        places.append("stream")
    entries: dict[str, Any] = {
        "attn_scale": draw(st.sampled_from([None, 1.5])),
        "attn_scores_soft_cap": draw(st.sampled_from([None, 2.0])),
        "output_logits_soft_cap": draw(st.sampled_from([None, 3.0])),
        "norm_places": draw(st.sampled_from(places)),
        "norm_gain_offset": draw(st.sampled_from([0.0, 1.0])) if drawn["normalization_type"] == "RMS" else 0.0,
        "embed_scale": draw(st.sampled_from([None, 3.0])),
        "attn_out_bias": draw(st.sampled_from([None, True, False])),
    }
    if drawn.get("attention_dir", "causal") == "causal":
        kinds = st.sampled_from(["global", "local"])
        entries["attn_types"] = tuple(draw(kinds) for _ in range(drawn["n_layers"]))
        entries["window_size"] = draw(st.integers(1, 4))
    return entries | (draw(rare_rotary()) if drawn["positional_embedding_type"] == "rotary" else {})


@st.composite
def rare_rotary(draw: st.DrawFn) -> dict[str, Any]:
    """Scaled angles, other pairs of coordinates, angles of their own for local layers, normalised queries and keys."""
    scalings = [None, RotaryScaling("linear", 2.0), RotaryScaling("llama3", 2.0, 6), RotaryScaling("yarn", 2.0, 30)]
    return {
        "rotary_adjacent_pairs": draw(st.booleans()),
        "rotary_scaling": draw(st.sampled_from(scalings)),
        "rotary_base_local": draw(st.sampled_from([None, 50.0])),
        "qk_norm": draw(st.sampled_from([None, "head", "width"])),
    }


def random_model(cfg: TransformerConfig, seed: int = 0, dtype: torch.dtype = torch.float64, kind: Any = GPT) -> Any:
    """A model whose every parameter, gains and biases included, is random and of order one. kind: its class."""
    model = kind(cfg, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wide = 0.45 if parameter.ndim >= 2 else 0.5
            centre = 1.0 - cfg.norm_gain_offset if name.endswith(".w") else 0.0  # the norms' gains
            parameter.copy_(centre + wide * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@st.composite
def models(draw: st.DrawFn, dtype: torch.dtype = torch.float64, **fixed: Any) -> GPT:
    """A random model of a random config; float64 unless told, so that identities hold to 1e-10."""
    return random_model(draw(configs(**fixed)), draw(SEEDS), dtype)


@st.composite
def token_batches(
    draw: st.DrawFn, d_vocab: int = D_VOCAB, max_batch: int = 3, min_pos: int = 2, max_pos: int = 7
) -> torch.Tensor:
    """Token ids, Int[Tensor, "batch pos"]."""
    shape = (draw(st.integers(1, max_batch)), draw(st.integers(min_pos, max_pos)))
    return torch.randint(d_vocab, shape, generator=torch.Generator().manual_seed(draw(SEEDS)))


@st.composite
def padding_masks(draw: st.DrawFn, batch: int, pos: int, side: str | None = None) -> torch.Tensor:
    """Bool[Tensor, "batch pos"], True for real tokens: each row padded on one side, at least one token real."""
    side = side or draw(st.sampled_from(["left", "right"]))
    rows = []
    for _ in range(batch):
        length = draw(st.integers(1, pos))
        row = [True] * length + [False] * (pos - length)
        rows.append(row if side == "right" else row[::-1])
    return torch.tensor(rows)


@torch.no_grad()
def halve_matrices(model: GPT) -> None:
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(0.5)
