"""Every activation of a T5 model has the name and the value that TransformerLens's HookedEncoderDecoder gives.

The oracle is transformer-lens 3, the last release that has it, in another interpreter, named by INTERP_TL3_PYTHON.
Both compute in float64 with their own order of summation: 1e-10, as in `test_hooked_transformer`. Where they differ on
purpose: keys that a mask hides have the lowest finite score here.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import EncoderDecoder, EncoderDecoderConfig

PYTHON = os.environ.get("INTERP_TL3_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="needs transformer-lens 3 in another interpreter: set INTERP_TL3_PYTHON to its python"
)
SIZES = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_vocab": 11, "n_ctx": 12, "d_head": 6, "d_mlp": 20, "eps": 1e-6}
RELATIVE = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}
THEIRS = {
    "act_fn": "relu",
    "normalization_type": "RMS",
    "attention_dir": "bidirectional",
    "use_attn_scale": False,
    "tie_word_embeddings": True,
    "positional_embedding_type": "relative_positional_bias",
    "device": "cpu",
}
SOURCE = torch.tensor([[1, 5, 3, 2, 7], [4, 4, 9, 0, 10]])
TARGET = torch.tensor([[0, 2, 8, 3], [0, 6, 6, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    cfg = EncoderDecoderConfig(
        **SIZES, **RELATIVE, act_fn="relu", normalization_type="RMS", positional_embedding_type="none", attn_scale=1.0,
        attn_bias=False, mlp_bias=False, tie_embeddings=True, unembed_scale=0.25, init_range=0.3, seed=0,
    )  # fmt: skip
    return EncoderDecoder(cfg, dtype=torch.float64)


def their_weights(model: EncoderDecoder) -> dict[str, Tensor]:
    """The weights under the names and in the shapes of HookedEncoderDecoder, which has biases everywhere."""
    found = {"embed.W_E": model.W_E, "unembed.W_U": model.W_E.T, "unembed.b_U": model.b_U}
    for side, blocks in (("encoder", model.encoder), ("decoder", model.decoder)):
        found[f"{side}_final_ln.w"] = getattr(model, f"{side}_final_ln").w
        relative = getattr(model, f"{side}_positions").rel_pos_bias.weight
        found[f"{side}.0.attn.rel_pos_bias.weight"] = relative
        for layer, block in enumerate(blocks):
            at = f"{side}.{layer}"
            found |= {f"{at}.mlp.{name}": getattr(block.mlp, name) for name in ("W_in", "b_in", "W_out", "b_out")}
            norms = ("ln1", "ln2", "ln3") if side == "decoder" else ("ln1", "ln2")
            found |= {f"{at}.{norm}.w": getattr(block, norm).w for norm in norms}
            for part in ("attn", "cross_attn") if side == "decoder" else ("attn",):
                names = [f"{kind}_{of}" for kind in "Wb" for of in "QKVO"]
                found |= {f"{at}.{part}.{name}": getattr(getattr(block, part), name) for name in names}
    return {name: weight.detach().clone().contiguous() for name, weight in found.items()}


def test_every_activation_is_that_of_hooked_encoder_decoder(model: EncoderDecoder, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("config.json", "weights.safetensors", "values.safetensors")]
    files[0].write_text(json.dumps({**SIZES, **RELATIVE, **THEIRS}))
    save_file(their_weights(model) | {"source": SOURCE, "target": TARGET, "mask": MASK}, files[1])
    oracle = Path(__file__).with_name("hooked_encoder_decoder_oracle.py")
    subprocess.run([str(PYTHON), str(oracle), *map(str, files)], check=True, timeout=300)
    theirs = load_file(files[2])
    logits, cache = model.run_with_cache(SOURCE, TARGET, attention_mask=MASK, names_filter=lambda name: True)
    torch.testing.assert_close(logits, theirs.pop("logits"), atol=1e-10, rtol=0.0)
    real = MASK.bool()
    compared = 0
    for name, expected in theirs.items():
        ours = cache[name]
        of_source = name.startswith(("encoder", "hook_embed")) or name.endswith(
            ("cross_attn.hook_k", "cross_attn.hook_v")
        )
        if of_source and "pattern" not in name and "scores" not in name:
            ours, expected = ours[real], expected[real]  # a padding position sees itself here, and nobody reads it
        elif "pattern" in name or "scores" in name:
            hidden = ~real if name.startswith("encoder") or "cross" in name else torch.zeros(2, TARGET.shape[1]).bool()
            if "scores" in name:
                seen = torch.isfinite(expected) & (expected > torch.finfo(torch.float32).min) & ~hidden[:, None, None]
                if name.startswith("encoder"):
                    seen &= real[:, None, :, None]
                ours, expected = ours[seen], expected[seen]
            elif name.startswith("encoder"):
                ours, expected = ours.transpose(1, 2)[real], expected.transpose(1, 2)[real]
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0.0, msg=lambda text, name=name: f"{name}: {text}")
        compared += 1
    assert compared > 60
