"""Path patching against the three passes that define it, written out with hooks; its identities; a known circuit.

Everything is float64 unless said; TOLERANCE is for the rounding of different kernels, relative to the largest number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import head_scores, path_patching
from analyses.direct_paths import DirectPaths
from analyses.paths import PathPatchingResult
from interp import LabError, PromptPairs, Site, metrics, tasks
from interp.results import Result
from interp.stream_points import written_at
from models import GPT, TransformerConfig, load
from tests.checkpoints import FAMILIES, VOCAB, saved
from tests.pairs import pairs, random_pairs
from tests.strategies import ADDITIVE, SEEDS, SUMMED, models, random_model

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 3, "n_heads": 4, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}
MODEL = random_model(TransformerConfig(**SIZES), seed=3)
GROUPED = random_model(TransformerConfig(**SIZES, n_key_value_heads=2, attn_only=True), seed=4)
EMBED = Site("embed")


def sites_of(receiver: Any) -> tuple[Site, ...]:
    return (receiver,) if isinstance(receiver, Site) else receiver


def everything(model: GPT) -> list[Site]:
    """Every head, MLP and the embedding, as senders."""
    kinds = ["z"] if model.cfg.attn_only else ["z", "mlp_out"]
    return [EMBED, *(Site(kind, layer) for layer in range(model.cfg.n_layers) for kind in kinds)]


def one_by_one(model: GPT, senders: list[Site]) -> list[Site]:
    heads = range(model.cfg.n_heads)
    each = [[Site("z", s.layer, head) for head in heads] if s.kind == "z" else [s] for s in senders]
    return [site for sites in each for site in sites]


def put(values: torch.Tensor, head: int | None, chosen: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A hook that writes one head's values (or all) where chosen."""

    def hook(activation: torch.Tensor, hook: Any = None) -> torch.Tensor:
        where = chosen.reshape(*chosen.shape, *[1] * (activation.ndim - 2)).expand_as(activation).clone()
        if head is not None:
            others = torch.arange(activation.shape[2]) != head
            where[:, :, others] = False
        return torch.where(where, values, activation)

    return hook


@dataclass(frozen=True)
class ThreePasses:
    """The definition, through hooks alone. own, other: every activation of the patched run and of the other one."""

    model: GPT
    runs: PromptPairs
    freeze_mlps: bool
    chosen: torch.Tensor
    metric: Any
    own: Any
    other: Any

    @classmethod
    def of(
        cls, model: GPT, pairs: PromptPairs, direction: str, freeze_mlps: bool, chosen: torch.Tensor, metric: Any
    ) -> ThreePasses:
        runs = pairs if direction == "noise" else pairs.swapped()
        caches = [
            model.run_with_cache(tokens, attention_mask=pairs.mask, names_filter=lambda name: True)[1]
            for tokens in (runs.clean, runs.corrupted)
        ]
        return cls(model, runs, freeze_mlps, chosen, metric, *caches)

    def effect(self, sender: Site, receiver: Any) -> torch.Tensor:
        """The metric [prompt] of the third pass; of the second, for the logits."""
        kinds = ["z", "mlp_out"] if self.freeze_mlps and not self.model.cfg.attn_only else ["z"]
        frozen = [Site(kind, layer).hook_name for layer in range(self.model.cfg.n_layers) for kind in kinds]
        everywhere = torch.ones_like(self.chosen)
        second = [(name, put(self.own[name], None, everywhere)) for name in frozen]
        second.append((sender.hook_name, put(self.other[sender.hook_name], sender.head, self.chosen)))
        if receiver == "logits":
            return self.run(second)
        reached, third = self.read(second, sites_of(receiver)), []
        for site in sites_of(receiver):
            where = everywhere
            if site.pos is not None:
                where = torch.zeros_like(where)
                where[:, site.pos] = True
            third.append((site.hook_name, put(reached[site.hook_name], site.head, where)))
        return self.run(third)

    def run(self, hooks: list[Any]) -> torch.Tensor:
        with torch.no_grad(), self.model.hooks(hooks):
            return self.metric(self.model(self.runs.clean, attention_mask=self.runs.mask), self.runs)

    def read(self, hooks: list[Any], sites: Sequence[Site]) -> Any:
        names = [site.hook_name for site in sites]
        with torch.no_grad(), self.model.hooks(hooks):
            return self.model.run_with_cache(self.runs.clean, attention_mask=self.runs.mask, names_filter=names)[1]


