"""Loading holds the weights once: every byte beside them is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import load
from models.pretrained import tensors
from tests.models.tiny_checkpoints import OTHER_SHAPES, TOKENS, change_weights, message_of, tiny

ROOT = Path(__file__).parents[2]


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
    it whole would show. The slack of 16 MiB is for the config, modules and activations (measured: 4 MiB); 1 GB and its
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
