"""TransformerLens's own tools run on our GPT as they are, and agree with ours.

They know a model by the structural protocol of `transformer_lens.model_protocol` alone. Tolerance: 1e-5 absolute in
float32; both sides read the same model, one forward a site there and a batch of rows here.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses import activation_patching, head_scores
from interp.metrics import logit_diff
from interp.prompts import PromptPairs
from models import GPT, TransformerConfig
from models.tokenizers import characters
from tests.strategies import random_model

CLOSE = 1e-5
# One letter is one token; several occur twice, so every role of a head is defined.
TEXT = "the cat and the dog and the cat"
ROLES = ("previous_token", "duplicate_token", "induction")


def _model(**shape: Any) -> GPT:
    tokenizer = characters(string.ascii_lowercase + " ")
    cfg = TransformerConfig(n_layers=2, n_heads=4, d_model=24, d_vocab=len(tokenizer), n_ctx=40, **shape)
    model = random_model(cfg, seed=5, dtype=torch.float32)
    model.tokenizer = tokenizer
    return model


PLAIN = {"act_fn": "gelu_new"}
SHARED = {"n_key_value_heads": 2, "positional_embedding_type": "rotary", "normalization_type": "RMS", "gated_mlp": True}


@pytest.fixture(scope="module", params=[PLAIN, SHARED], ids=["gpt2-like", "llama-like"])
def model(request: pytest.FixtureRequest) -> GPT:
    return _model(**request.param)


@pytest.fixture(scope="module")
def pairs(model: GPT) -> PromptPairs:
    clean, corrupted = ["cat", "dog"], ["cow", "dig"]
    return PromptPairs.from_text(model, clean, corrupted, right=["s", "e"], wrong=["b", "i"])


def test_our_gpt_is_a_model_in_transformer_lenss_eyes(model: GPT) -> None:
    from transformer_lens.model_protocol import TransformerLensModel, TransformerLensModelWithWeights

    assert isinstance(model, TransformerLensModel)
    assert isinstance(model, TransformerLensModelWithWeights)


# Its function -> our site and the axes that are told apart.
PATCHING = {
    "get_act_patch_resid_pre": ("resid_pre", ("layer", "pos")),
    "get_act_patch_resid_mid": ("resid_mid", ("layer", "pos")),
    "get_act_patch_attn_out": ("attn_out", ("layer", "pos")),
    "get_act_patch_mlp_out": ("mlp_out", ("layer", "pos")),
    "get_act_patch_attn_head_out_all_pos": ("z", ("layer", "head")),
    "get_act_patch_attn_head_q_all_pos": ("q", ("layer", "head")),
    "get_act_patch_attn_head_k_all_pos": ("k", ("layer", "head")),
    "get_act_patch_attn_head_v_all_pos": ("v", ("layer", "head")),
    "get_act_patch_attn_head_pattern_all_pos": ("pattern", ("layer", "head")),
    "get_act_patch_attn_head_pattern_by_pos": ("pattern", ("layer", "head", "pos")),
}


@pytest.mark.parametrize("function", PATCHING)
def test_its_patching_gives_our_values(model: GPT, pairs: PromptPairs, function: str) -> None:
    from transformer_lens import patching

    site, axes = PATCHING[function]
    metric: Callable[[Tensor], Tensor] = lambda logits: logit_diff(logits, pairs).mean()  # noqa: E731
    with torch.no_grad():
        _, clean = model.run_with_cache(pairs.clean)
        theirs = getattr(patching, function)(model, pairs.corrupted, clean, metric)
    ours = activation_patching(model, pairs, site=site, by=axes, normalize=False)
    assert np.ptp(ours.values) > 100 * CLOSE
    np.testing.assert_allclose(theirs.numpy(), ours.values, atol=CLOSE, rtol=CLOSE)


def test_its_head_detector_gives_our_scores(model: GPT) -> None:
    """Its score is a share of all attention of the prompt, ours a mean over the queries that have one."""
    from transformer_lens.head_detector import detect_head

    tokens = model.to_tokens(TEXT)
    n = tokens.shape[1]
    ours = head_scores(model, tokens)
    with torch.no_grad():
        total = {role: n * detect_head(model, TEXT, f"{role}_head") for role in ROLES}
        _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    first = torch.stack([cache["pattern", layer][:, 1, 0] for layer in range(model.cfg.n_layers)])
    earlier_equal = (tokens[0][:, None] == tokens[0][None, :]).tril(-1)
    defined = int(earlier_equal.any(-1).sum())
    expected = {
        "previous_token": ours.previous * (n - 2) + first.numpy(),  # ours leaves out the first query that has one
        "duplicate_token": ours.duplicate * defined,
        "induction": ours.induction * defined,
    }
    for role, value in expected.items():
        np.testing.assert_allclose(total[role].numpy(), value, atol=n * CLOSE, rtol=0, err_msg=role)


def test_its_head_detector_accepts_our_cache_and_the_absolute_error(model: GPT) -> None:
    from transformer_lens.head_detector import detect_head

    with torch.no_grad():
        _, cache = model.run_with_cache(model.to_tokens(TEXT), remove_batch_dim=True)
        scores = detect_head(model, TEXT, "induction_head", cache=cache, error_measure="abs")
        assert torch.equal(scores, detect_head(model, TEXT, "induction_head", error_measure="abs"))
    assert scores.shape == (model.cfg.n_layers, model.cfg.n_heads)
