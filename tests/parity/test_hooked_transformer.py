"""Every shared hook point, gradient and residual method has the value that HookedTransformer gives.

The oracle is transformer-lens 3, the last release with `HookedTransformer`, which cannot be installed beside the
lab's own transformer-lens: it runs in another interpreter, named by INTERP_TL3_PYTHON.

Tolerance: both sides compute in float32 with their own order of summation; activations are of order one to ten
and some hundred terms long, so 1e-4 absolute plus 1e-4 relative is a dozen roundings of the largest.
"""

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

from interp import ActivationCache
from models import GPT, TransformerConfig
from tests.strategies import random_model

PYTHON = os.environ.get("INTERP_TL3_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="needs transformer-lens 3 in another interpreter: set INTERP_TL3_PYTHON to its python"
)
CLOSE: Any = {"atol": 1e-4, "rtol": 1e-4}
TOKENS = [[1, 5, 3, 2, 7], [4, 4, 9, 0, 10]]
RIGHT, WRONG = [3, 6], [8, 1]
GPT2 = TransformerConfig(n_layers=2, n_heads=4, d_model=16, d_vocab=11, n_ctx=8, d_mlp=20)
LLAMA = TransformerConfig(
    n_layers=2,
    n_heads=4,
    n_key_value_heads=2,
    d_model=16,
    d_vocab=11,
    n_ctx=8,
    d_mlp=20,
    act_fn="silu",
    gated_mlp=True,
    mlp_bias=False,  # theirs would be added elsewhere in a gated MLP
    normalization_type="RMS",
    positional_embedding_type="rotary",
)
ON_DEMAND = {"split": ["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"]}


