"""Pages that show two models: a report with a second model beside it, and no token or name that becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import compare, training_course, write_report
from interp import LabError
from interp.page import Plot
from models import GPT, TransformerConfig
from tests.analyses.tiny_models import interp
from tests.hostile import SCRIPT, hostile_model, hostile_pairs


def other_model() -> GPT:
    """The hostile model with one head's values changed."""
    model = hostile_model()
    with torch.no_grad():
        model.blocks[1].attn.W_V[0] *= 2
    return model


def assert_inert(html: str) -> None:
    assert SCRIPT not in html
    for content in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.S):
        assert "<" not in content
        json.loads(content)
    assert "&lt;/script&gt;&lt;img" in html


def test_no_token_and_no_name_of_a_comparison_is_markup() -> None:
    model, other = hostile_model(), other_model()
    pairs = hostile_pairs(model)
    found = compare(model, other, pairs.clean, pairs.mask)
    assert_inert(found.to_html())
    one = compare(model, other, pairs.clean[0][pairs.mask[0]])  # a single text is labelled by its tokens
    assert_inert(one.to_html())
    drawn = [
        block.figure.to_json() for section in one.sections() for block in section.blocks if isinstance(block, Plot)
    ]
    assert not any("&amp;lt;" in figure for figure in drawn)  # escaped once
    assert_inert(training_course(model, [(SCRIPT, other)]).to_html())


def test_a_report_shows_the_model_beside_it(tmp_path: Path) -> None:
    model, other = hostile_model(), other_model()
    pairs = hostile_pairs(model)
    found = write_report(model, pairs, tmp_path / "report.html", progress=False, beside=other)
    assert found.comparison == compare(model, other, pairs.clean, pairs.mask)
    assert found.comparison is not None
    assert found.comparison.first_difference() == "blocks.1.attn.hook_v"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_inert(page)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[-7:-1] == [section.title for section in found.comparison.sections()]
    assert found.provenance.settings["compared with"]["weights"]
    alone = write_report(model, pairs, tmp_path / "alone.html", progress=False)
    assert alone.comparison is None


def test_a_model_that_cannot_stand_beside_another_leaves_the_report_as_it_was(tmp_path: Path) -> None:
    model = hostile_model()
    bare = GPT(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=24))
    with pytest.raises(LabError, match="vocabularies of"):
        write_report(model, hostile_pairs(model), tmp_path / "report.html", progress=False, beside=bare)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_puts_a_model_beside(town: Path, tmp_path: Path) -> None:
    given = ["report", "--model", town, "-n", 2, "--beside", town, "--out", tmp_path / "report.html"]
    result = interp(*given)
    assert result.exit_code == 0, result.stderr
    assert "beside:      tiny-town: no hook point differs, same likeliest token at 100.0% of positions" in result.stdout
    found = json.loads(interp(*given, "--json").stdout)
    assert not np.any(found["comparison"]["relative"])
