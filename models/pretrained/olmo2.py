"""OLMo 2 checkpoints (arXiv:2501.00656): Llama's names; norms on what a block writes, and on all queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, require
from models.pretrained.llama import FIXED, QK_NORMS, shape, table
from models.pretrained.rotary import rotary, rotary_entries

_NORMS = (("post_attention_layernorm", "ln1_post"), ("post_feedforward_layernorm", "ln2_post"))


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    return table(cfg, _NORMS + QK_NORMS)


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of an OLMo 2 config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    angles = rotary_entries(config)
    require(angles, {"partial_rotary_factor": 1.0})
    own = {"mlp_bias": False, "eps": config.get("rms_norm_eps", 1e-5), "norm_places": "post", "qk_norm": "width"}
    return TransformerConfig(**(shape(config) | own), **rotary(angles, config))


OLMO2 = Family(
    name="OLMo 2",
    model_types=("olmo2",),
    architecture="Olmo2ForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=FIXED,
    read_config=read_config,
    entries=entries,
)
