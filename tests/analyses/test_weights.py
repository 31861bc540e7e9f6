"""What is read off the weights, against products written out plainly, against runs, and on circuits that are known.

Everything is float64 and of order one, so 1e-9 is thousands of roundings; eigenvalues of matrices far from normal are
less well conditioned, so 1e-6 for sums of their sizes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from analyses import (
    circuit_eigenvalues,
    copying_scores,
    full_ov_circuit,
    full_qk_circuit,
    head_composition,
    head_scores,
    ov_circuit,
    qk_circuit,
    singular_directions,
    virtual_weights,
)
from analyses.singular import SingularDirections
from analyses.stream_weights import read, written
from interp import LabError
from interp.results import Result
from interp.sites import Site
from models import GPT, TransformerConfig, load
from models.processing import fold_norms
from tests.strategies import SEEDS, models, random_model

CLOSE: Any = {"atol": 1e-9, "rtol": 1e-9}
PLAIN: dict[str, Any] = {"norm_places": "pre", "embed_scale": None}
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_mlp": 9, "d_vocab": 11, "n_ctx": 8}


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected.detach(), **CLOSE)


class TestFoldedWeights:
    @given(models(**PLAIN))
    def test_reading_is_as_in_a_model_whose_norms_are_folded(self, model: GPT) -> None:
        """The folding of `models.processing` is another piece of code, checked by unchanged logits."""
        folded = copy.deepcopy(model)
        if model.cfg.normalization_type is not None:
            fold_norms(folded)
        for layer, block in enumerate(folded.blocks):
            same(read(model, Site("q", layer)), block.attn.W_Q)
            same(read(model, Site("k", layer)), block.attn.W_K)
            same(read(model, Site("v", layer)), block.attn.W_V)
            if not model.cfg.attn_only:
                gated = model.cfg.gated_mlp
                same(read(model, Site("mlp_pre", layer)), block.mlp.W_gate if gated else block.mlp.W_in)
                same(written(model, Site("mlp_post", layer)), model.blocks[layer].mlp.W_out)
            same(written(model, Site("z", layer)), model.blocks[layer].attn.W_O)
        same(read(model, Site("unembed.out")), folded.W_U)
        same(written(model, Site("embed")), model.W_E)

    @given(models(normalization_type="RMS", norm_places="post", attn_only=False, norm_gain_offset=0.0), SEEDS)
    def test_what_is_written_goes_through_a_norm_that_comes_after(self, model: GPT, seed: int) -> None:
        """z of one head alone, written: its part of attn_out, up to the scale of the norm."""
        tokens = torch.randint(11, (1, 4), generator=torch.Generator().manual_seed(seed))
        _, cache = model.run_with_cache(tokens)
        z, scale = cache["z", 0][..., 0, :], cache["ln1_post.scale", 0]
        alone = cache.stack_head_results(1)[0]
        same(z @ written(model, Site("z", 0, head=0)) / scale, alone)
        same(read(model, Site("q", 0)), model.blocks[0].attn.W_Q)  # no norm before

    def test_a_model_is_not_changed(self) -> None:
        model = random_model(TransformerConfig(**SIZES), seed=1)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        circuit_eigenvalues(model), head_composition(model), copying_scores(model), singular_directions(model, head=0)
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


class TestCircuits:
    @given(models(**PLAIN))
    def test_circuits_are_the_products_of_each_heads_weights(self, model: GPT) -> None:
        ov, qk = ov_circuit(model), qk_circuit(model)
        group = model.cfg.n_heads // model.cfg.n_kv_heads
        embed, unembed = model.W_E, read(model, Site("unembed.out"))
        for layer, head in np.ndindex(model.cfg.n_layers, model.cfg.n_heads):
            query, shared = read(model, Site("q", layer, head=head)), head // group
            key, value = (read(model, Site(kind, layer, head=shared)) for kind in ("k", "v"))
            output = model.blocks[layer].attn.W_O[head]
            same(ov[layer, head].AB, value @ output)
            same(qk[layer, head].AB, query @ key.T)
            same(full_ov_circuit(model, layer, head).AB, embed @ value @ output @ unembed)
            same(full_qk_circuit(model, layer, head).AB, embed @ query @ key.T @ embed.T)

    @given(
        models(
            n_layers=1,
            attn_only=True,
            normalization_type=None,
            positional_embedding_type="none",
            attn_bias=False,
            attn_out_bias=False,
            unembed_bias=False,
            output_logits_soft_cap=None,
            norm_places="pre",
            embed_scale=None,
        )
    )
    def test_a_row_of_the_full_ov_circuits_is_what_attending_to_a_token_does(self, model: GPT) -> None:
        """A token alone attends to itself, so its logits are the direct path and every head's row."""
        tokens = torch.arange(model.cfg.d_vocab)[:, None]
        heads = sum(full_ov_circuit(model, 0, head).AB for head in range(model.cfg.n_heads))
        same(model.W_E @ model.W_U + heads, model(tokens)[:, -1])

    @given(models(norm_places="pre", attn_only=False, parallel_attn_mlp=False, n_layers=2))
    def test_virtual_weights_are_what_is_written_times_what_is_read(self, model: GPT) -> None:
        head, neuron = virtual_weights(model, Site("z", 0, head=1), Site("k", 1, head=0)), Site("mlp_post", 0, neuron=3)
        same(head.AB, model.blocks[0].attn.W_O[1] @ read(model, Site("k", 1))[0])
        same(
            virtual_weights(model, neuron, Site("mlp_pre", 1)).AB, model.W_out[0][3:4] @ read(model, Site("mlp_pre", 1))
        )
        same(virtual_weights(model, Site("z", 0, head=0), Site("mlp_pre", 0, neuron=2)).AB,
             model.blocks[0].attn.W_O[0] @ read(model, Site("mlp_pre", 0))[:, 2:3])  # fmt: skip


