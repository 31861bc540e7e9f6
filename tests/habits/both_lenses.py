"""A script of this folder on a model of ours, and the same file on HookedTransformer with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.hooked_transformer import HookedTransformer
from models.pretrained.places import ZOO

PYTHON = os.environ.get("INTERP_TL3_PYTHON")
needs_transformer_lens_3 = pytest.mark.skipif(
    not PYTHON, reason="needs transformer-lens 3 in another interpreter: set INTERP_TL3_PYTHON to its python"
)


def numbers_there(model: HookedTransformer, script: str, function: str, folder: Path) -> dict[str, Tensor]:
    """What the script finds in transformer-lens 3, on the weights and the tokenizer of `model`."""
    cfg = model.cfg
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "attn_only", "eps")
    config = {name: getattr(cfg, name) for name in same} | {"device": "cpu", "act_fn": cfg.act_fn}
    config |= {"normalization_type": cfg.normalization_type, "positional_embedding_type": "standard"}
    save_file({name: w.clone().contiguous() for name, w in model.state_dict().items()}, folder / "w.safetensors")
    files = {"weights": folder / "w.safetensors", "numbers": folder / "numbers.safetensors"}
    files["tokenizer"] = ZOO / cfg.model_name
    job = {"script": script, "function": function, "config": config} | {name: str(path) for name, path in files.items()}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [str(PYTHON), str(Path(__file__).with_name("in_transformer_lens.py")), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(files["numbers"])


def assert_same_numbers(here: dict[str, Tensor], there: dict[str, Tensor]) -> None:
    """Both compute in float64: 1e-8, of which a slope by differences of 1e-4 needs most. Kept in float32: 1e-6."""
    assert here.keys() == there.keys()
    different = [name for name, value in here.items() if not _same(value.detach(), there[name])]
    assert not different


def _same(ours: Tensor, theirs: Tensor) -> bool:
    close = 1e-8 if ours.dtype == torch.float64 else 1e-6
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=close, rtol=close)
