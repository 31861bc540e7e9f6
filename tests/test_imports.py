"""Importing the lab is light: what only some of it needs is imported where it is needed."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("transformer_lens", "circuitsvis", "plotly", "transformers", "pandas")


@cache
def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted(name for name in sys.modules if '.' not in name)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


CONTRACT = "from interp import ActivationCache, HookPoint, Site, PromptPairs, tasks, metrics, sweep"
MODELS = "from models import load, GPT, TransformerConfig"
ANALYSES = "from analyses import activation_patching, logit_lens, head_attribution"


@pytest.mark.parametrize("names", [CONTRACT, MODELS, ANALYSES])
def test_the_names_that_everybody_imports_bring_nothing_heavy(names: str) -> None:
    assert modules_after(names).isdisjoint(HEAVY)


def test_the_contract_knows_neither_models_nor_analyses() -> None:
    assert modules_after(CONTRACT).isdisjoint({"models", "analyses"})


def test_analyses_do_not_know_models_nor_models_analyses() -> None:
    assert "models" not in modules_after(ANALYSES)
    assert "analyses" not in modules_after(MODELS)


def test_users_pay_for_no_checking() -> None:
    assert "beartype" not in modules_after(MODELS) | modules_after(ANALYSES)


@pytest.mark.skipif(find_spec("analyses.cli") is None, reason="needs the command line")
def test_help_is_shown_without_torch() -> None:
    command = "from click.testing import CliRunner\nfrom analyses.cli import main\n"
    run = "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
    assert modules_after(command + run).isdisjoint({"torch", *HEAVY})