class TestEigenvalues:
    @given(models(norm_places="pre"))
    def test_summaries_are_those_of_the_dense_matrices(self, model: GPT) -> None:
        found = circuit_eigenvalues(model)
        for layer, head in np.ndindex(model.cfg.n_layers, model.cfg.n_heads):
            for name, circuit in (("copying", full_ov_circuit), ("matching", full_qk_circuit)):
                values = torch.linalg.eigvals(circuit(model, layer, head).AB)
                expected = (values.sum().real / values.abs().sum()).item()
                assert getattr(found, name)[layer, head] == pytest.approx(expected, abs=1e-6)

    def test_they_are_in_the_order_of_their_sizes(self) -> None:
        found = circuit_eigenvalues(random_model(TransformerConfig(**SIZES), seed=2))
        sizes = np.hypot(found.real, found.imaginary)
        assert (np.diff(sizes, axis=-1) <= 1e-12).all()

    def test_a_head_without_weights_has_no_score(self) -> None:
        model = random_model(TransformerConfig(**SIZES), seed=2)
        with torch.no_grad():
            model.blocks[0].attn.o.weight.zero_()
        assert np.isnan(circuit_eigenvalues(model).copying[0]).all()
        assert not np.isnan(circuit_eigenvalues(model).copying[1]).any()


class TestCopying:
    @given(models(norm_places="pre"))
    def test_scores_equal_a_loop_over_tokens(self, model: GPT) -> None:
        found = copying_scores(model, k=2)
        with torch.no_grad():
            _, cache = model.run_with_cache(torch.arange(11)[:, None])
        circuits, unembed = ov_circuit(model).AB, read(model, Site("unembed.out"))
        for layer, head in np.ndindex(model.cfg.n_layers, model.cfg.n_heads):
            stream = cache["resid_pre", 0] if layer == 0 else cache["resid_post", 0]
            high, low = 0, 0
            for token in range(11):
                logits = (stream[token, 0] @ circuits[layer, head] @ unembed).tolist()
                ranked = sorted(logits)
                high += logits[token] > ranked[-3]
                low += logits[token] < ranked[2]
            assert (found.copying[layer, head], found.suppression[layer, head]) == (high / 11, low / 11)

    def test_a_head_without_weights_copies_nothing(self) -> None:
        model = random_model(TransformerConfig(**SIZES), seed=2)
        with torch.no_grad():
            model.blocks[0].attn.o.weight.zero_()
        assert not copying_scores(model).values[:, 0].any()

    def test_of_a_large_vocabulary_some_tokens_are_drawn(self) -> None:
        model = random_model(TransformerConfig(**SIZES | {"d_vocab": 90}), seed=2)
        one, again, other = (copying_scores(model, n=20, seed=seed) for seed in (0, 0, 1))
        assert len(one.tokens) == 20
        assert one == again
        assert set(one.tokens.tolist()) != set(other.tokens.tolist())
        assert copying_scores(model).provenance.seed == 0
        assert copying_scores(model, torch.tensor([3])).provenance.seed is None


