"""Every hook point, gradient, processed weight and method of the cache has the value that HookedTransformer gives.

The oracle is transformer-lens 3, the last release with `HookedTransformer`, which cannot be installed beside the
lab's own transformer-lens: it runs in another interpreter, named by INTERP_TL3_PYTHON, once for all models here.

Tolerance: both sides compute in float64 with their own order of summation; activations are of order one to ten and
some hundred terms long, so 1e-10 is a hundred thousand roundings, and a thousandth of what a float32 step would cost.

Where the lab differs on purpose, a test says so: masked scores are the lowest finite number, not -inf; ln1 fires once
and not once for queries, keys and values each; normalised queries and keys keep their axes; the gain of a norm that is
not folded belongs to what the norm gives.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp import ActivationCache
from models import GPT, TransformerConfig, load, processing
from models.hooked_transformer.weights import to_hooked
from tests.strategies import random_model

PYTHON = os.environ.get("INTERP_TL3_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="needs transformer-lens 3 in another interpreter: set INTERP_TL3_PYTHON to its python"
)
CLOSE: Any = {"atol": 1e-10, "rtol": 1e-10}
TOKENS = [[1, 5, 3, 2, 7], [4, 4, 9, 0, 10]]
RIGHT, WRONG = [3, 6], [8, 1]
SIZES: Any = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_vocab": 11, "n_ctx": 8, "d_mlp": 20, "unembed_bias": True}
ROTARY: Any = {"positional_embedding_type": "rotary"}
MODELS = {
    "gpt2": TransformerConfig(**SIZES),
    "llama": TransformerConfig(
        **SIZES, **ROTARY, n_key_value_heads=2, act_fn="silu", gated_mlp=True, mlp_bias=False, normalization_type="RMS"
    ),
    "neox": TransformerConfig(**SIZES, **ROTARY, rotary_dim=2, parallel_attn_mlp=True, act_fn="gelu"),
    "gptj": TransformerConfig(
        **SIZES, **ROTARY, rotary_dim=2, rotary_adjacent_pairs=True, parallel_attn_mlp=True, attn_bias=False
    ),
    "attn-only": TransformerConfig(**SIZES, attn_only=True),
    "gemma": TransformerConfig(
        **SIZES | {"unembed_bias": False}, **ROTARY, n_key_value_heads=2, gated_mlp=True, mlp_bias=False,
        attn_bias=False, normalization_type="RMS", norm_places="both", norm_gain_offset=1.0, embed_scale=4.0,
        qk_norm="head", attn_types=("local", "global"), window_size=2, attn_scores_soft_cap=2.0,
    ),
}  # fmt: skip

Method = tuple[str, dict[str, Any]]
METHODS: dict[str, Method] = {
    "accumulated": ("accumulated_resid", {"return_labels": True}),
    "accumulated_normed": ("accumulated_resid", {"apply_ln": True}),
    "accumulated_at_1": ("accumulated_resid", {"layer": 1, "apply_ln": True, "pos_slice": [0, 2]}),
    "decomposed": ("decompose_resid", {"return_labels": True}),
    "decomposed_attn": ("decompose_resid", {"mode": "attn", "incl_embeds": False, "return_labels": True}),
    "decomposed_normed_last": ("decompose_resid", {"apply_ln": True, "pos_slice": -1}),
    "heads": ("stack_head_results", {"layer": -1, "incl_remainder": True, "return_labels": True}),
    "heads_at_1": ("stack_head_results", {"layer": 1, "pos_slice": [0, 2], "apply_ln": True, "return_labels": True}),
    "full_mlps": ("get_full_resid_decomposition", {"expand_neurons": False, "apply_ln": True, "return_labels": True}),
    "heads_between": ("stack_head_results", {"layer": -1, "pos_slice": (1, 3)}),  # a tuple bounds a slice
    "stacked_z": ("stack_activation", {"activation_name": "z"}),
    "stacked_scale": ("stack_activation", {"activation_name": "scale", "sublayer_type": "ln1"}),
}
WITH_MLPS: dict[str, Method] = {
    "decomposed_mlp": ("decompose_resid", {"mode": "mlp", "return_labels": True}),
    "each_neuron": ("get_neuron_results", {"layer": 1, "pos_slice": -1}),
    "neurons": ("stack_neuron_results", {"layer": -1, "incl_remainder": True, "return_labels": True}),
    "neurons_at_1": ("stack_neuron_results", {"layer": 1, "neuron_slice": [1, 4], "pos_slice": 2, "apply_ln": True}),
    "full": ("get_full_resid_decomposition", {"layer": -1, "return_labels": True}),
    "full_at_1": ("get_full_resid_decomposition", {"layer": 1, "pos_slice": -2, "return_labels": True}),
}
SERIAL: dict[str, Method] = {  # in parallel blocks there is no middle, and theirs adds attention to what the MLP reads
    "accumulated_mid": ("accumulated_resid", {"incl_mid": True, "return_labels": True}),
    "accumulated_mlp_input": ("accumulated_resid", {"layer": 1, "incl_mid": True, "apply_ln": True, "mlp_input": True}),
    "decomposed_at_1": ("decompose_resid", {"layer": 1, "mlp_input": True, "apply_ln": True, "return_labels": True}),
    "full_mlp_input": ("get_full_resid_decomposition", {"layer": 1, "mlp_input": True, "return_labels": True}),
}
# Theirs leaves the gain of a norm that is not folded to the weights behind it, where ours gives what the norm gives.
GAINS: dict[str, Callable[[GPT], Any]] = {
    "accumulated_at_1": lambda model: model.blocks[1].ln1,
    "accumulated_mlp_input": lambda model: model.blocks[1].ln2,
    "decomposed_at_1": lambda model: model.blocks[1].ln2,
    "decomposed_normed_last": lambda model: model.ln_final,
    "heads_at_1": lambda model: model.blocks[1].ln1,
    "neurons_at_1": lambda model: model.blocks[1].ln1,
    "full_mlps": lambda model: model.ln_final,
}
# A norm after attention rescales its heads: theirs gives what they write before it, ours their part of the stream.
SPLIT = (
    "heads",
    "heads_at_1",
    "heads_between",
    "each_neuron",
    "neurons",
    "neurons_at_1",
    "full",
    "full_mlps",
    "full_at_1",
    "full_mlp_input",
)


def methods_of(cfg: TransformerConfig) -> dict[str, Method]:
    """The methods that theirs computes as it says for a model of this shape."""
    found = METHODS if cfg.attn_only else METHODS | WITH_MLPS
    found = found if cfg.attn_only or cfg.parallel_attn_mlp else found | SERIAL
    return {name: method for name, method in found.items() if cfg.norm_places == "pre" or name not in SPLIT}


def their_config(cfg: TransformerConfig) -> dict[str, Any]:
    """The arguments of `HookedTransformerConfig` for a model of ours."""
    same = ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx", "d_head", "d_mlp", "act_fn", "attn_only", "gated_mlp")
    same += ("parallel_attn_mlp", "normalization_type", "eps", "rotary_base", "rotary_dim", "rotary_adjacent_pairs")
    same += ("n_key_value_heads", "window_size", "attn_types")
    positions = {"learned": "standard", "rotary": "rotary"}[cfg.positional_embedding_type]
    return {name: getattr(cfg, name) for name in same} | {
        "positional_embedding_type": positions,
        "use_local_attn": cfg.attn_types is not None,
        "use_qk_norm": cfg.qk_norm == "head",
        "use_normalization_before_and_after": cfg.norm_places == "both",
        "attn_scores_soft_cap": cfg.attn_scores_soft_cap or -1.0,
        "device": "cpu",
        "dtype": "float64",
    }


def flags_of(cfg: TransformerConfig) -> dict[str, list[str]]:
    """The runs that theirs needs for the points that are not always there."""
    split = ["use_attn_result", "use_split_qkv_input", *([] if cfg.attn_only else ["use_hook_mlp_in"])]
    return {"split": split} | ({} if cfg.n_kv_heads != cfg.n_heads else {"attn_in": ["use_attn_in"]})


def _with_bounds(value: Any) -> Any:
    """For JSON, which would make a list of a tuple that bounds a slice."""
    if isinstance(value, dict):
        value = {
            name: {"bounds": list(v)} if isinstance(v, tuple) and name == "pos_slice" else v
            for name, v in value.items()
        }
        return {name: _with_bounds(each) for name, each in value.items()}
    return [_with_bounds(each) for each in value] if isinstance(value, list | tuple) else value


class Answers:
    """What HookedTransformer computes from the weights of our models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {name: random_model(cfg, seed=11) for name, cfg in MODELS.items()}
        jobs = {
            name: {
                **{"config": their_config(cfg), "tokens": TOKENS, "right": RIGHT, "wrong": WRONG},
                **{"runs": flags_of(cfg), "methods": methods_of(cfg)},
            }
            for name, cfg in MODELS.items()
        }
        weights = {f"{name}/{key}": t for name, model in self.models.items() for key, t in to_hooked(model).items()}
        (folder / "jobs.json").write_text(json.dumps(_with_bounds(jobs)), encoding="utf-8")
        save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, folder / "weights")
        script = Path(__file__).with_name("hooked_transformer_oracle.py")
        files = [str(folder / name) for name in ("jobs.json", "weights", "values")]
        done = subprocess.run([str(PYTHON), str(script), *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]  # before it, its warnings
        self.values = load_file(folder / "values")
        with safe_open(folder / "values", framework="pt") as file:
            self.labels = json.loads(file.metadata()["labels"])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(tmp_path_factory.mktemp("oracle"))


class Subject:
    """One model of ours, as it is or folded, with the answers for it."""

    def __init__(self, answers: Answers, name: str, stage: str) -> None:
        self.name, self.stage, self.values = name, stage, answers.values
        self.labels = {key.removeprefix(f"{name}/{stage}/"): value for key, value in answers.labels.items()}
        self.model = deepcopy(answers.models[name])
        self.skipped = processing.process_weights(self.model) if stage == "folded" else {}
        self.tokens = torch.tensor(TOKENS)

    def under(self, path: str) -> dict[str, Tensor]:
        start = f"{self.name}/{self.stage}/{path}/"
        return {key.removeprefix(start): value for key, value in self.values.items() if key.startswith(start)}

    def cache(self, names: Any, **settings: Any) -> ActivationCache:
        _, cache = self.model.run_with_cache(self.tokens, names_filter=names, **settings)
        assert isinstance(cache, ActivationCache)
        return cache


@pytest.fixture(
    scope="module", params=[(name, stage) for name in MODELS for stage in ("plain", "folded")], ids="-".join
)
def subject(request: pytest.FixtureRequest, answers: Answers) -> Subject:
    return Subject(answers, *request.param)


def _assert_same(ours: Tensor, theirs: Tensor, name: str) -> None:
    if name.endswith("hook_attn_scores"):  # theirs are -inf behind the mask, ours the lowest finite number
        hidden = theirs.isinf()
        assert (ours[hidden] == torch.finfo(ours.dtype).min).all()
        ours, theirs = ours[~hidden], theirs[~hidden]
    if ".attn.q_norm." in name or ".attn.k_norm." in name:  # theirs has one axis for batch, position and head
        assert ours.shape[-1] == theirs.shape[-1]
        theirs = theirs.reshape(ours.shape)
    torch.testing.assert_close(ours.detach(), theirs, msg=lambda detail: f"{name}: {detail}", **CLOSE)


def test_logits(subject: Subject) -> None:
    _assert_same(subject.model(subject.tokens), subject.values[f"{subject.name}/{subject.stage}/logits"], "logits")


def test_every_hook_point_has_the_same_name_value_and_gradient(subject: Subject) -> None:
    theirs = subject.under("run")
    points = [name for name in theirs if not name.endswith("_grad")]
    on_demand = {name for name, point in subject.model.hook_dict.items() if point.on_demand}
    assert set(points) - on_demand == set(subject.model.hook_dict) - on_demand
    cache = subject.cache(points, return_type="loss", incl_bwd=True)
    for name, value in theirs.items():
        _assert_same(cache[name], value, name)
    assert sum(name.endswith("_grad") for name in theirs) == len(points)


@pytest.mark.parametrize("run", ["split", "attn_in"])
def test_points_on_demand_have_the_same_value_and_gradient(subject: Subject, run: str) -> None:
    cfg, theirs = subject.model.cfg, subject.under(run)
    if run == "attn_in" and cfg.n_kv_heads != cfg.n_heads:
        assert not theirs  # heads share keys and values: hook_attn_in does not exist
        return
    kinds = {"split": ["q_input", "k_input", "v_input", "result"], "attn_in": ["attn_in"]}[run]
    kinds = [*kinds, "mlp_in"] if run == "split" and not cfg.attn_only else kinds
    points = [n for n, p in subject.model.hook_dict.items() if p.on_demand and n in theirs and "unembed" not in n]
    assert len(points) == len(kinds) * cfg.n_layers
    forward, both = subject.cache(points), subject.cache(points, return_type="loss", incl_bwd=True)
    for name in points:
        _assert_same(forward[name], theirs[name], name)
        _assert_same(both[name], theirs[name], name)
        _assert_same(both[f"{name}_grad"], theirs[f"{name}_grad"], f"{name}_grad")


def test_methods_of_the_cache_have_the_same_values_and_labels(subject: Subject) -> None:
    cache = subject.cache(None)
    for name, (method, arguments) in methods_of(subject.model.cfg).items():
        found = getattr(cache, method)(**arguments)
        stack, labels = found if isinstance(found, tuple) else (found, None)
        theirs = subject.under("method")[name]
        if subject.stage == "plain" and name in GAINS:
            theirs = theirs * GAINS[name](subject.model).gain.detach()
        _assert_same(stack, theirs, name)
        assert labels == subject.labels[name]


def test_a_norm_is_applied_to_a_stack_as_theirs_is(subject: Subject) -> None:
    cache = subject.cache(None)
    applied = cache.apply_ln_to_stack(cache.decompose_resid(), layer=-1, batch_slice=1)
    theirs = subject.under("method")["applied"]
    gain = subject.model.ln_final.gain
    _assert_same(applied, theirs if gain is None else theirs * gain.detach(), "applied")


def test_attribution_is_exact_and_theirs_is_once_the_gain_is_folded(subject: Subject) -> None:
    cache, theirs = subject.cache(None), subject.under("method")
    layers = cache.logit_attrs(cache.decompose_resid(), subject.tokens)
    total = layers.sum(0) + cache.unembed_bias_attrs(subject.tokens)
    logits = subject.model(subject.tokens).gather(-1, subject.tokens[..., None])[..., 0]
    torch.testing.assert_close(total, logits, **CLOSE)
    if subject.stage == "plain":
        assert (layers - theirs["logit_attrs"]).abs().max() > 0.01  # theirs leaves the gain out
        return
    _assert_same(layers, theirs["logit_attrs"], "logit_attrs")
    if subject.model.cfg.norm_places == "pre":
        heads = cache.stack_head_results(pos_slice=-1)
        difference = cache.logit_attrs(heads, torch.tensor(RIGHT), torch.tensor(WRONG), pos_slice=-1)
        _assert_same(difference, theirs["logit_attrs_difference"], "logit_attrs_difference")


@pytest.mark.parametrize("name", MODELS)
def test_processed_weights_are_theirs_weight_by_weight(answers: Answers, name: str) -> None:
    """Those of its steps one by one in float64, and of loading with all of them, which rounds to float32."""
    folded = Subject(answers, name, "folded")
    ours = to_hooked(folded.model)
    for way, tolerance in (("processed", 1e-10), ("loaded", 1e-5)):
        start = f"{name}/{way}/"
        theirs = {key.removeprefix(start): value for key, value in answers.values.items() if key.startswith(start)}
        assert set(ours) == set(theirs)
        for weight, value in theirs.items():
            torch.testing.assert_close(ours[weight], value, atol=tolerance, rtol=tolerance, msg=f"{way} {weight}")
    layer_norms = MODELS[name].normalization_type == "LN"
    assert set(folded.skipped) == (set() if layer_norms else {"center_writing_weights"})


def test_the_directory_of_a_hooked_transformer_loads_as_the_same_model(answers: Answers, subject: Subject) -> None:
    """Its state dict with all buffers, as `torch.save` wrote it, and its config as JSON."""
    loaded = load(answers.folder / f"{subject.name}-{subject.stage}")
    assert loaded.dtype is torch.float64
    _assert_same(loaded(subject.tokens), subject.values[f"{subject.name}/{subject.stage}/logits"], "logits")
    for name, value in to_hooked(loaded).items():
        _assert_same(value, to_hooked(subject.model)[name], name)