def some_receivers(model: GPT, seed: int) -> list[Any]:
    """The logits, one input of each kind, and two inputs together, perhaps of different layers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    def site(kind: str) -> Site:
        heads = model.cfg.n_kv_heads if kind in ("k", "v") else model.cfg.n_heads
        return Site(kind, draw(model.cfg.n_layers), None if kind == "mlp_in" else draw(heads))

    single = [site(kind) for kind in ("q", "k", "v")] + ([] if model.cfg.attn_only else [site("mlp_in")])
    top = model.cfg.n_layers - 1
    together = (Site("v", 0), Site("k", top), *([] if model.cfg.attn_only else [Site("mlp_in", draw(top + 1))]))
    return ["logits", *single, together, Site("q", top, 1, pos=-1)]


def assert_three_passes(result: PathPatchingResult, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(
        result.raw, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().nan_to_num().max()))
    )


@pytest.mark.usefixtures("unchecked")  # for speed: hundreds of tiny forwards; other tests check annotations
@given(
    models(**SUMMED),
    pairs(max_pos=5),
    SEEDS,
    st.sampled_from(["noise", "denoise"]),
    st.booleans(),
    st.sampled_from(["logit_diff", "log_prob", "cross_entropy"]),
)
def test_path_patching_is_its_three_passes(
    model: GPT, pairs: PromptPairs, seed: int, direction: str, freeze_mlps: bool, name: str
) -> None:
    """On any architecture, for every sender, kinds of receiver alone and together, padding on either side."""
    senders, receivers = everything(model), some_receivers(model, seed)
    generator = torch.Generator().manual_seed(seed)
    chosen = pairs.mask & (torch.rand(pairs.mask.shape, generator=generator) < 0.7)
    chosen[0] = pairs.mask[0]
    result = path_patching(
        model, pairs, receivers, senders, name, direction, positions=chosen, freeze_mlps=freeze_mlps, normalize=False
    )
    naive = ThreePasses.of(model, pairs, direction, freeze_mlps, chosen, metrics.get(name))
    expected = [
        torch.stack([naive.effect(sender, receiver) for receiver in receivers]) for sender in one_by_one(model, senders)
    ]
    assert_three_passes(result, torch.stack(expected))


def test_numbered_positions_are_those_of_every_prompt() -> None:
    pairs = random_pairs(1, (5, 3, 6))
    mask = torch.zeros_like(pairs.mask)
    mask[:, [2, -1]] = True
    numbered, masked = (path_patching(MODEL, pairs, positions=where, normalize=False) for where in ([2, -1], mask))
    np.testing.assert_array_equal(numbered.raw, masked.raw)


def test_kl_compares_with_the_clean_run() -> None:
    pairs = random_pairs(2, (5, 4))
    with torch.no_grad():
        measure = metrics.kl(MODEL(pairs.clean, attention_mask=pairs.mask), pairs)
    sender, receiver = Site("mlp_out", 0), Site("q", 2, head=1)
    for direction in ("noise", "denoise"):
        result = path_patching(MODEL, pairs, receiver, [sender], "kl", direction, normalize=False)
        naive = ThreePasses.of(MODEL, pairs, direction, True, pairs.mask, measure)
        assert_three_passes(result, naive.effect(sender, receiver)[None, None])
    assert np.abs(result.corrupted).min() > 1e-3 > np.abs(result.clean).max()


@given(models(normalization_type=None, **ADDITIVE), pairs())
def test_without_norms_the_direct_effects_on_the_logits_add_up_to_the_whole_difference(
    model: GPT, pairs: PromptPairs
) -> None:
    result = path_patching(model, pairs, senders=everything(model), normalize=False)
    change = (result.raw - result.clean)[:, 0].sum(0)
    scale = max(1.0, float(np.abs(result.raw).max()))
    np.testing.assert_allclose(change, result.corrupted - result.clean, rtol=0, atol=TOLERANCE * scale)


@given(models(normalization_type=None, **ADDITIVE), pairs())
def test_without_norms_all_that_reaches_a_query_adds_up_to_the_other_runs_query(model: GPT, pairs: PromptPairs) -> None:
    """Changes add up where nothing comes after the receiver that is not linear: here in the receiver itself."""
    layer = model.cfg.n_layers - 1
    caches = [
        model.run_with_cache(tokens, attention_mask=pairs.mask, names_filter=lambda name: True)[1]
        for tokens in (pairs.clean, pairs.corrupted)
    ]
    paths = DirectPaths(model, caches[0], caches[1], pairs.mask, freeze_mlps=True)
    total = torch.zeros_like(caches[0]["q", layer])
    for sender in one_by_one(model, everything(model)):
        start = written_at(model.cfg, sender)
        for _, delta in paths.arriving(paths.written([sender]), start, [2 * layer]):
            total += paths.read("q", layer, delta)[0]
    change = torch.where(pairs.mask[..., None, None], caches[1]["q", layer] - caches[0]["q", layer], 0.0)
    torch.testing.assert_close(total, change, rtol=0, atol=TOLERANCE * max(1.0, float(change.abs().max())))


def reaches(result: PathPatchingResult) -> np.ndarray:
    """Whether anything arrives, [sender receiver]."""
    base = result.clean if result.direction == "noise" else result.corrupted
    return (result.raw != base).any(-1)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_sender_that_does_not_come_before_the_receiver_has_exactly_no_effect(parallel: bool) -> None:
    model = random_model(TransformerConfig(**SIZES, parallel_attn_mlp=parallel), seed=5)
    receivers = [Site("q", 1, head=0), Site("v", 1, head=0), Site("mlp_in", 1), (Site("k", 0), Site("mlp_in", 0))]
    result = path_patching(model, random_pairs(3), receivers, direction="denoise", normalize=False)
    expected = {
        f"L{layer}H{head}": [
            layer < 1,
            layer < 1,
            layer < 1 or (layer == 1 and not parallel),
            layer == 0 and not parallel,
        ]
        for layer in range(3)
        for head in range(4)
    }
    expected |= {f"MLP{layer}": [layer < 1, layer < 1, layer < 1, False] for layer in range(3)}
    found = dict(zip(result.labels["sender"], reaches(result).tolist(), strict=True))
    assert found == {name: [bool(one) for one in row] for name, row in expected.items()}
    assert (result.values[~reaches(result)] == 0).all()


def test_a_prompt_that_is_its_own_corruption_has_exactly_no_effect() -> None:
    pairs = random_pairs(4, (5, 4, 6))
    corrupted = pairs.corrupted.clone()
    corrupted[1] = pairs.clean[1]
    pairs = PromptPairs(pairs.clean, corrupted, pairs.mask, pairs.right, pairs.wrong)
    receivers = ["logits", Site("k", 2), Site("mlp_in", 1)]
    for freeze_mlps in (True, False):
        result = path_patching(MODEL, pairs, receivers, freeze_mlps=freeze_mlps, normalize=False)
        assert (result.raw[..., 1] == result.clean[1]).all()
        assert (result.raw[..., 0] != result.clean[0]).any()


def test_before_the_positions_where_prompts_differ_nothing_flows() -> None:
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    pairs = PromptPairs.from_tokens(tokens, torch.tensor([[1, 2, 3, 9, 5, 6]]), [7], [8])
    result = path_patching(MODEL, pairs, [Site("k", 2), "logits"], positions=[0, 1, 2], normalize=False)
    assert not reaches(result).any()


def test_a_layer_is_a_receiver_for_each_of_its_heads() -> None:
    pairs = random_pairs(5)
    result = path_patching(GROUPED, pairs, [Site("q", 2), Site("k", 2), "logits"])
    names = [f"L2H{head}.q" for head in range(4)] + ["L2H0.k", "L2H1.k", "logits"]
    assert result.labels["receiver"] == tuple(names)
    alone = path_patching(GROUPED, pairs, Site("k", 2, head=1))
    np.testing.assert_allclose(result.heads("L2H1.k"), alone.heads(), atol=TOLERANCE)
    np.testing.assert_array_equal(result.heads("L2H1.k"), result.heads(5))


def test_heads_that_were_no_senders_are_not_numbers() -> None:
    result = path_patching(MODEL, random_pairs(5), senders=[Site("z", 1), Site("mlp_out", 0)])
    grid = result.heads()
    assert grid.shape == (3, 4)
    assert np.isnan(grid[[0, 2]]).all()
    np.testing.assert_array_equal(grid[1], result.values[:4, 0])


@pytest.mark.parametrize("norm", ["LN", "RMS"])
@pytest.mark.parametrize("places", ["post", "both"])
def test_a_norm_after_attention_and_mlps_is_part_of_the_path(norm: str, places: str) -> None:
    """A head's change goes through it with its scale computed anew, as the three passes do."""
    cfg = TransformerConfig(**SIZES | {"n_layers": 2}, normalization_type=norm, norm_places=places)
    model, given = random_model(cfg, seed=8), random_pairs(8, (4, 3))
    everywhere, receivers = given.mask, ["logits", Site("q", 1, 2), Site("mlp_in", 1)]
    senders = [Site("z", layer, head) for layer in range(2) for head in (0, 3)]
    for freeze_mlps in (True, False):
        found = path_patching(model, given, receivers, senders, freeze_mlps=freeze_mlps, normalize=False)
        naive = ThreePasses.of(model, given, "noise", freeze_mlps, everywhere, metrics.logit_diff)
        rows = [torch.stack([naive.effect(sender, receiver) for receiver in receivers]) for sender in senders]
        assert_three_passes(found, torch.stack(rows))
        assert np.abs(found.values[:2]).min() > 1e-6


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_one_is_the_whole_way_to_the_other_run(direction: str) -> None:
    """With no norm and no layer to speak of the embedding's direct path is everything that the answer rests on."""
    model = random_model(TransformerConfig(**SIZES | {"n_layers": 1}, normalization_type=None, attn_only=True), seed=6)
    with torch.no_grad():
        model.blocks[0].get_submodule("attn.o").weight.zero_()
    result = path_patching(model, random_pairs(6, (4, 4)), senders=[EMBED], direction=direction)
    np.testing.assert_allclose(result.values, 1.0, atol=TOLERANCE)


