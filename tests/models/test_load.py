"""`load` finds models, holds their weights once, and says what is wrong with those that it cannot load."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import LabError
from models import GPT, TransformerConfig, load
from models.pretrained import places, tensors, zoo_names
from models.pretrained.gemma import GEMMA3
from models.rotary_scaling import RotaryScaling
from models.tokenizers import characters

TINY: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 7, "n_ctx": 6, "seed": 0}
ROOT = Path(__file__).parents[2]
TOKENS = torch.tensor([[0, 1, 2, 3]])
OTHER_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "tied": {"tie_embeddings": True},
    "llama": {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "gated_mlp": True,
        "act_fn": "silu",
        "attn_bias": False,
        "mlp_bias": False,
        "n_key_value_heads": 1,
    },
}


def tiny(**changes: Any) -> GPT:
    return GPT(TransformerConfig(**(TINY | changes)))


@pytest.fixture
def native(tmp_path: Path) -> Path:
    return tiny().save(tmp_path / "mine")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return tiny().export(tmp_path / "theirs")


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def change_weights(directory: Path, **changes: Any) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path) | changes
    path.unlink()
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def message_of(name: Any, **arguments: Any) -> str:
    with pytest.raises(LabError) as caught:
        load(name, **arguments)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    return message


# Finding


def test_a_name_of_the_zoo_loads_and_a_directory_of_that_name_comes_first(
    native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ZOO", native.parent)
    assert zoo_names() == ["mine"]
    assert load("mine").cfg.d_vocab == 7
    tiny(d_vocab=9).save(tmp_path / "elsewhere" / "mine")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load("mine").cfg.d_vocab == 9


def test_an_unknown_name_is_answered_with_the_near_misses_of_the_zoo(
    native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ZOO", native.parent)
    message = message_of("mien")
    assert "no model 'mien'" in message
    assert "closest: 'mine'" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [("./nowhere", "no directory"), ("a/b/c", "no directory"), ("", "no directory"), ("two words", "no model")],
)
def test_a_place_that_is_not_there_is_said_to_be(name: str, said: str) -> None:
    assert said in message_of(name)


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    assert "no config.json" in message_of(tmp_path)


def test_a_hub_checkpoint_already_on_this_machine_needs_no_network(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **arguments: Any) -> str:
        asked.append({"name": name, **arguments})
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = load("someone/tiny", revision="v1")
    assert model.cfg.model_name == "someone/tiny"
    assert model.revision == "v1"
    assert len(asked) == 1
    assert asked[0]["revision"] == "v1"
    assert not [p for p in asked[0]["allow_patterns"] if p.endswith((".py", ".bin", ".pkl"))]


def test_a_revision_picks_the_weights_of_that_step(native: Path) -> None:
    (native / "checkpoints").mkdir()
    early = load_file(native / "model.safetensors")
    early["unembed.weight"] = torch.ones_like(early["unembed.weight"])
    save_file(early, native / "checkpoints" / "step_000400.safetensors")
    model = load(native, revision="step-400")
    assert model.revision == "step-400"
    assert bool((model.unembed.weight == 1).all())
    assert load(native).revision is None
    assert "known: step-400" in message_of(native, revision="step-401")


def test_a_single_checkpoint_has_no_revisions(exported: Path, native: Path) -> None:
    assert "no revision 'main'" in message_of(exported, revision="main")
    assert "no revision 'main'" in message_of(native, revision="main")


# What is asked for


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_refused_before_anything_is_looked_for() -> None:
    assert "'cuda' is not there" in message_of("no such model", device="cuda")


def test_unknown_devices_dtypes_and_backends_are_refused(native: Path) -> None:
    assert "unknown device" in message_of(native, device="abacus")
    assert "float32" in message_of(native, dtype="int7")
    assert "transformer-lens" in message_of(native, backend="transformer_lens")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_weights_come_in_the_dtype_asked_for(native: Path, exported: Path, dtype: Any) -> None:
    for directory in (native, exported):
        model = load(directory, dtype=dtype)
        wanted = torch.bfloat16 if dtype == "bfloat16" else dtype
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}
        assert model.cfg.dtype == wanted


def test_without_a_dtype_the_checkpoint_keeps_its_own(tmp_path: Path) -> None:
    model = tiny().to(torch.bfloat16)
    assert load(model.save(tmp_path / "a")).dtype == torch.bfloat16
    assert load(model.export(tmp_path / "b")).dtype == torch.bfloat16
    change_config(tmp_path / "b", dtype=...)
    assert load(tmp_path / "b").dtype == torch.bfloat16


@pytest.mark.gpu
def test_weights_go_to_the_gpu(native: Path, exported: Path) -> None:
    for directory in (native, exported):
        model = load(directory, device="cuda", dtype="bfloat16")
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        expected = load(directory, dtype="bfloat16")(TOKENS)
        # bfloat16 keeps 8 bits, and the two devices round different sums; logits are of order 0.01
        torch.testing.assert_close(model(TOKENS).cpu(), expected, atol=1e-3, rtol=0.05)


def test_a_loaded_model_is_ready_to_be_analysed_and_to_be_trained(exported: Path) -> None:
    model = load(exported)
    assert not model.training
    assert all(p.requires_grad and p.is_leaf and p.is_contiguous() for p in model.parameters())
    assert not any(p.is_meta for p in model.parameters())


# One copy


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_every_weight_has_storage_of_its_own_and_no_more_than_it_needs(shape: str, tmp_path: Path) -> None:
    """Nothing keeps the file's mapping, the fused matrix or a wider dtype alive."""
    model = load(tiny(**OTHER_SHAPES[shape]).export(tmp_path / "x"))
    storages = [p.untyped_storage() for p in model.parameters()]
    assert len({s.data_ptr() for s in storages}) == len(storages)
    assert [s.nbytes() for s in storages] == [p.numel() * p.element_size() for p in model.parameters()]


