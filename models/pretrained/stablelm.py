"""StableLM checkpoints (Bellagente et al. 2024, arXiv:2402.17834).

Llama with layer norms and a part of each head rotated; in some, attention and MLP read one norm's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, require
from models.pretrained.llama import FIXED, NORMS, shape, table
from models.pretrained.rotary import rotary, rotary_entries

_PARALLEL = (("input_layernorm", "ln1"), ("input_layernorm", "ln2"))  # attention and MLP read one norm's output
_FIXED = {name: value for name, value in FIXED.items() if name != "parallel_attn_mlp"} | {"normalization_type": "LN"}


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    norms = _PARALLEL if cfg.parallel_attn_mlp else NORMS
    biases = [Entry("norm.bias", ("ln_final.b",))]
    for i in range(cfg.n_layers):
        biases += [Entry(f"layers.{i}.{theirs}.bias", (f"blocks.{i}.{ours}.b",)) for theirs, ours in norms]
    return [*table(cfg, norms), *biases]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a StableLM config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    require(config, {"qk_layernorm": False})
    angles = rotary_entries(config)
    rotated = angles.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.25))
    sizes = shape({"num_key_value_heads": 32, **config})
    own = {
        **_FIXED,
        "eps": config.get("layer_norm_eps", 1e-5),
        "rotary_dim": int(sizes["d_head"] * rotated),
        "attn_bias": config.get("use_qkv_bias", False),
        "attn_out_bias": False,
        "mlp_bias": False,
        "parallel_attn_mlp": config.get("use_parallel_residual", False),
    }
    return TransformerConfig(**(sizes | own), **rotary(angles, config))


STABLELM = Family(
    name="StableLM",
    model_types=("stablelm",),
    architecture="StableLmForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
)
