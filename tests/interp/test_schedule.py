"""The schedule: every run in one climb, in order, within the memory and the positions that a climb may have."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from interp.sweep.costs import Costs
from interp.sweep.schedule import best_cuts, climbs, item_bytes
from interp.sweep.survey import EMBEDDING, FINISH, KNOWN, LATE, WHOLE, Survey
from models import TransformerConfig
from tests.strategies import SEEDS, random_model

N_LAYERS, N_POS, READ = 4, 9, (1, 3)
COSTS = Costs.of(
    random_model(TransformerConfig(n_layers=N_LAYERS, n_heads=2, d_model=8, d_vocab=11, n_ctx=N_POS)), N_POS
)


@st.composite
def surveys(draw: st.DrawFn) -> Survey:
    """Any runs of 20 rows and 5 prompts, each starting anywhere and knowing anything; a row ends as a whole."""
    rng = np.random.default_rng(draw(SEEDS))
    row, prompt = np.nonzero(rng.random((20, 5)) < draw(st.sampled_from([0.05, 0.5, 1.0])))
    endings = rng.choice([FINISH, LATE, WHOLE], 20)
    company = np.where(rng.random(20) < 0.2, 1, 0)
    step, start = rng.integers(EMBEDDING, N_LAYERS + 1, len(row)), rng.integers(0, N_POS, len(row))
    return Survey(row, prompt, step, start, endings[row], company[row], rng.integers(0, len(KNOWN), len(row)))


Entry = tuple[int, ...]


def entries(survey: Survey) -> dict[tuple[int, int], Entry]:
    """By row and prompt: step, start, and what those that climb together have in common."""
    columns = (survey.step, survey.start, survey.ending, survey.company, survey.known)
    return dict(zip(zip(survey.row, survey.prompt, strict=True), zip(*columns, strict=True), strict=True))


def largest_item(survey: Survey) -> int:
    return max((item_bytes(COSTS, 0, int(ending), READ) for ending in survey.ending), default=1)


@given(surveys(), st.floats(1, 30), st.sampled_from([1e3, 1e6, 1e9]), st.sampled_from([N_POS, 30, 10**6]))
def test_climbs_cover_the_survey_once_within_bounds(
    survey: Survey, share: float, launch: float, positions: int
) -> None:
    budget, costs = int(share * largest_item(survey)), replace(COSTS, launch=launch, positions=positions)
    wanted, found = entries(survey), []
    for climb in climbs(survey, costs, budget, READ):
        assert len(climb) * item_bytes(costs, climb.start, climb.ending, READ) <= budget
        assert len(climb) * (N_POS - climb.start) <= positions
        assert (np.diff(climb.step) >= 0).all()
        members = list(zip(climb.row, climb.prompt, strict=True))
        assert [wanted[member][0] for member in members] == climb.step.tolist()
        assert climb.start <= min(wanted[member][1] for member in members)
        [(ending, _, known)] = {wanted[member][2:] for member in members}
        assert (climb.ending, climb.known) == (ending, known)
        found += members
    assert sorted(found) == sorted(wanted)


@given(surveys(), st.sampled_from([0.0, 1e12]))
def test_a_free_start_gives_every_start_a_climb_and_a_dear_one_joins_all(survey: Survey, launch: float) -> None:
    survey = replace(survey, step=survey.step.clip(max=N_LAYERS - 1))  # each has a layer to run
    costs = replace(COSTS, launch=launch)
    found = list(climbs(survey, costs, 10**12, READ))
    groups: dict[Entry, set[int]] = {}
    for _, start, *kind in entries(survey).values():
        groups.setdefault(tuple(kind), set()).add(start)
    if launch:
        assert len(found) == len(groups)
        assert sorted(climb.start for climb in found) == sorted(min(starts) for starts in groups.values())
    else:
        assert sorted(climb.start for climb in found) == sorted(start for starts in groups.values() for start in starts)


def total(length: np.ndarray, work: np.ndarray, overhead: float, bounds: list[int]) -> float:
    return sum(overhead + length[first] * work[first:stop].sum() for first, stop in pairwise(bounds))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8, unique=True), SEEDS, st.floats(0, 300))
def test_no_partition_of_the_starts_costs_less_than_the_one_chosen(
    lengths: list[int], seed: int, overhead: float
) -> None:
    length = np.array(sorted(lengths, reverse=True))
    work = np.random.default_rng(seed).integers(1, 50, len(length)).astype(float)
    chosen = best_cuts(length, work, overhead)
    assert (chosen[0], chosen[-1]) == (0, len(length))
    assert chosen == sorted(set(chosen))
    inner = range(1, len(length))
    every = ([0, *(i for i in inner if cuts >> i & 1), len(length)] for cuts in range(0, 2 ** len(length), 2))
    least = min(total(length, work, overhead, bounds) for bounds in every)
    # The chosen sum is added up in another order.
    assert total(length, work, overhead, chosen) <= least * (1 + 1e-12)


def test_one_prompt_runs_even_if_it_has_more_positions_than_a_climb_should() -> None:
    one = np.zeros(3, dtype=np.int64)
    survey = Survey(np.arange(3), one, one, one, one + FINISH, one, one)
    found = list(climbs(survey, replace(COSTS, positions=2), 10**9, READ))
    assert [len(climb) for climb in found] == [1, 1, 1]


def test_nothing_to_run_is_no_climb() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert list(climbs(Survey(*[none] * 7), COSTS, 10**9, READ)) == []
