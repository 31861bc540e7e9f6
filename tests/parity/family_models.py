"""Random tiny configs of transformers, one maker a family, with what the family is about switched on.

Windows and the contexts of rotary scaling are shorter than the prompts of N_CTX tokens, keys are shared, rotation is
partial and biases are there where a family allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from transformers import GPT2Config, GPTJConfig, GPTNeoXConfig, LlamaConfig, OPTConfig, Phi3Config

N_CTX, D_VOCAB = 24, 29


def gpt2(seed: int) -> Any:
    return GPT2Config(
        vocab_size=D_VOCAB,
        n_positions=N_CTX,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_inner=Random(seed).choice([None, 20]),
        tie_word_embeddings=bool(seed % 2),
        bos_token_id=0,
        eos_token_id=0,
    )


def llama(seed: int) -> Any:
    return LlamaConfig(**common(seed), rope_parameters={"rope_type": "default", "rope_theta": 100.0})


def gpt_neox(seed: int) -> Any:
    return GPTNeoXConfig(
        vocab_size=D_VOCAB,
        max_position_embeddings=N_CTX,
        hidden_size=32,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act=Random(seed).choice(["gelu", "gelu_new", "relu"]),
        layer_norm_eps=Random(seed).choice([1e-5, 1e-2]),
        use_parallel_residual=seed % 2 == 0,
        attention_bias=seed % 3 != 1,
        tie_word_embeddings=seed % 4 == 3,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": Random(seed).choice([100.0, 10000.0]),
            "partial_rotary_factor": Random(seed).choice([0.25, 0.5, 1.0]),
        },
        bos_token_id=0,
        eos_token_id=0,
    )


def gptj(seed: int) -> Any:
    return GPTJConfig(
        vocab_size=D_VOCAB,
        n_positions=N_CTX,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=Random(seed).choice([2, 4, 8]),
        n_inner=Random(seed).choice([None, 20]),
        activation_function=Random(seed).choice(["gelu_new", "relu"]),
        layer_norm_epsilon=Random(seed).choice([1e-5, 1e-2]),
        bos_token_id=0,
        eos_token_id=0,
    )


def opt(seed: int) -> Any:
    return OPTConfig(
        vocab_size=D_VOCAB,
        max_position_embeddings=N_CTX,
        hidden_size=16,
        ffn_dim=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        activation_function=Random(seed).choice(["relu", "gelu"]),
        enable_bias=seed % 3 != 1,
        tie_word_embeddings=seed % 2 == 0,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )


def phi3(seed: int) -> Any:
    return Phi3Config(
        **common(seed),
        sliding_window=Random(seed).choice([None, 7, 7]),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": Random(seed).choice([100.0, 10000.0]),
            "partial_rotary_factor": Random(seed).choice([0.5, 1.0]),
        },
    )


def common(seed: int) -> dict[str, Any]:
    """What Llama's descendants share: heads of width 8, keys shared by all, by two or by none."""
    random = Random(seed)
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
    "llama": llama,
}
