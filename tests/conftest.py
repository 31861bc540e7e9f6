"""Fixtures that every test may use; type annotations become assertions; hypothesis is repeatable in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

# Before anything imports the packages: every annotated shape and dtype is checked at every call.
install_import_hook(["interp", "models", "analyses"], "beartype.beartype")

# One example builds and runs a model, so there are few of them and none has a deadline.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # not "explain", which runs many more
_COMMON: dict[str, Any] = {
    "deadline": None,
    "max_examples": 12,
    "phases": _PHASES,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("local", **_COMMON)
settings.register_profile("ci", **_COMMON, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and so do the notebooks and commands that they start
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real models, texts and prompts that are kept beside the project, not in it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared test data in {SHARED}")
    return SHARED


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked: for tests of what the code itself says to arguments of a wrong type or shape."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach for the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "1"))