@given(models(**SUMMED), pairs(), st.floats(1, 9), st.booleans())
def test_the_budget_changes_nothing(model: GPT, pairs: PromptPairs, times: float, freeze_mlps: bool) -> None:
    receivers = ["logits", Site("q", model.cfg.n_layers - 1), Site("v", 0)]
    whole = path_patching(model, pairs, receivers, freeze_mlps=freeze_mlps, normalize=False)
    with pytest.raises(LabError, match=r"at least \d+ bytes") as refused:
        path_patching(model, pairs, receivers, freeze_mlps=freeze_mlps, normalize=False, budget=64)
    enough = max(int(str(refused.value).split(" bytes")[0].split()[-1]), 40_000)  # and what one row of a sweep takes
    split = path_patching(model, pairs, receivers, freeze_mlps=freeze_mlps, normalize=False, budget=int(times * enough))
    scale = max(1.0, float(np.abs(whole.raw).max()))
    np.testing.assert_allclose(split.raw, whole.raw, rtol=0, atol=TOLERANCE * scale)


def test_the_result_says_which_run_is_patched_and_what_the_mlps_do() -> None:
    result = path_patching(MODEL, random_pairs(7), freeze_mlps=False)
    assert "in the clean run" in result.shows
    assert "recomputed; 0 is no change, 1 the corrupted run" in result.shows
    result = path_patching(MODEL, random_pairs(7), direction="denoise", normalize=False)
    assert "in the corrupted run" in result.shows
    assert "frozen; in units of logit_diff" in result.shows


