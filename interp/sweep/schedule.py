"""The schedule: which rows climb together.

What is run together starts at one position, so a climb takes the rows whose first change is at that position or a
little later: running a few positions too many is cheaper than starting the layers once more. A climb is cut where its
memory would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from interp.sweep.costs import Costs
from interp.sweep.survey import FINISH, WHOLE, Survey


@dataclass(frozen=True)
class Climb:
    """(row, prompt) runs that go up the layers together, in the order in which they join.

    row, prompt, step: their numbers, and the layer at which each joins. start: the first position of all of them.
    ending, known: of all of them, as in `Survey`.
    """

    row: Int[np.ndarray, "item"]
    prompt: Int[np.ndarray, "item"]
    step: Int[np.ndarray, "item"]
    start: int
    ending: int
    known: int

    def __len__(self) -> int:
        return len(self.row)

    def operations(self, costs: Costs, read: tuple[int, int]) -> float:
        """Floating-point operations; read: positions and vocabulary entries that the metric reads."""
        positions, tokens = (costs.n_pos, costs.vocabulary) if self.ending == WHOLE else read
        layers = costs.n_layers - 1 - self.step.clip(0)  # below the last
        last = costs.last_layer(self.start, read[0]) if self.ending == FINISH else costs.layer(self.start)
        reach_last = self.step < costs.n_layers
        blocks = (layers.clip(0) * costs.layer(self.start) + reach_last * last).sum()
        blocks -= len(self) * costs.known[self.known] * (costs.n_pos - self.start)
        return float(blocks + len(self) * positions * tokens * costs.logit)

    def calls(self, n_layers: int) -> int:
        """How many times a layer is run: where newcomers know something, once for them and once for the others."""
        first, apart = max(0, int(self.step.min())), len(np.unique(self.step)) - 1 if self.known else 0
        return n_layers - first + apart


def climbs(survey: Survey, costs: Costs, budget: int, read: tuple[int, int]) -> Iterator[Climb]:
    """The whole survey as climbs. budget: bytes for a climb."""
    kinds = np.stack([survey.ending, survey.company, survey.known])
    for kind in np.unique(kinds, axis=1).T:
        members = np.nonzero((kind == kinds.T).all(1))[0]
        ending, _, known = kind.tolist()
        for start, chosen in _together(survey, members, costs):
            order = chosen[np.lexsort((survey.prompt[chosen], survey.row[chosen], survey.step[chosen]))]
            size = max(
                1, min(budget // item_bytes(costs, start, ending, read), costs.positions // (costs.n_pos - start))
            )
            for first in range(0, len(order), size):
                part = order[first : first + size]
                yield Climb(survey.row[part], survey.prompt[part], survey.step[part], start, ending, known)


def item_bytes(costs: Costs, start: int, ending: int, read: tuple[int, int]) -> int:
    """Memory that one (row, prompt) needs in a climb."""
    positions, tokens = (costs.n_pos, costs.vocabulary) if ending == WHOLE else read
    return (costs.n_pos - start) * costs.token + costs.item + 4 * 4 * positions * tokens


def _together(
    survey: Survey, members: Int[np.ndarray, "member"], costs: Costs
) -> Iterator[tuple[int, Int[np.ndarray, "chosen"]]]:
    """The members in groups of neighbouring starts, each with its first, so that the whole costs least."""
    starts = survey.start[members]
    layers = (costs.n_layers - survey.step[members].clip(0)).astype(float)
    distinct = np.unique(starts)
    work = np.array([layers[starts == start].sum() for start in distinct])
    overhead = costs.launch / costs.block * costs.n_layers
    bounds = best_cuts(costs.n_pos - distinct, work, overhead)
    for first, stop in pairwise(bounds):
        inside = (starts >= distinct[first]) & (starts <= distinct[stop - 1])
        yield int(distinct[first]), members[inside]


def best_cuts(length: Int[np.ndarray, "start"], work: Float[np.ndarray, "start"], overhead: float) -> list[int]:
    """Where to cut a list of starts into groups so that the sum over groups of overhead + length · work is least.

    length: of the runs from each start, falling; a group runs its first one's. work: how much runs from each start.
    """
    total = np.concatenate([[0.0], work.cumsum()])
    cost, cut = np.zeros(len(length) + 1), np.zeros(len(length) + 1, dtype=int)
    for stop in range(1, len(length) + 1):
        choices = cost[:stop] + overhead + length[:stop] * (total[stop] - total[:stop])
        cut[stop] = choices.argmin()
        cost[stop] = choices[cut[stop]]
    bounds = [len(length)]
    while bounds[-1] > 0:
        bounds.append(int(cut[bounds[-1]]))
    return bounds[::-1]
