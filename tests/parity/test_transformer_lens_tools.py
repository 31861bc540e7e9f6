"""TransformerLens's own tools run on our GPT as they are, and agree with ours.

They know a model by the structural protocol of `transformer_lens.model_protocol` alone. Direct paths also set a flag
and use a hook name of TransformerLens 4's: they run on the layer of habits over the same GPT (`HookedTransformer.of`).
Tolerance: 1e-5 absolute in float32; both sides read the same model, one forward a site there and a batch of rows here.
Its ActivationCache is held to ours in test_transformer_lens_cache.py.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from analyses import activation_patching, head_scores, path_patching
from interp import ActivationCache, Site, edits, sweep
from interp.metrics import logit_diff
from interp.prompts import PromptPairs
from models import GPT, TransformerConfig
from models.hooked_transformer import HookedTransformer
from models.tokenizers import characters, train_bpe
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
SHARED = {
    "n_key_value_heads": 2,
    "positional_embedding_type": "rotary",
    "normalization_type": "RMS",
    "gated_mlp": True,
    "mlp_bias": False,
}


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


# Its function -> our site and the axes that are told apart, in its order.
PATCHING = {
    "get_act_patch_resid_pre": ("resid_pre", ("layer", "pos")),
    "get_act_patch_resid_mid": ("resid_mid", ("layer", "pos")),
    "get_act_patch_attn_out": ("attn_out", ("layer", "pos")),
    "get_act_patch_mlp_out": ("mlp_out", ("layer", "pos")),
    "get_act_patch_attn_head_out_by_pos": ("z", ("layer", "pos", "head")),
    "get_act_patch_attn_head_q_by_pos": ("q", ("layer", "pos", "head")),
    "get_act_patch_attn_head_k_by_pos": ("k", ("layer", "pos", "head")),
    "get_act_patch_attn_head_v_by_pos": ("v", ("layer", "pos", "head")),
    "get_act_patch_attn_head_pattern_by_pos": ("pattern", ("layer", "head", "pos")),
    "get_act_patch_attn_head_out_all_pos": ("z", ("layer", "head")),
    "get_act_patch_attn_head_q_all_pos": ("q", ("layer", "head")),
    "get_act_patch_attn_head_k_all_pos": ("k", ("layer", "head")),
    "get_act_patch_attn_head_v_all_pos": ("v", ("layer", "head")),
    "get_act_patch_attn_head_pattern_all_pos": ("pattern", ("layer", "head")),
}
EDGES = "get_act_patch_attn_head_pattern_dest_src_pos"
EVERY = {
    "get_act_patch_attn_head_all_pos_every": (("z", "q", "k", "v", "pattern"), ("layer", "head")),
    "get_act_patch_attn_head_by_pos_every": (("z", "q", "k", "v", "pattern"), ("layer", "pos", "head")),
    "get_act_patch_block_every": (("resid_pre", "attn_out", "mlp_out"), ("layer", "pos")),
}
DIRECT = ("get_act_patch_direct_path", "get_act_patch_direct_path_all_sources")


def patched(model: GPT, pairs: PromptPairs, site: str, axes: tuple[str, ...]) -> np.ndarray:
    """Our values, on the axes as they are asked for."""
    ours = activation_patching(model, pairs, site=site, by=axes, normalize=False)
    return ours.values.transpose([ours.axes.index(axis) for axis in axes])


def caches(model: GPT, pairs: PromptPairs) -> tuple[ActivationCache, ActivationCache]:
    with torch.no_grad():
        return model.run_with_cache(pairs.clean)[1], model.run_with_cache(pairs.corrupted)[1]


def test_every_one_of_its_patching_functions_is_held_to_ours_here() -> None:
    from transformer_lens import patching

    there = {name for name in vars(patching) if name.startswith("get_act_patch")}
    assert there == {*PATCHING, EDGES, *EVERY, *DIRECT}


@pytest.mark.parametrize("function", PATCHING)
def test_its_patching_gives_our_values(model: GPT, pairs: PromptPairs, function: str) -> None:
    from transformer_lens import patching

    metric: Callable[[Tensor], Tensor] = lambda logits: logit_diff(logits, pairs).mean()  # noqa: E731
    clean, _ = caches(model, pairs)
    with torch.no_grad():
        theirs = getattr(patching, function)(model, pairs.corrupted, clean, metric)
    ours = patched(model, pairs, *PATCHING[function])
    assert np.ptp(ours) > 100 * CLOSE
    np.testing.assert_allclose(theirs.numpy(), ours, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("function", EVERY)
def test_its_patching_of_everything_stacks_our_values(model: GPT, pairs: PromptPairs, function: str) -> None:
    """Keys and values have fewer heads where heads share them; the rest of its table is zero there."""
    from transformer_lens import patching

    sites, axes = EVERY[function]
    clean, _ = caches(model, pairs)
    with torch.no_grad():
        theirs = getattr(patching, function)(
            model, pairs.corrupted, clean, lambda logits: logit_diff(logits, pairs).mean()
        ).numpy()
    assert len(theirs) == len(sites)
    for kind, found in zip(sites, theirs, strict=True):
        ours = patched(model, pairs, kind, axes)
        np.testing.assert_allclose(found[..., : ours.shape[-1]], ours, atol=CLOSE, rtol=CLOSE, err_msg=kind)
        assert not found[..., ours.shape[-1] :].any()


def test_its_patching_of_attention_edges_gives_our_values(model: GPT, pairs: PromptPairs) -> None:
    from transformer_lens import patching

    clean, _ = caches(model, pairs)
    with torch.no_grad():
        theirs = getattr(patching, EDGES)(
            model, pairs.corrupted, clean, lambda logits: logit_diff(logits, pairs).mean()
        ).numpy()
    layers, heads, n_pos, _ = theirs.shape
    index = [(layer, head, q, k) for layer, head, q, k in np.ndindex(theirs.shape)]
    rows = [[edits.replace(Site("pattern", n, head=h, pos=q, key=k), clean)] for n, h, q, k in index]
    ours = sweep.run(model, pairs.swapped(), rows, "logit_diff").values.mean(-1)
    assert (layers, heads, n_pos) == (model.cfg.n_layers, model.cfg.n_heads, pairs.clean.shape[1])
    assert np.ptp(ours) > 100 * CLOSE
    np.testing.assert_allclose(theirs.reshape(-1), ours, atol=CLOSE, rtol=CLOSE)


def test_its_generic_patching_takes_rows_metrics_and_keeps_prompts_apart(model: GPT, pairs: PromptPairs) -> None:
    from transformer_lens import patching

    clean, _ = caches(model, pairs)
    rows = pd.DataFrame({"layer": [1, 0], "pos": [2, 1]})
    two = {"one": lambda logits: logit_diff(logits, pairs), "double": lambda logits: 2 * logit_diff(logits, pairs)}
    with torch.no_grad():
        found = patching.generic_activation_patch(
            model, pairs.corrupted, clean, two, patching.layer_pos_patch_setter, "resid_pre",
            index_df=rows, reduce="none", baseline=True,
        )  # fmt: skip
    ours = activation_patching(model, pairs, site="resid_pre", by=("layer", "pos"), normalize=False)
    expected = np.stack([ours.raw[1, 2], ours.raw[0, 1]])
    np.testing.assert_allclose(found["one"].values.numpy(), expected, atol=CLOSE, rtol=CLOSE)
    np.testing.assert_allclose(found["double"].values.numpy(), 2 * expected, atol=2 * CLOSE, rtol=CLOSE)
    np.testing.assert_allclose(found["one"].baseline.numpy(), ours.corrupted, atol=CLOSE, rtol=CLOSE)
    np.testing.assert_allclose(found["one"].effect().numpy(), expected - ours.corrupted, atol=2 * CLOSE, rtol=CLOSE)
    assert len(found.to_dataframe()) == 2 * expected.size


@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("function", DIRECT)
def test_its_direct_paths_are_ours(model: GPT, pairs: PromptPairs, function: str, component: str) -> None:
    """It has no direct paths into keys and values that heads share, and says so; ours count them once."""
    from transformer_lens import patching

    hooked, (clean, corrupted) = HookedTransformer.of(model), caches(model, pairs)
    given = (hooked, pairs.corrupted, clean, corrupted, lambda logits: logit_diff(logits, pairs).mean())
    one = {"src_layer": 0, "src_head": 2} if function == DIRECT[0] else {}
    if component != "q" and model.cfg.n_key_value_heads is not None:
        with pytest.raises(ValueError, match="n_key_value_heads=2"):
            getattr(patching, function)(*given, component=component, verbose=False, **one)
        return
    with torch.no_grad():
        theirs = getattr(patching, function)(*given, component=component, verbose=False, **one)
    theirs = theirs[1] if one else theirs[0, 2, 1]  # into the heads of the last layer
    receivers = [Site(component, 1, head) for head in range(model.cfg.n_heads)]
    ours = path_patching(model, pairs, receivers, [Site("z", 0, 2)], direction="denoise", normalize=False)
    assert np.ptp(ours.raw.mean(-1)) > 10 * CLOSE
    np.testing.assert_allclose(theirs.numpy(), ours.raw[0].mean(-1), atol=CLOSE, rtol=CLOSE)
    assert not hooked.cfg.use_split_qkv_input, "the flag is as it was"


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


def test_its_head_detector_takes_a_pattern_some_heads_and_leaves_out_what_is_asked(model: GPT) -> None:
    from transformer_lens import head_detector

    tokens = model.to_tokens(TEXT)
    n = tokens.shape[1]
    wanted = torch.rand(n, n, generator=torch.Generator().manual_seed(0)).gt(0.5).float().tril()
    with torch.no_grad():
        found = head_detector.detect_head(
            model, TEXT, wanted, heads=[(0, 1), (1, 3)], exclude_bos=True, exclude_current_token=True
        )
        _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            counted = cache["pattern", layer][head].clone()
            counted[:, 0] = 0
            counted -= counted.diag().diag()
            share = float((counted * wanted).sum() / counted.sum()) if (layer, head) in ((0, 1), (1, 3)) else -1.0
            assert float(found[layer, head]) == pytest.approx(share, abs=CLOSE)


@pytest.mark.parametrize("role", ROLES)
def test_its_patterns_of_roles_are_plain_to_see(model: GPT, role: str) -> None:
    from transformer_lens import head_detector

    tokens = model.to_tokens(TEXT)
    ids, n = tokens[0].tolist(), tokens.shape[1]
    rules: dict[str, Callable[[int, int], bool]] = {
        "previous_token": lambda i, j: j == i - 1,
        "duplicate_token": lambda i, j: j < i and ids[i] == ids[j],
        "induction": lambda i, j: 1 <= j <= i and ids[i] == ids[j - 1] and j - 1 < i,
    }
    expected = torch.tensor([[float(rules[role](i, j)) for j in range(n)] for i in range(n)])
    found = getattr(head_detector, f"get_{role}_head_detection_pattern")(tokens)
    assert torch.equal(found.float(), expected)


# -- SVDInterpreter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_its_singular_vectors_are_those_of_our_weights(model: GPT, kind: str) -> None:
    """Signs are arbitrary. 1e-4: singular values lie close together, which turns rounding into rotation."""
    from transformer_lens.SVDInterpreter import SVDInterpreter

    layer, head, n = 1, 3, 3
    found = SVDInterpreter(model).get_singular_vectors(kind, layer, n, head_index=head if kind == "OV" else None)
    block = model.blocks[layer]
    group = model.cfg.n_heads // model.cfg.n_kv_heads
    matrices = {
        "OV": lambda: block.attn.W_V[head // group] @ block.attn.W_O[head],
        "w_in": lambda: block.mlp.W_in.T * block.ln2.gain,  # its rows are what neurons read, the norm's gain counted
        "w_out": lambda: block.mlp.W_out,
    }
    with torch.no_grad():
        _, _, Vh = torch.linalg.svd(matrices[kind]().double(), full_matrices=False)
        expected = (Vh[:n] @ model.W_U.double()).T
    found = found[:, 0].double()
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found * signs, expected, atol=1e-4, rtol=1e-4)


def test_its_singular_vectors_count_a_gain_that_is_kept_as_its_distance_from_one() -> None:
    from transformer_lens.SVDInterpreter import SVDInterpreter

    model = _model(**SHARED, norm_gain_offset=1.0)
    found = SVDInterpreter(model).get_singular_vectors("w_in", 0, 2)[:, 0].double()
    with torch.no_grad():
        read = (model.blocks[0].mlp.W_in.T * model.blocks[0].ln2.gain).double()
        expected = (torch.linalg.svd(read, full_matrices=False).Vh[:2] @ model.W_U.double()).T
    torch.testing.assert_close(found.abs(), expected.abs(), atol=1e-4, rtol=1e-4)


# -- evals: what needs no download -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> GPT:
    """A model of a tokenizer that can read any text."""
    tokenizer = train_bpe(["John and Mary went to the store to buy milk. Mary handed the milk to John"] * 4, 300)
    cfg = TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=len(tokenizer), n_ctx=512)
    model = random_model(cfg, seed=6, dtype=torch.float32)
    model.tokenizer = tokenizer
    return model


@torch.no_grad()
def test_its_sanity_check_is_the_loss_of_a_paragraph(reader: GPT) -> None:
    import inspect

    from transformer_lens import evals

    text = next(
        line for line in inspect.getsource(evals.sanity_check).splitlines() if line.strip().startswith("text =")
    )
    ids = reader.to_tokens(text.split('"')[1])
    log_probs = reader(ids).log_softmax(-1)
    expected = -log_probs[0, :-1].gather(-1, ids[0, 1:, None]).mean()
    torch.testing.assert_close(evals.sanity_check(reader), expected, atol=CLOSE, rtol=CLOSE)


def test_its_loss_on_a_data_set_is_the_mean_of_ours(reader: GPT) -> None:
    from transformer_lens.evals import evaluate_on_dataset

    generator = torch.Generator().manual_seed(0)
    batches = [{"tokens": torch.randint(reader.cfg.d_vocab, (2, 7), generator=generator)} for _ in range(4)]
    with torch.no_grad():
        losses = [float(reader(batch["tokens"], return_type="loss")) for batch in batches]
    assert evaluate_on_dataset(reader, batches, device="cpu") == pytest.approx(np.mean(losses), abs=CLOSE)
    assert evaluate_on_dataset(reader, batches, truncate=1, device="cpu") == pytest.approx(
        np.mean(losses[:2]), abs=CLOSE
    )


def test_its_induction_loss_is_the_loss_on_the_repeat() -> None:
    """It draws ids from 100 to 20000 and puts the start token over the first."""
    from transformer_lens.evals import induction_loss

    cfg = TransformerConfig(n_layers=1, n_heads=2, d_model=4, d_vocab=20_000, n_ctx=40)
    model = random_model(cfg, seed=7, dtype=torch.float32)
    model.tokenizer = characters("ab")
    torch.manual_seed(3)
    found = induction_loss(model, batch_size=2, subseq_len=12, prepend_bos=False, device="cpu")
    torch.manual_seed(3)
    half = torch.randint(100, 20_000, (2, 12))
    tokens = torch.cat([half, half], 1)
    with torch.no_grad():
        log_probs = model(tokens).log_softmax(-1)
    of_next = -log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert float(found) == pytest.approx(float(of_next[:, 13:].mean()), abs=10 * CLOSE)


@pytest.mark.parametrize("symmetric", [False, True])
def test_its_indirect_objects_are_measured_as_ours(reader: GPT, symmetric: bool) -> None:
    """The logit difference where the names' first different tokens are predicted, and how often it is positive."""
    from transformer_lens.evals import IOIDataset, ioi_eval

    data = IOIDataset(reader.tokenizer, num_samples=6, symmetric=symmetric, prepend_bos=False, seed=0)
    found = ioi_eval(reader, dataset=data, batch_size=4)
    differences = []
    for sample in data:
        right, wrong = sample["IO"], sample["S"]
        first = next(i for i in range(min(len(right), len(wrong))) if right[i] != wrong[i])
        read = len(sample["prompt"]) - len(right) + first - 1
        with torch.no_grad():
            logits = reader(sample["prompt"][None])[0, read]
        differences.append(float(logits[right[first]] - logits[wrong[first]]))
    assert found["Logit Difference"] == pytest.approx(np.mean(differences), abs=CLOSE)
    assert found["Accuracy"] == pytest.approx(np.mean(np.array(differences) > 0))
