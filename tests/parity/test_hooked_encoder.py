"""Every hook point of the encoder holds what TransformerLens's HookedEncoder has at the point of that name."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import BERT, BertConfig
from tests.strategies import random_model

PYTHON = os.environ.get("INTERP_TL3_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="needs transformer-lens 3 in another interpreter: set INTERP_TL3_PYTHON to its python"
)
SIZES: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 16,
    "d_head": 4,
    "d_mlp": 20,
    "d_vocab": 11,
    "n_ctx": 8,
}
TOKENS = torch.tensor([[1, 5, 3, 2, 7], [4, 4, 9, 0, 10]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
# Where the two have other names; masked scores are the lowest finite number here, and there -inf.
THEIRS = {
    "hook_embed": "embed.hook_embed",
    "hook_pos_embed": "embed.hook_pos_embed",
    "hook_token_type_embed": "embed.hook_token_type_embed",
    "embed_ln": "embed.ln",
    "ln_final.ln": "mlm_head.ln",
}
ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")


def weights(model: BERT) -> dict[str, Tensor]:
    """The weights under HookedEncoder's names."""
    found = {
        "embed.embed.W_E": model.W_E,
        "embed.pos_embed.W_pos": model.W_pos,
        "embed.token_type_embed.W_token_type": model.token_type_embed.W_token_type,
        "mlm_head.W": model.ln_final.dense.weight.T,
        "mlm_head.b": model.ln_final.dense.bias,
        "unembed.W_U": model.W_U,
        "unembed.b_U": model.b_U,
    }
    norms = {"embed.ln": model.embed_ln, "mlm_head.ln": model.ln_final.ln}
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}"
        norms |= {f"{at}.ln1": block.ln1, f"{at}.ln2": block.ln2}
        found |= {f"{at}.attn.{name}": getattr(block.attn, name) for name in ATTENTION}
        found |= {f"{at}.mlp.{name}": getattr(block.mlp, name) for name in ("W_in", "b_in", "W_out", "b_out")}
    for name, norm in norms.items():
        found |= {f"{name}.w": norm.w, f"{name}.b": norm.b}
    return {name: weight.detach().clone().contiguous() for name, weight in found.items()}


def test_every_activation_is_hooked_encoders(tmp_path: Path) -> None:
    model = random_model(BertConfig(**SIZES, tie_embeddings=False), 3, kind=BERT)
    assert PYTHON is not None
    places = [tmp_path / name for name in ("config.json", "inputs.safetensors", "values.safetensors")]
    about = {"act_fn": "gelu", "normalization_type": "LN", "attention_dir": "bidirectional", "eps": model.cfg.eps}
    places[0].write_text(json.dumps(SIZES | about))
    save_file(weights(model) | {"tokens": TOKENS, "segments": SEGMENTS, "mask": MASK}, places[1])
    script = Path(__file__).with_name("hooked_encoder_oracle.py")
    done = subprocess.run([PYTHON, str(script), *map(str, places)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = load_file(places[2])
    logits, cache = model.run_with_cache(TOKENS, token_type_ids=SEGMENTS, attention_mask=MASK)
    real = MASK.bool()
    torch.testing.assert_close(logits[real], expected["logits"][real], atol=1e-10, rtol=1e-10)
    compared = 0
    for name, ours in cache.items():
        prefix = next((ours_ for ours_ in THEIRS if name.startswith(ours_)), None)
        theirs = expected[name if prefix is None else name.replace(prefix, THEIRS[prefix])]
        if "hook_attn_scores" in name:
            continue
        # A padding position sees itself alone here, and the real ones there; nobody reads it.
        rows = ours.movedim(2, 1) if "hook_pattern" in name else ours
        others = theirs.movedim(2, 1) if "hook_pattern" in name else theirs
        torch.testing.assert_close(
            rows[real], others[real], atol=1e-10, rtol=1e-10, msg=lambda text, at=name: f"{at}: {text}"
        )
        compared += 1
    assert compared >= 40