def test_tied_embeddings_are_one_parameter(tmp_path: Path) -> None:
    original = tiny(tie_embeddings=True)
    for directory in (original.save(tmp_path / "a"), original.export(tmp_path / "b")):
        model = load(directory)
        assert model.unembed.weight is model.embed.W_E
        assert torch.equal(model(TOKENS), original(TOKENS))


def test_a_tied_checkpoint_may_store_its_embedding_twice_but_not_two_of_them(tmp_path: Path) -> None:
    original = tiny(tie_embeddings=True)
    directory = original.export(tmp_path / "x")
    embedding = load_file(directory / "model.safetensors")["transformer.wte.weight"]
    change_weights(directory, **{"lm_head.weight": embedding.clone()})
    assert torch.equal(load(directory)(TOKENS), original(TOKENS))
    change_weights(directory, **{"lm_head.weight": embedding + 1})
    assert "tie_word_embeddings" in message_of(directory)


# Loads a directory, runs it, and prints by how many bytes memory exceeded what it was after the imports, at most.
HIGH_WATER = """
import sys, torch
from pathlib import Path
from models import load

def resident(entry):
    status = Path("/proc/self/status").read_text()
    return int(status.split(entry + ":")[1].split()[0]) * 1024

with torch.inference_mode():
    torch.nn.functional.linear(torch.ones(4, 256), torch.ones(256, 256))  # what torch fetches for its first product
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts here
    before = resident("VmRSS")
    load(sys.argv[1])(torch.arange(16)[None])
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's high-water mark of memory")
def test_loading_and_running_a_sharded_checkpoint_takes_its_size_and_a_piece(tmp_path: Path) -> None:
    """Every resident page counts, those of mapped files too. The table of token vectors alone is two pieces, so mapping
    it whole would show. The slack of 16 MiB is for the config, modules and activations (measured: 5 MiB); 1 GB and its
    1.15 times are in `python -m tests.benchmarks.loading`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 2**15, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, max_position_embeddings=64))
    model.save_pretrained(tmp_path, max_shard_size="70MB")
    files = list(tmp_path.glob("model-*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    assert len(files) >= 3
    assert size > 190e6
    command = [sys.executable, "-c", HIGH_WATER, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert size < int(found.stdout) < size + tensors.PIECE + 16 * 2**20


@pytest.mark.parametrize("shape", OTHER_SHAPES)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_that_come_in_many_pieces_are_the_same(
    shape: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do in models larger than these: here a piece is two rows of the stream's width."""
    original = tiny(**OTHER_SHAPES[shape])
    directory = original.export(tmp_path / "x")
    if form == "bin":
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
    monkeypatch.setattr(tensors, "PIECE", 2 * 8 * 4)
    embedding = "model.embed_tokens.weight" if shape == "llama" else "transformer.wte.weight"
    assert len(list(tensors.open_tensors(directory).pieces(embedding))) == 4
    weights = load(directory).state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in original.state_dict().items())


def test_shards_of_torch_files_are_open_one_at_a_time(exported: Path) -> None:
    expected = load(exported)(TOKENS)
    weights = load_file(exported / "model.safetensors")
    (exported / "model.safetensors").unlink()
    index = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(sorted(weights))}
    for file in set(index.values()):
        torch.save({name: weights[name] for name in weights if index[name] == file}, exported / file)
    (exported / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(load(exported)(TOKENS), expected)
    stored = tensors.open_tensors(exported)
    for name in stored:
        stored.read(name)
        assert len(stored._opened) == 1


# Layouts of files


@pytest.mark.parametrize("shape", ["tied", "llama"])
def test_a_base_model_without_prefix_and_with_buffers_loads(shape: str, tmp_path: Path) -> None:
    """As GPT-2 stands on the hub: no "transformer." before the names, and causal masks among the weights."""
    original = tiny(**(OTHER_SHAPES[shape] | {"tie_embeddings": True}))
    directory = original.export(tmp_path / "x")
    tensors = load_file(directory / "model.safetensors")
    bare = {name.removeprefix("transformer.").removeprefix("model."): t for name, t in tensors.items()}
    bare |= (
        {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
        if shape == "llama"
        else {"h.0.attn.bias": torch.ones(1, 1, 6, 6), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    )
    save_file(bare, directory / "model.safetensors")
    assert torch.equal(load(directory)(TOKENS), original(TOKENS))


def test_weights_saved_by_torch_load_when_they_hold_tensors_alone(exported: Path) -> None:
    expected = load(exported)(TOKENS)
    torch.save(load_file(exported / "model.safetensors"), exported / "pytorch_model.bin")
    (exported / "model.safetensors").unlink()
    assert torch.equal(load(exported)(TOKENS), expected)


class Malice:
    """Unpickling it makes a file appear."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_offered_as_weights_is_refused_and_not_run(exported: Path, name: str, write: str) -> None:
    trap = exported / "it ran"
    (exported / "model.safetensors").unlink()
    content = {"transformer.wte.weight": Malice(trap)}
    if write == "pickle":
        (exported / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, exported / name)
    message = message_of(exported)
    assert "is a pickle" in message
    assert name in message
    assert "safetensors.torch.save_file" in message
    assert not trap.exists()


def test_a_path_to_a_pickle_and_a_directory_of_pickles_are_refused(exported: Path) -> None:
    (exported / "model.safetensors").rename(exported / "weights.pt")
    assert "is a pickle" in message_of(exported / "weights.pt")
    message = message_of(exported)
    assert "no weights" in message
    assert "Found weights.pt" in message


# What the lab has no code for


def bloom(directory: Path, **changes: Any) -> Path:
    """A checkpoint of an architecture that the lab's own code lacks, with entries of config.json changed."""
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=7, hidden_size=8, n_layer=2, n_head=2)).save_pretrained(directory)
    change_config(directory, **changes)
    return directory


def test_an_architecture_without_code_of_the_labs_goes_to_transformerlens_with_a_warning(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from models.bridge import Bridge

    directory = bloom(tmp_path)
    with pytest.warns(UserWarning, match="model_type='bloom'.*Loaded through TransformerLens instead"):
        model = load(directory)
    assert isinstance(model, Bridge)
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    # the same code on the same weights; fused and eager attention round differently
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_a_feature_without_code_of_the_labs_goes_to_transformerlens_with_a_warning(tmp_path: Path) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, hidden_act="gelu_fast")
    with pytest.warns(UserWarning, match="'gelu_fast'.*Loaded through TransformerLens instead"):
        model = load(directory)
    assert bool(model(TOKENS).isfinite().all())


def test_whoever_asks_for_the_native_code_gets_it_or_an_error(tmp_path: Path) -> None:
    message = message_of(bloom(tmp_path), backend="native")
    assert "model_type='bloom'" in message
    assert 'try backend="transformer-lens"' in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "lama"}, ["model_type='lama'", "closest: 'llama'", "known: gpt2, gpt_neox", "TransformerLens"]),
        ({"model_type": "gemma3_txt"}, ["closest: 'gemma3_text'", "TransformerLens"]),
        (
            {"architectures": ["BloomForSequenceClassification"]},
            ["model_type='bloom'", "does not predict the next token"],
        ),
        ({"quantization_config": {"bits": 4}}, ["quantised"]),
        ({"auto_map": {"AutoModel": "code.py"}}, ["code of its own"]),
    ],
)
def test_what_neither_backend_loads_is_told_with_both_reasons(
    changes: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    message = message_of(bloom(tmp_path, **changes))
    for fragment in said:
        assert fragment in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 9}, "'transformer.word_embeddings.weight' has shape [7, 8], the config makes it [9, 8]"),
        ({"n_layer": 3}, "the weights lack 'transformer.h.2.input_layernorm.bias'"),
        ({"n_layer": 10**12}, "29 tensors, the config 1000000000000 layers"),
        ({"n_layer": -1}, "-1 layers; expected at least one"),
        ({"n_head": 0}, "modulo by zero"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": 10**15}, "overflowed"),
    ],
)
@pytest.mark.parametrize("backend", [None, "transformer-lens"])
def test_weights_and_configs_that_disagree_are_refused_through_transformerlens_too(
    changes: dict[str, Any], said: str, backend: str | None, tmp_path: Path
) -> None:
    """transformers itself makes up what is missing, and goes on."""
    assert said in message_of(bloom(tmp_path, **changes), backend=backend)


