"""Random tiny configs of transformers, one maker a family, with what the family is about switched on.

Windows and the contexts of rotary scaling are shorter than the prompts of N_CTX tokens, keys are shared, rotation is
partial and biases are there where a family allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    Starcoder2Config,
)

N_CTX, D_VOCAB = 24, 29


def drawing(family: str, seed: int) -> Random:
    """A generator of a family's own, so that its choices vary from seed to seed and from one entry to the next."""
    return Random(f"{family} {seed}")


def gpt2(seed: int) -> Any:
    random = drawing("gpt2", seed)
    return GPT2Config(
        vocab_size=D_VOCAB,
        n_positions=N_CTX,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_inner=random.choice([None, 20]),
        tie_word_embeddings=bool(seed % 2),
        bos_token_id=0,
        eos_token_id=0,
    )


def llama(seed: int) -> Any:
    return LlamaConfig(**common(seed), rope_parameters={"rope_type": "default", "rope_theta": 100.0})


def gpt_neox(seed: int) -> Any:
    random = drawing("gpt_neox", seed)
    return GPTNeoXConfig(
        vocab_size=D_VOCAB,
        max_position_embeddings=N_CTX,
        hidden_size=32,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act=random.choice(["gelu", "gelu_new", "relu"]),
        layer_norm_eps=random.choice([1e-5, 1e-2]),
        use_parallel_residual=seed % 2 == 0,
        attention_bias=seed % 3 != 1,
        tie_word_embeddings=seed % 4 == 3,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": random.choice([100.0, 10000.0]),
            "partial_rotary_factor": random.choice([0.25, 0.5, 1.0]),
        },
        bos_token_id=0,
        eos_token_id=0,
    )


def gptj(seed: int) -> Any:
    random = drawing("gptj", seed)
    return GPTJConfig(
        vocab_size=D_VOCAB,
        n_positions=N_CTX,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=random.choice([4, 8]),
        n_inner=random.choice([None, 20]),
        activation_function=random.choice(["gelu_new", "relu"]),
        layer_norm_epsilon=random.choice([1e-5, 1e-2]),
        bos_token_id=0,
        eos_token_id=0,
    )


def opt(seed: int) -> Any:
    random = drawing("opt", seed)
    return OPTConfig(
        vocab_size=D_VOCAB,
        max_position_embeddings=N_CTX,
        hidden_size=16,
        ffn_dim=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        activation_function=random.choice(["relu", "gelu"]),
        enable_bias=seed % 3 != 1,
        tie_word_embeddings=seed % 2 == 0,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )


def phi3(seed: int) -> Any:
    random = drawing("phi3", seed)
    return Phi3Config(
        **common(seed),
        sliding_window=7 if seed % 2 == 0 else None,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": random.choice([100.0, 10000.0]),
            "partial_rotary_factor": random.choice([0.5, 1.0]),
        },
    )


def phi3_long(seed: int) -> Any:
    """The first context is as long as the prompts, which transformers runs with the short factors."""
    random = drawing("phi3-longrope", seed)
    short, long = ([random.uniform(1.0, 4.0) for _ in range(4)] for _ in range(2))
    angles = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": short, "long_factor": long}
    sizes = common(seed) | {"max_position_embeddings": 4 * N_CTX}
    first = {"original_max_position_embeddings": N_CTX}
    return Phi3Config(**sizes, **first, sliding_window=None, rope_parameters=angles)