def test_the_result_is_the_same_after_saving(tmp_path: Path) -> None:
    result = path_patching(MODEL, random_pairs(7), [Site("q", 2), "logits"])
    result.save(tmp_path / "paths.safetensors")
    assert Result.load(tmp_path / "paths.safetensors") == result


def test_baselines_that_do_not_differ_give_changes_and_a_warning() -> None:
    pairs = random_pairs(8, (4, 4))
    same = PromptPairs(pairs.clean, pairs.clean, pairs.mask, pairs.right, pairs.wrong)
    with pytest.warns(UserWarning, match="not normalised"):
        result = path_patching(MODEL, same)
    assert not result.normalized
    assert (result.values == 0).all()


SITE = Site("q", 1, head=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"receivers": Site("resid_pre", 1)}, "expected 'logits' or a site of kind 'q', 'k' or 'v'"),
        ({"receivers": "logit"}, "receiver 'logit'; expected 'logits'"),
        ({"receivers": []}, "there are no receivers"),
        ({"receivers": [[SITE]]}, "a tuple of Sites"),
        ({"receivers": [SITE, SITE]}, "'?L1H0.q'? is given twice"),
        ({"receivers": [(SITE, Site("q", 1))]}, "contradict each other"),
        ({"receivers": Site("q", 3)}, "has 3 layers, 0 to 2"),
        ({"receivers": Site("q", 1, head=4)}, "layer 1 has 4 heads"),
        ({"receivers": Site("q", 1, pos=6)}, "have 6 positions; expected -6 to 5"),
        ({"senders": [Site("resid_pre", 1)]}, r"expected Site\('z', layer"),
        ({"senders": [Site("z", 1, head=9)]}, "layer 1 has 4 heads"),
        ({"senders": [Site("z", 1, pos=2)]}, "go into positions="),
        ({"senders": ["L0H1"]}, r"sender L0H1; expected Site\('z'"),
        ({"senders": [Site("mlp_out", 5)]}, "has 3 layers"),
        ({"senders": []}, "there are no senders"),
        ({"positions": [6]}, "position 6 of prompts with 6"),
        ({"positions": []}, "chooses no token"),
        ({"positions": torch.ones(2, 6, dtype=torch.bool)}, r"a mask \[2, 6\]; expected the prompts' \[3, 6\]"),
        ({"direction": "noisy"}, "closest: 'noise'"),
        ({"metric": "logit_dif"}, "closest: 'logit_diff'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_has_no_direct_path_is_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        path_patching(MODEL, random_pairs(9), **arguments)


def test_what_the_model_does_not_have_is_refused() -> None:
    pairs = random_pairs(9)
    with pytest.raises(LabError, match="has no MLPs"):
        path_patching(GROUPED, pairs, Site("mlp_in", 1))
    with pytest.raises(LabError, match="2 key/value heads"):
        path_patching(GROUPED, pairs, Site("k", 1, head=2))
    with (
        pytest.raises(LabError, match=r"hooks are attached to blocks\.0\.attn\.hook_z"),
        MODEL.hooks([("blocks.0.attn.hook_z", lambda z, hook: z * 0)]),
    ):
        path_patching(MODEL, pairs)
    result = path_patching(MODEL, pairs, [Site("q", 1)])
    with pytest.raises(LabError, match=r"give one of L1H0\.q, L1H1\.q"):
        result.heads()
    with pytest.raises(LabError, match=r"closest: 'L1H0\.q'"):
        result.heads("L1H0.k")


def test_a_model_whose_parts_do_not_add_up_is_refused() -> None:
    """Something between the queries' weights and the queries, as QK-norm is."""
    model = random_model(TransformerConfig(**SIZES), seed=8)
    projection = model.get_submodule("blocks.1.attn.q")
    projection.register_forward_hook(lambda module, given, out: out / out.norm(dim=-1, keepdim=True))
    path_patching(model, random_pairs(9), Site("k", 1))
    with pytest.raises(LabError, match=r"the q of layer 1 is not W ln1\(stream\) \+ b"):
        path_patching(model, random_pairs(9), Site("q", 1))


@pytest.mark.parametrize("freeze_mlps", [True, False])
def test_in_bfloat16_effects_are_those_of_float32_to_its_rounding(freeze_mlps: bool) -> None:
    """bfloat16 keeps 8 bits: an effect, of order 10 here, is a difference of two logit differences, off by 1 % each."""
    wide, narrow = load("town"), load("town", dtype=torch.bfloat16)
    pairs = tasks.ioi(wide, n=8)
    receivers = ["logits", Site("q", 3), Site("mlp_in", 2)]
    one, other = (
        path_patching(model, pairs, receivers, freeze_mlps=freeze_mlps, normalize=False) for model in (wide, narrow)
    )
    assert np.abs(one.values).max() > 5
    np.testing.assert_allclose(other.values, one.values, rtol=0, atol=0.02 * np.abs(one.values).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_bridge_effects_are_the_same(family: str, tmp_path: Path) -> None:
    """1e-4 in float32: activations agree to 2e-6, and the metric sums some hundred of them."""
    directory = str(saved(family, tmp_path))
    ours, bridge = load(directory), load(directory, backend="transformer-lens")
    pairs = random_pairs(3, (5, 4), d_vocab=VOCAB)
    together = (Site("q", 0), Site("v", 1))
    receivers = ["logits", *(Site(kind, 1) for kind in ("q", "k", "v", "mlp_in")), together]
    one, other = (path_patching(model, pairs, receivers, normalize=False) for model in (ours, bridge))
    assert (one.way, other.way) == ("resumed", "batched hooks")
    assert np.abs(one.values).max() > 0.1
    np.testing.assert_allclose(other.raw, one.raw, rtol=0, atol=1e-4)
    with pytest.raises(LabError, match="load the model with backend='native'"):
        path_patching(bridge, pairs, freeze_mlps=False)


def test_in_induction_the_previous_token_head_matters_to_the_keys() -> None:
    """In the corrupted prompt the answer follows another token than at the end, so only its key no longer fits.

    What tells the induction heads is the previous-token head's path to their keys (Elhage et al. 2021), not to their
    values or queries, and no other head's.
    """
    model = load("induction-2l")
    rng = np.random.default_rng(0)
    block = np.stack([rng.permutation(64)[:22] for _ in range(16)])
    clean, corrupted = (block[:, :20].copy() for _ in range(2))
    corrupted[:, 9] = block[:, 20]
    clean, corrupted = (np.concatenate([first, block[:, :10]], 1) for first in (clean, corrupted))
    tokens = [torch.from_numpy(side) for side in (clean, corrupted)]
    pairs = PromptPairs.from_tokens(
        *tokens, torch.from_numpy(block[:, 10]), torch.from_numpy(block[:, 21]), model=model
    )

    previous = int(head_scores(model).previous[0].argmax())
    heads = range(model.cfg.n_heads)
    every = {kind: tuple(Site(kind, 1, head) for head in heads) for kind in "qkv"}
    result = path_patching(model, pairs, list(every.values()), direction="noise")
    q, k, v = (result.heads(number)[0] for number in range(3))
    assert k[previous] > 0.8
    assert np.abs(np.delete(k, previous)).max() < 0.1
    assert max(np.abs(q).max(), np.abs(v).max()) < 0.1
