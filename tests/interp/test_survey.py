"""The survey says where a row first changes anything; how many edits it tries at a time does not matter."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp import PromptPairs, Site, edits, metrics
from interp.sweep import survey
from interp.sweep.base import BaseRun
from interp.sweep.survey import Survey
from models import GPT, TransformerConfig
from tests.pairs import pairs, random_pairs
from tests.strategies import SEEDS, models, random_model
from tests.sweeps import Dice


def surveyed(model: GPT, prompts: PromptPairs, rows: list, together: int) -> dict[str, np.ndarray]:
    names = {edit.site.hook_name for row in rows for edit in row}
    with mock.patch.object(survey, "TOGETHER", together):
        return vars(Survey.of(BaseRun.of(model, prompts, names), rows, metrics.logit_diff))


@pytest.mark.usefixtures("unchecked")  # for speed: other tests check annotations
@given(models(), pairs(), SEEDS, st.integers(1, 400))
def test_edits_tried_together_are_found_to_change_what_they_change_alone(
    model: GPT, prompts: PromptPairs, seed: int, together: int
) -> None:
    rows = Dice(model, prompts, seed).rows(4)
    np.testing.assert_equal(surveyed(model, prompts, rows, together), surveyed(model, prompts, rows, 1))


def test_neighbours_that_change_different_positions_of_different_prompts_are_told_apart() -> None:
    cfg = TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=8)
    model, prompts = random_model(cfg, seed=2), random_pairs(1, (6, 6))
    site = Site("z", 0, head=1)
    _, cache = model.run_with_cache(prompts.clean, names_filter=site.hook_name)
    values = cache[site.hook_name][:, :, 1]
    rows = []
    for prompt, pos in ((0, 4), (1, 2)):
        other = values.clone()
        other[prompt, pos] += 1
        rows.append([edits.write(site, other)])
    found = surveyed(model, prompts, [*rows, [edits.write(site, values)]], 10**6)
    assert [found[name].tolist() for name in ("row", "prompt", "start")] == [[0, 1], [0, 1], [4, 2]]
