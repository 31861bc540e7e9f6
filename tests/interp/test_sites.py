"""Sites and hook names: one table, the same in both directions, and true of every model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import LabError
from interp.sites import KINDS, Site, axes_of, hook_name
from models import GPT
from tests.strategies import models, token_batches


@pytest.mark.parametrize("kind", KINDS)
def test_a_kinds_hook_name_leads_back_to_its_axes(kind: str) -> None:
    layer = 11 if KINDS[kind].per_layer else None
    site = Site(kind, layer)
    assert axes_of(site.hook_name) == site.axes == KINDS[kind].axes
    assert hook_name(kind, layer) == site.hook_name


@pytest.mark.parametrize(
    ("kind", "layer", "name"),
    [
        ("resid_post", 3, "blocks.3.hook_resid_post"),
        ("attn", 0, "blocks.0.attn.hook_pattern"),
        ("attn_logits", 0, "blocks.0.attn.hook_attn_scores"),
        ("pre", 2, "blocks.2.mlp.hook_pre"),
        ("scale1", 1, "blocks.1.ln1.hook_scale"),
        ("ln2.normalized", 1, "blocks.1.ln2.hook_normalized"),
        ("scale", None, "ln_final.hook_scale"),
        ("embed", None, "hook_embed"),
    ],
)
def test_short_names_of_the_field_are_understood(kind: str, layer: int | None, name: str) -> None:
    assert hook_name(kind, layer) == name


@given(models(), token_batches())
def test_every_hook_point_of_every_model_is_in_the_table(model: GPT, tokens: Tensor) -> None:
    del tokens
    known = {
        Site(kind, layer).hook_name
        for kind, entry in KINDS.items()
        for layer in (range(model.cfg.n_layers) if entry.per_layer else [None])
    }
    assert set(model.hook_dict) <= known


@given(st.sampled_from(["z", "q", "pattern", "resid_pre", "mlp_post"]), st.integers(0, 2), st.integers(0, 3))
def test_the_index_takes_one_head_and_one_position_and_leaves_the_batch(kind: str, head: int, pos: int) -> None:
    sizes = {"batch": 2, "pos": 4, "q_pos": 4, "k_pos": 4, "head": 3, "d_head": 5, "d_model": 6, "d_mlp": 7}
    tensor = torch.randn(tuple(sizes[axis] for axis in KINDS[kind].axes))
    has_head = "head" in KINDS[kind].axes
    site = Site(kind, 0, head=head if has_head else None, pos=pos)
    part = tensor[site.index]
    assert part.shape[0] == 2
    index = {"pattern": (head, pos), "z": (pos, head), "q": (pos, head)}.get(kind, (pos,))
    assert torch.equal(part, tensor[(slice(None), *index)])


def test_sites_are_values() -> None:
    assert Site("z", 1, head=2) == Site("z", 1, head=2)
    assert len({Site("z", 1), Site("z", 1), Site("z", 2)}) == 2
    assert str(Site("z", 1, head=2, pos=3)) == "Site('z', layer=1, head=2, pos=3)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "resid_pst", "layer": 0}, r"unknown site kind 'resid_pst'.*closest: 'resid_post'"),
        ({"kind": "z"}, r"needs a layer: try Site\('z', 0\)"),
        ({"kind": "embed", "layer": 0}, r"has no layer: try Site\('embed'\)"),
        ({"kind": "z", "layer": -1}, r"layer=-1.*expected a layer from 0"),
        ({"kind": "resid_pre", "layer": 0, "head": 1}, r"gives a head, but 'resid_pre' has the axes batch pos d_model"),
    ],
)
def test_a_site_that_cannot_be_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(LabError, match=message) as error:
        Site(**arguments)
    assert "\n" not in str(error.value)


def test_a_name_that_is_not_in_the_table_has_no_axes() -> None:
    assert axes_of("blocks.0.hook_something") is None
