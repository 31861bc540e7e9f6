"""Models whose circuits are known, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.compiled import PROGRAMS, Program, program_in


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: Any, shared_data: Path) -> Program:
    """Each of the compiled programs."""
    return program_in(shared_data / "tracr" / request.param)
