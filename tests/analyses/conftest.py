"""Small models on disk, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analyses.tiny_models import RECIPE, save_bare, save_town


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random model that knows the words of the ioi task."""
    return save_town(tmp_path_factory.mktemp("models") / "tiny-town")


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random model without tokenizer."""
    return save_bare(tmp_path_factory.mktemp("models") / "bare")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that takes no time per step and has many steps."""
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path
