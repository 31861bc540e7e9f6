"""The fields of a `HookedTransformerConfig` (TransformerLens 2 and 3) and what they are in ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from interp.errors import LabError, choose
from models.config import TransformerConfig, dtype_named
from models.rotary_scaling import RotaryScaling

_SAME = (
    "n_layers", "d_model", "d_head", "n_ctx", "d_vocab", "d_mlp", "n_key_value_heads", "attn_only", "gated_mlp",
    "parallel_attn_mlp", "normalization_type", "eps", "rotary_base", "rotary_base_local", "rotary_adjacent_pairs",
    "attention_dir", "seed", "model_name", "default_prepend_bos",
)  # fmt: skip

# What the lab does not compute, and the value that switches it off.
OFF: dict[str, Any] = {
    "final_rms": False,
    "post_embedding_ln": False,
    "num_experts": None,
    "clip_qkv": None,
    "use_logn_attn": False,
    "use_dynamic_ntk_rope": False,
    "use_attention_sinks": False,
    "load_in_4bit": False,
    "scale_attn_by_inverse_layer_idx": False,
    "yarn_truncate": True,
}

# Read below, or without an effect on what is computed from given weights.
_READ = (
    "n_heads", "act_fn", "positional_embedding_type", "rotary_dim", "use_attn_scale", "attn_scale", "use_local_attn",
    "attn_types", "window_size", "use_qk_norm", "use_normalization_before_and_after", "original_architecture",
    "attn_scores_soft_cap", "output_logits_soft_cap", "d_vocab_out", "initializer_range", "dtype",
    "rotary_scaling_factor", "use_NTK_by_parts_rope", "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor",
    "NTK_by_parts_factor", "NTK_original_ctx_len", "use_yarn_rope", "yarn_factor", "yarn_attention_factor",
    "yarn_beta_fast", "yarn_beta_slow", "yarn_original_max_position_embeddings", "yarn_global_attn_only",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "device", "n_devices", "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in",
    "use_hook_tokens", "ungroup_grouped_query_attention", "tokenizer_name", "tokenizer_prepends_bos",
    "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "init_mode", "init_weights",
    "n_params", "trust_remote_code", "quantization_method", "experts_per_token", "norm_topk_prob", "train_seq_length",
    "relative_attention_max_distance", "relative_attention_num_buckets", "decoder_start_token_id",
    "tie_word_embeddings", "uses_rms_norm", "layer_norm_folding",
)  # fmt: skip

_ACTIVATIONS = {name: name for name in ("relu", "gelu", "silu", "gelu_new")}
_ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}  # one formula three times
_POSITIONS = {"standard": "learned", "rotary": "rotary"}
_POST_NORM = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def config_of_hooked(values: Mapping[str, Any]) -> TransformerConfig:
    """The config of a HookedTransformer: `HookedTransformerConfig.to_dict()`, or its JSON.

    Like the model that it describes it has every bias and no tied embeddings. The device is left to the caller.

    Raises:
        LabError: an entry that is unknown, missing or contradictory, or one that the lab does not compute.
    """
    lacking = [name for name in ("n_layers", "d_model", "d_head", "n_ctx") if name not in values]
    if lacking:
        raise LabError(f"the config lacks {', '.join(lacking)}; expected the sizes of a HookedTransformer.")
    for name in values:
        choose("entry of a HookedTransformerConfig", name, (*_SAME, *OFF, *_READ, *_WITHOUT_EFFECT))
    for name, off in OFF.items():
        if values.get(name, off) != off:
            raise LabError(
                f"this HookedTransformer has {name}={values[name]!r}; the lab's own code computes {name}={off!r} only."
            )
    given = {name: values[name] for name in _SAME if name in values}
    given["rotary_base"] = float(given.get("rotary_base", 10000.0))
    return TransformerConfig.from_dict(
        given
        | {"n_heads": _n_heads(values), "attn_bias": True, "mlp_bias": True, "unembed_bias": True}
        | {"attn_scores_soft_cap": _cap(values, "attn_scores_soft_cap")}
        | {"output_logits_soft_cap": _cap(values, "output_logits_soft_cap")}
        | _positions(values)
        | _norms(values)
        | _attention(values)
        | _rest(values)
    )


def _n_heads(values: Mapping[str, Any]) -> int:
    given = values.get("n_heads", -1)
    return values["d_model"] // values["d_head"] if given == -1 else given


def _cap(values: Mapping[str, Any], name: str) -> float | None:
    cap = values.get(name)
    return cap if cap is not None and cap > 0 else None


def _norms(values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("original_architecture") in _POST_NORM:
        return {"norm_places": "post", "qk_norm": "width"}
    both = values.get("use_normalization_before_and_after", False)
    return {"norm_places": "both" if both else "pre", "qk_norm": "head" if values.get("use_qk_norm") else None}


def _attention(values: Mapping[str, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    if not values.get("use_attn_scale", True):
        entries["attn_scale"] = 1.0
    elif values.get("attn_scale") not in (None, -1.0, values["d_head"] ** 0.5):
        entries["attn_scale"] = float(values["attn_scale"])
    if values.get("use_local_attn"):
        if not values.get("attn_types") or not values.get("window_size"):
            raise LabError("use_local_attn=True needs attn_types and window_size.")
        entries["attn_types"] = tuple(values["attn_types"][: values["n_layers"]])
        entries["window_size"] = values["window_size"]
    return entries


def _positions(values: Mapping[str, Any]) -> dict[str, Any]:
    kind = values.get("positional_embedding_type", "standard")
    if kind not in _POSITIONS:
        raise LabError(
            f"this HookedTransformer has positional_embedding_type={kind!r}; the lab's own code computes "
            f"{' and '.join(map(repr, _POSITIONS))} only."
        )
    if kind == "standard":
        return {"positional_embedding_type": "learned"}
    scaling, global_only = _scaling(values)
    has_local = bool(values.get("use_local_attn")) and "local" in (values.get("attn_types") or ())
    own_base = None if values.get("rotary_base_local") is None else float(values["rotary_base_local"])
    if scaling is not None and has_local and own_base is not None and not global_only:
        raise LabError(
            f"rotary_base_local={own_base} under scaled angles is not among what the lab's own code computes."
        )
    if scaling is not None and has_local and global_only and own_base is None:
        own_base = float(values.get("rotary_base", 10000.0))  # ours leaves layers with a base of their own unscaled
    return {
        "positional_embedding_type": "rotary",
        "rotary_dim": values.get("rotary_dim"),
        "rotary_base_local": own_base,
        "rotary_scaling": scaling,
    }


def _scaling(values: Mapping[str, Any]) -> tuple[RotaryScaling | None, bool]:
    """How the angles are scaled, and whether those of global layers alone are."""
    if values.get("use_NTK_by_parts_rope"):
        return RotaryScaling(
            "llama3",
            values.get("NTK_by_parts_factor", 8.0),
            values.get("NTK_original_ctx_len", 8192),
            low_freq_factor=values.get("NTK_by_parts_low_freq_factor", 1.0),
            high_freq_factor=values.get("NTK_by_parts_high_freq_factor", 4.0),
        ), False
    if values.get("use_yarn_rope"):
        return RotaryScaling(
            "yarn",
            values.get("yarn_factor", 1.0),
            values.get("yarn_original_max_position_embeddings", 4096),
            beta_fast=values.get("yarn_beta_fast", 32.0),
            beta_slow=values.get("yarn_beta_slow", 1.0),
            attention_factor=values.get("yarn_attention_factor", 1.0),
        ), bool(values.get("yarn_global_attn_only"))
    factor = values.get("rotary_scaling_factor", 1.0)
    return (RotaryScaling("linear", factor) if factor != 1.0 else None), True


def _rest(values: Mapping[str, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    if not values.get("attn_only"):
        act_fn = values.get("act_fn", "relu")
        if act_fn not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise LabError(f"this HookedTransformer has act_fn={act_fn!r}; the lab's own code computes {known} only.")
        entries["act_fn"] = _ACTIVATIONS[act_fn]
    if values.get("d_vocab", -1) < 1:
        raise LabError(f"d_vocab={values.get('d_vocab')!r}; expected the size of the vocabulary.")
    if values.get("d_vocab_out", -1) > 0:
        entries["d_vocab_out"] = values["d_vocab_out"]
    if values.get("initializer_range", -1.0) > 0:
        entries["init_range"] = float(values["initializer_range"])
    dtype = values.get("dtype", torch.float32)
    return entries | {"dtype": dtype_named(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype}