def test_without_transformerlens_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge.sources", None)
    message = message_of(bloom(tmp_path))
    assert "model_type='bloom'" in message
    assert "transformer_lens" in message


# Contradictions and damage


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_named(exported: Path, keep: float) -> None:
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    message = message_of(exported)
    assert str(path) in message
    assert "truncated or corrupt" in message


def test_a_header_that_is_not_one_is_reported(exported: Path) -> None:
    (exported / "model.safetensors").write_bytes(struct.pack("<Q", 10**15) + b"x" * 100)
    assert "truncated or corrupt" in message_of(exported)


def test_a_missing_shard_is_named(exported: Path) -> None:
    (exported / "model.safetensors").rename(exported / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in message_of(exported)


def test_a_config_that_contradicts_its_weights_is_shown_with_the_tensor_and_both_shapes(
    exported: Path, native: Path
) -> None:
    change_config(exported, vocab_size=8)
    message = message_of(exported)
    for part in ("transformer.wte.weight", "[7, 8]", "[8, 8]"):
        assert part in message
    change_config(native, d_mlp=20)
    message = message_of(native)
    for part in ("blocks.0.mlp.in_.weight", "[32, 8]", "[20, 8]"):
        assert part in message


def test_missing_and_unexpected_tensors_are_listed(exported: Path) -> None:
    change_weights(exported, **{"transformer.ln_f.bias": None, "transformer.h.9.ln_1.bias": torch.ones(8)})
    message = message_of(exported)
    assert "missing 'transformer.ln_f.bias'" in message
    assert "not expected 'transformer.h.9.ln_1.bias'" in message


def test_of_many_missing_tensors_the_first_are_named_and_the_rest_counted(exported: Path) -> None:
    change_config(exported, n_layer=3)
    message = message_of(exported)
    assert "missing 'transformer.h.2.ln_1.weight', 'transformer.h.2.ln_1.bias'" in message
    assert "and 8 more" in message


def test_an_index_that_leads_elsewhere_or_nowhere_is_refused(exported: Path) -> None:
    (exported / "model.safetensors").unlink()
    for weight_map, said in (({}, "no weight_map"), ({"a": "../../etc/passwd"}, "not there")):
        (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert said in message_of(exported)


def test_quantised_tensors_are_refused(exported: Path) -> None:
    name = "transformer.wte.weight"
    change_weights(exported, **{name: torch.ones(7, 8, dtype=torch.int8)})
    assert "I8" in message_of(exported)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "as JSON"), ("[1]", "expected a JSON object"), ("{}", "model_type=None")]
)
def test_a_config_that_is_none_is_reported(exported: Path, text: str, said: str) -> None:
    (exported / "config.json").write_text(text)
    assert said in message_of(exported)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba"}, "transformer-lens"),
        ({"scale_attn_by_inverse_layer_idx": True}, "transformer-lens"),
        ({"activation_function": "quick_gelu"}, "quick_gelu"),
        ({"n_embd": ...}, "n_embd"),
        ({"n_head": 3}, "n_heads=3"),
        ({"n_embd": "wide"}, "d_model='wide'"),
        ({"n_layer": -1}, "n_layers=-1"),
        ({"n_head": 0}, "n_heads=0"),
        ({"vocab_size": 1.5}, "d_vocab=1.5"),
        ({"n_embd": 10**6}, "[7, 8]"),
        ({"n_embd": 10**15}, "sizes that no tensor has"),
        ({"n_layer": 10**12}, "1000000000000 layers"),
        ({"layer_norm_epsilon": "small"}, "eps='small'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"auto_map": {"AutoModel": "code.py"}}, "code of its own"),
    ],
)
@pytest.mark.usefixtures("unchecked")  # the annotations would find the wrong type before the code does
def test_a_gpt2_that_the_lab_does_not_compute_is_refused(exported: Path, changes: dict[str, Any], said: str) -> None:
    change_config(exported, **changes)
    assert said in message_of(exported, backend="native")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "rope_type='proportional'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "rope_type='longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate=False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale=0.7"),
        ({"layer_types": ["chunked_attention", "full_attention"]}, "'chunked_attention'"),
        ({"model_type": "gemma3"}, "model_type='gemma3'"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ],
)
def test_a_llama_that_the_lab_does_not_compute_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, **changes)
    message = message_of(directory, backend="native")
    assert said in message
    assert "transformer-lens" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "factor=-1.0"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "no sliding_window"),
        ({"model_type": "mistral", "sliding_window": 0}, "window_size=0"),
    ],
)
def test_positions_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, **changes)
    assert said in message_of(directory)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_more_layers_than_tensors_are_refused_before_anything_is_made_for_each(kind: str, tmp_path: Path) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, model_type=kind, num_hidden_layers=10**12)
    assert "the config 1000000000000 layers" in message_of(directory)