class Oracle:
    """One model of ours, and what HookedTransformer computes from its weights."""

    def __init__(self, cfg: TransformerConfig, folder: Path) -> None:
        self.model = random_model(cfg, seed=11, dtype=torch.float32)
        self.tokens = torch.tensor(TOKENS)
        grouped = cfg.n_kv_heads != cfg.n_heads
        runs = ON_DEMAND if grouped else ON_DEMAND | {"attn_in": ["use_attn_in"]}
        job = {"config": _their_config(cfg), "tokens": TOKENS, "right": RIGHT, "wrong": WRONG, "runs": runs}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        save_file(_their_weights(self.model), folder / "weights.safetensors")
        script = Path(__file__).with_name("hooked_transformer_oracle.py")
        files = [str(folder / name) for name in ("job.json", "weights.safetensors", "values.safetensors")]
        done = subprocess.run([str(PYTHON), str(script), *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        self.values = load_file(folder / "values.safetensors")
        _, self.cache = self.model.run_with_cache(self.tokens, return_type="loss", incl_bwd=True)

    def run(self, label: str) -> dict[str, Tensor]:
        return {name.removeprefix(f"{label}/"): v for name, v in self.values.items() if name.startswith(f"{label}/")}


@pytest.fixture(scope="module", params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(request.param, tmp_path_factory.mktemp("oracle"))


def _their_config(cfg: TransformerConfig) -> dict[str, Any]:
    same = ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx", "d_head", "d_mlp", "n_key_value_heads", "act_fn")
    same += ("gated_mlp", "normalization_type", "eps", "rotary_base", "rotary_dim")
    positions = {"learned": "standard", "rotary": "rotary"}[cfg.positional_embedding_type]
    return {name: getattr(cfg, name) for name in same} | {"positional_embedding_type": positions, "device": "cpu"}


def _their_weights(model: GPT) -> dict[str, Tensor]:
    grouped = "_" if model.cfg.n_kv_heads != model.cfg.n_heads else ""
    weights = {"embed.W_E": model.W_E, "unembed.W_U": model.W_U, "unembed.b_U": model.b_U}
    if model.cfg.positional_embedding_type == "learned":
        weights["pos_embed.W_pos"] = model.W_pos
    norms = {"ln_final": model.ln_final}
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}"
        norms |= {f"{at}.ln1": block.ln1, f"{at}.ln2": block.ln2}
        weights |= {f"{at}.attn.{name}": getattr(block.attn, name) for name in ("W_Q", "W_O", "b_Q", "b_O")}
        weights |= {f"{at}.attn.{grouped}{name}": getattr(block.attn, name) for name in ("W_K", "W_V", "b_K", "b_V")}
        weights |= {f"{at}.mlp.{name}": getattr(block.mlp, name) for name in ("W_in", "b_in", "W_out", "b_out")}
        if model.cfg.gated_mlp:
            weights[f"{at}.mlp.W_gate"] = block.mlp.W_gate
    for name, norm in norms.items():
        weights |= {f"{name}.{entry}": value for entry, value in norm.named_parameters()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}


def _assert_same(ours: Tensor, theirs: Tensor, name: str) -> None:
    if name.endswith("hook_attn_scores"):  # theirs are -inf behind the mask, ours the lowest finite number
        hidden = theirs.isinf()
        assert (ours[hidden] == torch.finfo(ours.dtype).min).all()
        ours, theirs = ours[~hidden], theirs[~hidden]
    torch.testing.assert_close(ours, theirs, msg=lambda detail: f"{name}: {detail}", **CLOSE)


def test_logits(oracle: Oracle) -> None:
    _assert_same(oracle.model(oracle.tokens), oracle.values["logits"], "logits")


def test_every_hook_point_has_the_same_name_shape_and_value(oracle: Oracle) -> None:
    theirs = oracle.run("plain")
    points = {name for name in theirs if not name.endswith("_grad")}
    assert points - {"unembed.hook_in", "unembed.hook_out"} == {n for n in oracle.cache if not n.endswith("_grad")}
    for name in points & set(oracle.cache):
        _assert_same(oracle.cache[name], theirs[name], name)


def test_every_gradient_has_the_same_value(oracle: Oracle) -> None:
    # Theirs runs ln1 three times, for queries, keys and values, and keeps the last one's share of the gradient.
    grads = {name: value for name, value in oracle.run("plain").items() if name.endswith("_grad")}
    theirs = {name: value for name, value in grads.items() if ".ln1." not in name}
    assert len(theirs) > 20
    for name in set(theirs) & set(oracle.cache):
        _assert_same(oracle.cache[name], theirs[name], name)


@pytest.mark.parametrize("run", ["split", "attn_in"])
def test_points_on_demand_have_the_same_value_and_gradient(oracle: Oracle, run: str) -> None:
    theirs = oracle.run(run)
    points = [n for n, p in oracle.model.hook_dict.items() if p.on_demand and n in theirs and "unembed" not in n]
    if run == "attn_in" and not theirs:
        pytest.skip("shared keys and values: hook_attn_in does not exist")
    expected = {"split": ("q_input", "k_input", "v_input", "mlp_in", "result"), "attn_in": ("attn_in",)}[run]
    assert len(points) == len(expected) * oracle.model.cfg.n_layers
    _, forward = oracle.model.run_with_cache(oracle.tokens, names_filter=points)
    _, both = oracle.model.run_with_cache(oracle.tokens, names_filter=points, return_type="loss", incl_bwd=True)
    for name in points:
        _assert_same(forward[name], theirs[name], name)
        _assert_same(both[name], theirs[name], name)
        _assert_same(both[f"{name}_grad"], theirs[f"{name}_grad"], f"{name}_grad")


METHODS: dict[str, Any] = {
    "accumulated": lambda cache: cache.accumulated_resid(incl_mid=True),
    "accumulated_normed": lambda cache: cache.accumulated_resid(apply_ln=True),
    "accumulated_at_1": lambda cache: cache.accumulated_resid(1, apply_ln=True, incl_mid=True),
    "decomposed": lambda cache: cache.decompose_resid(),
    "decomposed_at_1": lambda cache: cache.decompose_resid(1, mlp_input=True, apply_ln=True),
    "decomposed_normed_last": lambda cache: cache.decompose_resid(apply_ln=True, pos_slice=-1),
    "heads": lambda cache: cache.stack_head_results(incl_remainder=True),
    "heads_at_1": lambda cache: cache.stack_head_results(1, pos_slice=[0, 2], apply_ln=True),
    "neurons": lambda cache: cache.stack_neuron_results(-1, incl_remainder=True, neuron_slice=slice(1, 4)),
    "full": lambda cache: cache.get_full_resid_decomposition(pos_slice=slice(1, 3)),
    "full_mlps": lambda cache: cache.get_full_resid_decomposition(expand_neurons=False, apply_ln=True),
    "logit_attrs": lambda cache: cache.logit_attrs(cache.decompose_resid(), torch.tensor(TOKENS)),
    "logit_attrs_difference": lambda cache: cache.logit_attrs(
        cache.stack_head_results(pos_slice=-1), torch.tensor(RIGHT), torch.tensor(WRONG), pos_slice=-1
    ),
}

FOLDED: dict[str, Any] = {
    "accumulated_at_1": lambda model: model.blocks[1].ln1,
    "decomposed_at_1": lambda model: model.blocks[1].ln2,
    "decomposed_normed_last": lambda model: model.ln_final,
    "heads_at_1": lambda model: model.blocks[1].ln1,
    "full_mlps": lambda model: model.ln_final,
}


@pytest.mark.parametrize("method", METHODS)
def test_residual_arithmetic(oracle: Oracle, method: str) -> None:
    cache = oracle.cache
    assert isinstance(cache, ActivationCache)
    theirs = oracle.values[f"method/{method}"]
    if method in FOLDED:  # theirs leaves the gain of the norm to the weights behind it, where folding puts it
        theirs = theirs * FOLDED[method](oracle.model).w.detach()
    _assert_same(METHODS[method](cache).detach(), theirs, method)