class TestComposition:
    @given(models(n_layers=2, norm_places="pre"))
    def test_scores_are_ratios_of_norms_less_those_of_random_matrices(self, model: GPT) -> None:
        found, heads = head_composition(model), model.cfg.n_heads
        ov, qk = ov_circuit(model).AB, qk_circuit(model).AB
        for mode, reading in enumerate((qk, qk.mT, ov)):
            for sender, receiver in np.ndindex(heads, heads):
                a, b = ov[0, sender], reading[1, receiver]
                expected = ((a @ b).norm() / (a.norm() * b.norm())).item()
                assert found.raw[mode, sender, heads + receiver] == pytest.approx(expected, abs=1e-9)
        np.testing.assert_allclose(found.values, found.raw - found.baseline, atol=1e-12)
        later = ~np.isnan(found.raw)
        assert later.sum() == 3 * heads**2
        assert later[:, :heads, heads:].all()

    def test_random_weights_are_at_the_baseline(self) -> None:
        """128 scores of Gaussian weights: their mean is within a tenth of the baseline, 1/√128 = 0.088."""
        cfg = TransformerConfig(n_layers=2, n_heads=8, d_model=128, d_head=16, d_vocab=11, n_ctx=8, attn_only=True,
                                normalization_type=None, seed=0, init_range=1.0)  # fmt: skip
        found = head_composition(GPT(cfg))
        assert found.baseline == pytest.approx(128**-0.5, rel=0.05)
        assert abs(np.nanmean(found.values)) < 0.1 * found.baseline

    def test_the_picture_shows_only_heads_that_have_scores(self) -> None:
        found = head_composition(random_model(TransformerConfig(**SIZES), seed=1))
        assert [np.shape(trace.z) for trace in found.plot().data] == [(2, 2)] * 3
        assert "L1H0" in found.to_html()


class TestSingularDirections:
    @given(models(norm_places="pre", attn_only=False))
    def test_values_and_tokens_are_those_of_the_dense_matrices(self, model: GPT) -> None:
        unembed = read(model, Site("unembed.out"))
        matrices = {
            "OV": ov_circuit(model).AB[0, 1],
            "QK": qk_circuit(model).AB[0, 1],
            "mlp_in": read(model, Site("mlp_pre", 0)),
            "mlp_out": written(model, Site("mlp_post", 0)),
        }
        for of, matrix in matrices.items():
            found = singular_directions(model, of, 0, None if of.startswith("mlp") else 1, n=2, k=3)
            U, S, Vh = torch.linalg.svd(matrix)
            np.testing.assert_allclose(found.values, S[:2].detach(), **CLOSE)
            vectors = {"read": U[:, 0], "query": U[:, 0], "key": Vh[0], "written": Vh[0]}
            for side, name in enumerate(found.labels["side"]):
                logits = (vectors[str(name)] @ unembed).detach()
                ends = [logits.topk(3).values, -(-logits).topk(3).values]
                ours = torch.from_numpy(found.logits[0, side].copy())
                flipped = -ours.flip(0)
                expected = torch.stack(ends)
                assert torch.allclose(ours, expected, **CLOSE) or torch.allclose(flipped, expected, **CLOSE)

    @given(models(norm_places="pre"))
    def test_the_plus_end_of_what_is_read_is_written_as_the_plus_end(self, model: GPT) -> None:
        circuit = ov_circuit(model)[0, 0]
        found = singular_directions(model, "OV", 0, 0, n=1, k=11)
        unembed = read(model, Site("unembed.out"))
        order = found.ids[0, 0, 0].argsort()
        side = torch.from_numpy(found.logits[0, 0, 0][order].copy())  # u · W_U, in the order of tokens
        u = torch.linalg.lstsq(unembed.T, side[:, None], driver="gelsd").solution[:, 0]
        known = unembed @ torch.linalg.pinv(unembed)  # eleven tokens do not see all of twelve dimensions
        left = circuit.U[:, 0]
        sign = torch.sign((known @ left) @ u)
        expected = (sign * left) @ circuit.AB / found.values[0] @ unembed
        np.testing.assert_allclose(found.logits[0, 1, 0][found.ids[0, 1, 0].argsort()], expected.detach(), **CLOSE)

    def test_the_result_survives_a_file_and_is_a_table_and_a_page(self, tmp_path: Any) -> None:
        found = singular_directions(load("town"), "OV", 1, 3, n=4, k=3)
        found.save(tmp_path / "found.safetensors")
        assert Result.load(tmp_path / "found.safetensors") == found
        assert isinstance(found, SingularDirections)
        assert {"side_label", "end_label", "tokens"} <= set(found.to_dataframe("tokens").columns)
        assert "Singular directions" in found.to_html()