@pytest.mark.parametrize("window", [6, 100])
def test_a_window_as_long_as_the_context_changes_nothing(tmp_path: Path, window: int) -> None:
    original = tiny(**OTHER_SHAPES["llama"])
    directory = original.export(tmp_path / "x")
    change_config(directory, model_type="mistral", sliding_window=window)
    assert torch.equal(load(directory)(TOKENS), original(TOKENS))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": ..., "rope_theta": 50.0},  # before transformers 5
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        {"rope_parameters": ..., "rope_theta": 50.0, "rope_scaling": {"rope_type": "default"}},
        {"model_type": "mistral", "sliding_window": None},
    ],
)
def test_the_rotary_base_is_found_wherever_a_config_keeps_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    original = tiny(**OTHER_SHAPES["llama"], rotary_base=50.0)
    directory = original.export(tmp_path / "x")
    change_config(directory, **changes)
    assert torch.equal(load(directory)(TOKENS), original(TOKENS))


def test_gemma_3_reads_both_forms_of_its_two_kinds_of_angles() -> None:
    sizes = {"num_hidden_layers": 7, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 8}
    rest = sizes | {"vocab_size": 9, "max_position_embeddings": 16}
    scaling = {"rope_type": "linear", "factor": 8.0}
    before = {"rope_theta": 1e5, "rope_local_base_freq": 50.0, "rope_scaling": scaling, "sliding_window_pattern": 3}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    angles = {"full_attention": scaling | {"rope_theta": 1e5}, "sliding_attention": {"rope_theta": 50.0}}
    cfg = GEMMA3.read_config(rest | before)
    assert cfg == GEMMA3.read_config(rest | {"rope_parameters": angles, "layer_types": kinds})
    assert (cfg.rotary_base, cfg.rotary_base_local, cfg.rotary_scaling) == (1e5, 50.0, RotaryScaling("linear", 8.0))


