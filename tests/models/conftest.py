"""A tiny model in the lab's own format, and the same exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny_checkpoints import tiny


@pytest.fixture
def native(tmp_path: Path) -> Path:
    return tiny().save(tmp_path / "mine")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return tiny().export(tmp_path / "theirs")