class LargestTensor(TorchDispatchMode):
    """The most numbers that any tensor held."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_nothing_is_as_large_as_the_vocabulary_squared() -> None:
    d_vocab = 30_000
    model = GPT(TransformerConfig(**SIZES | {"d_vocab": d_vocab}, seed=0))
    with LargestTensor() as largest, torch.no_grad():
        circuit_eigenvalues(model)
        copying_scores(model, n=1000)
        singular_directions(model, "OV", 1, 0)
        full = full_ov_circuit(model, 0, 1)
        full.eigenvalues, full.svd(), full[torch.tensor([5, 7])].AB
        full_qk_circuit(model, 1, 1).norm()
    assert largest.numbers <= 2**24  # 56 times less than 30,000²


class TestInduction2L:
    """The shipped model whose circuit is known: a previous-token head that the induction heads' keys read."""

    @pytest.fixture
    def model(self) -> GPT:
        return load("induction-2l")

    def test_the_strongest_composition_is_previous_token_head_to_induction_heads_keys(self, model: GPT) -> None:
        scores, found = head_scores(model), head_composition(model)
        previous = f"L0H{scores.previous[0].argmax()}"
        induction = {f"L1H{head}" for head in scores.induction[1].argsort()[-2:]}
        first = [dict(entry.at) for entry in found.highest(3)]
        assert {entry["mode"][1] for entry in first} == {"K"}
        assert {entry["sender"][1] for entry in first} == {previous}
        assert induction <= {entry["receiver"][1] for entry in first}
        assert found.highest(1)[0].value > 10 * found.spread

    def test_the_induction_heads_copy_and_the_others_less(self, model: GPT) -> None:
        best = head_scores(model).induction[1].argsort()[-2:]
        assert circuit_eigenvalues(model).copying[1, best].min() > 0.9
        copying = copying_scores(model, torch.arange(64))
        assert (copying.copying[1] == 1).all()
        assert not copying.suppression[1].any()


def test_in_the_town_the_heads_that_copy_names_compose_with_the_head_that_writes_the_answer() -> None:
    """V-composition of the second layer's copiers with L2H1, and K-composition of L0H5 with the whole second layer.

    Each is the strongest of its kind from that layer, and above ten times the spread of random weights.
    """
    found = head_composition(load("town"))
    values = found.values.reshape(3, 4, 8, 4, 8)  # mode, sender's layer and head, receiver's layer and head
    copiers = [0, 1, 3, 4, 5, 6, 7]
    into_values = values[2, 1][copiers, 2].mean(0)
    assert into_values.argmax() == 1
    assert into_values[1] > 10 * found.spread
    into_keys = values[1, 0, :, 1].mean(1)
    assert into_keys.argmax() == 5  # the head of the first layer that looks most at the previous token
    assert into_keys[5] > 10 * found.spread


MODEL = random_model(TransformerConfig(**SIZES), seed=3)
ONE_LAYER = random_model(TransformerConfig(**SIZES | {"n_layers": 1}, attn_only=True), seed=3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda: full_ov_circuit(MODEL, 0, 5), ["no head (0, 5)", "heads 0 to 1"]),
        (lambda: full_qk_circuit(MODEL, 2, 0), ["no head (2, 0)", "layers 0 to 1"]),
        (lambda: written(MODEL, Site("q", 0)), ["'q'", "embed, pos_embed, z, mlp_post"]),
        (lambda: read(MODEL, Site("z", 0)), ["'z'", "q, k, v"]),
        (lambda: read(MODEL, Site("q", 4)), ["layers 0 to 1"]),
        (lambda: written(MODEL, Site("mlp_post", 0, neuron=9)), ["0 to 8"]),
        (lambda: written(ONE_LAYER, Site("mlp_post", 0)), ["has no 'mlp_post'"]),
        (lambda: virtual_weights(MODEL, Site("z", 0), Site("q", 1, head=0)), ["expected one head", "head=0"]),
        (lambda: virtual_weights(MODEL, Site("z", 1, head=0), Site("q", 1, head=0)), ["comes later"]),
        (lambda: virtual_weights(MODEL, Site("mlp_post", 1), Site("mlp_pre", 0)), ["comes later"]),
        (lambda: virtual_weights(MODEL, Site("embed", pos=1), Site("q", 1, head=0)), ["no position"]),
        (lambda: head_composition(ONE_LAYER), ["1 layer", "a later one"]),
        (lambda: copying_scores(MODEL, torch.tensor([11])), ["from 0 to 10"]),
        (lambda: copying_scores(MODEL, torch.tensor([], dtype=torch.long)), ["at least one id"]),
        (lambda: copying_scores(MODEL, k=0), ["k=0", "1 to 5"]),
        (lambda: singular_directions(MODEL, "VO", 0, 0), ["unknown matrix 'VO'", "OV, QK"]),
        (lambda: singular_directions(MODEL, "OV", 0), ["expected a head for OV"]),
        (lambda: singular_directions(MODEL, "mlp_in", 0, 1), ["none for mlp_in"]),
        (lambda: singular_directions(MODEL, "OV", 3, 0), ["layers 0 to 1"]),
        (lambda: singular_directions(MODEL, "OV", 0, 0, n=0), ["at least one direction"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(call: Any, fragments: list[str]) -> None:
    with pytest.raises(LabError) as caught:
        call()
    for fragment in fragments:
        assert fragment in str(caught.value)