def test_a_later_format_is_refused(native: Path) -> None:
    change_config(native, format_version=2)
    assert "update the lab" in message_of(native)


# Text


def test_without_a_tokenizer_ids_work_and_text_gets_an_answer(native: Path) -> None:
    model = load(native)
    assert model(TOKENS).shape == (1, 4, 7)
    with pytest.raises(LabError, match="no tokenizer"):
        model("ab")


def test_a_start_token_is_put_first_where_there_is_one(tmp_path: Path) -> None:
    model = GPT(TransformerConfig(**TINY), tokenizer=characters("abcdef"))
    directory = model.export(tmp_path / "x")
    assert load(directory).to_tokens("ab").tolist() == [[6, 0, 1]]
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None, "eos_token": None}))
    assert load(directory).to_tokens("ab").tolist() == [[0, 1]]


# TransformerLens


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["save", "export"])
def test_the_bridge_of_a_checkpoint_gives_the_same_logits(tmp_path: Path, saved: str) -> None:
    original = tiny()
    directory = getattr(original, saved)(tmp_path / "mine")
    bridge = load(directory, backend="transformer-lens")
    assert type(bridge).__name__ == "Bridge"
    # float32: the two implementations differ in the order of sums; logits are of order 0.01
    torch.testing.assert_close(bridge(TOKENS), original(TOKENS), atol=1e-5, rtol=0.0)
    shutil.rmtree(directory)
    torch.testing.assert_close(bridge(TOKENS), original(TOKENS), atol=1e-5, rtol=0.0)