def llama_scaled(kind: str) -> Callable[[int], Any]:
    """Llama with scaled rotary angles: the first context is a third of the prompts', yarn's shares within its ramp."""
    entries = {
        "linear": {"factor": 3.0},
        "dynamic": {"factor": 3.0},
        "llama3": {"factor": 3.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": {"factor": 3.0, "beta_fast": 3.0, "beta_slow": 0.1},
    }[kind]
    first = {} if kind in ("linear", "dynamic") else {"original_max_position_embeddings": N_CTX // 3}

    def make(seed: int) -> Any:
        angles = {"rope_type": kind, "rope_theta": drawing(kind, seed).choice([20.0, 100.0]), **entries, **first}
        if kind == "yarn" and seed % 2:
            angles["attention_factor"] = 1.3
        return LlamaConfig(**common(seed), rope_parameters=angles, attention_bias=seed % 2 == 0)

    return make


def mistral(seed: int) -> Any:
    random = drawing("mistral", seed)
    return MistralConfig(**common(seed), sliding_window=7, head_dim=random.choice([None, 6]))


def qwen2(seed: int) -> Any:
    windows = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    return Qwen2Config(**common(seed), **(windows if seed % 2 == 0 else {}))


def qwen3(seed: int) -> Any:
    random = drawing("qwen3", seed)
    return Qwen3Config(**common(seed), head_dim=random.choice([6, 8]), attention_bias=seed % 2 == 0)


def olmo2(seed: int) -> Any:
    return Olmo2Config(**common(seed), attention_bias=seed % 2 == 0)


def gemma(seed: int) -> Any:
    """Narrow: gains of about 2 and no cap make wide random models amplify float32's rounding beyond any tolerance."""
    random = drawing("gemma", seed)
    act = random.choice(["gelu", "gelu_pytorch_tanh", "relu"])
    sizes = common(seed) | {"hidden_size": 16, "rms_norm_eps": random.choice([1e-3, 1e-2])}
    return GemmaConfig(**sizes, head_dim=random.choice([4, 6]), hidden_act=act, attention_bias=seed % 2 == 0)


def gemma2(seed: int) -> Any:
    random = drawing("gemma2", seed)
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    return Gemma2Config(
        **common(seed), **caps, head_dim=8, query_pre_attn_scalar=random.choice([8, 13]), sliding_window=7
    )


def gemma3(seed: int) -> Any:
    random = drawing("gemma3", seed)
    angles = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100.0},
    }
    return Gemma3TextConfig(
        **common(seed),
        head_dim=8,
        query_pre_attn_scalar=random.choice([8, 13]),
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=angles,
        final_logit_softcapping=random.choice([None, 3.0]),
    )


def starcoder2(seed: int) -> Any:
    random = drawing("starcoder2", seed)
    sizes = common(seed)
    eps = sizes.pop("rms_norm_eps")
    return Starcoder2Config(
        **sizes,
        norm_epsilon=eps,
        use_bias=seed % 3 != 1,
        sliding_window=7 if seed % 2 == 0 else None,
        hidden_act=random.choice(["gelu_pytorch_tanh", "relu"]),
    )


def stablelm(seed: int) -> Any:
    random = drawing("stablelm", seed)
    sizes = common(seed)
    eps = sizes.pop("rms_norm_eps")
    return StableLmConfig(
        **sizes,
        layer_norm_eps=eps,
        use_qkv_bias=seed % 3 != 1,
        use_parallel_residual=seed % 2 == 1,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": random.choice([0.25, 0.5, 1.0]),
        },
    )


def common(seed: int) -> dict[str, Any]:
    """What Llama's descendants share: heads of width 8, keys shared by all, by two or by none."""
    random = drawing("common", seed)
    return {
        "vocab_size": D_VOCAB,
        "max_position_embeddings": N_CTX,
        "hidden_size": 32,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": random.choice([1, 2, 4]),
        "rms_norm_eps": random.choice([1e-6, 1e-2]),
        "tie_word_embeddings": random.choice([True, False]),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


MAKERS: dict[str, Callable[[int], Any]] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
    "opt": opt,
    "phi3": phi3,
    "phi3-longrope": phi3_long,
    "llama": llama,
    "llama-linear": llama_scaled("linear"),
    "llama-dynamic": llama_scaled("dynamic"),
    "llama-llama3": llama_scaled("llama3"),
    "llama-yarn": llama_scaled("yarn"),
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "olmo2": olmo2,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "starcoder2": starcoder2,
    "stablelm": stablelm,
}
