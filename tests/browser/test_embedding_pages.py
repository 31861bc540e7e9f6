"""The pages of token and position vectors in a real Chromium: drawn, nothing asked for, hostile tokens inert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from analyses import analogies, embedding_pca, loss_by_position, nearest_tokens, position_geometry
from tests.browser.chromium import Shown
from tests.browser.test_comparison_page import SIZES, quiet
from tests.hostile import TOKENS, hostile_model

pytestmark = pytest.mark.browser

ROWS = torch.arange(len(TOKENS))[None]
PAGES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "neighbours": (lambda model: nearest_tokens(model, range(len(TOKENS))), 2),
    "analogies": (lambda model: analogies(model, [(1, 2, 3), (4, 5, 10)]), 1),
    "components": (embedding_pca, 1),
    "positions": (position_geometry, 3),
    "losses": (lambda model: loss_by_position({TOKENS[1]: [model], TOKENS[10]: [model]}, ROWS, 4), 1),
}


@pytest.mark.parametrize(("analysis", "pictures"), PAGES.values(), ids=PAGES)
def test_every_picture_is_drawn_and_no_token_is_markup(
    analysis: Callable[[Any], Any], pictures: int, show: Callable[[str], Shown]
) -> None:
    shown = show(analysis(hostile_model()).to_html())
    assert [size > 100 for size in shown.js(SIZES)] == [True] * pictures
    quiet(shown)
