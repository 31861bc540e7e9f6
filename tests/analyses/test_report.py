"""Attention patterns and the report: one file with everything in it, and nothing half-done."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import attention_patterns, logit_lens, patterns, write_report
from analyses import report as report_module
from analyses.lens_picture import lens_figure
from analyses.patterns import PatternsResult
from analyses.report import Findings, token_losses
from analyses.report_sections import baselines
from interp import PromptPairs, text
from interp.errors import LabError
from interp.results import Result
from models import GPT, TransformerConfig
from tests.hostile import SCRIPT, TOKENS, hostile_model, hostile_pairs


@pytest.fixture(scope="module")
def model() -> GPT:
    return hostile_model()


@pytest.fixture(scope="module")
def written(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, str, Path]:
    path = tmp_path_factory.mktemp("report") / "report.html"
    findings = write_report(model, hostile_pairs(model), path, progress=False)
    return findings, path.read_text(encoding="utf-8"), path


def test_patterns_are_the_model_s_own_and_each_row_sums_to_one(model: GPT) -> None:
    tokens = torch.tensor([0, 1, 6, 2, 1])
    found = attention_patterns(model, tokens, [(1, 0), (0, 1)])
    _, cache = model.run_with_cache(tokens[None])
    assert found.heads == ((1, 0), (0, 1))
    # Other layers' attention may take the fused kernel, so rounding differs.
    np.testing.assert_allclose(found.values[0], cache["pattern", 1][0, 0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found.values[1], cache["pattern", 0][0, 1].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found.values.sum(-1), 1, atol=1e-6)  # float32 softmax over five entries


def test_all_heads_are_shown_by_default_and_survive_the_file(model: GPT, tmp_path: Path) -> None:
    found = attention_patterns(model, torch.tensor([0, 1, 6]))
    assert found.labels["head"] == ("L0H0", "L0H1", "L1H0", "L1H1")
    assert len(found.plot().data) == 4
    found.save(tmp_path / "patterns")
    back = Result.load(tmp_path / "patterns")
    assert isinstance(back, PatternsResult)
    assert back == found


def test_a_head_that_is_not_there_is_refused(model: GPT) -> None:
    with pytest.raises(LabError, match=r"no head \(2, 0\).*layers 0 to 1"):
        attention_patterns(model, torch.tensor([0, 1]), [(2, 0)])
    with pytest.raises(LabError, match="no heads given"):
        attention_patterns(model, torch.tensor([0, 1]), [])


def test_the_view_says_what_it_leaves_out(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_TOKENS", 3)
    monkeypatch.setattr(patterns, "MAX_HEADS", 2)
    view = attention_patterns(model, torch.tensor([0, 1, 6, 7, 8])).view()
    assert view.caption == "drawn: the first 2 of 4 heads, the last 3 of 5 tokens"
    assert np.shape(view.props["attention"]) == (2, 3, 3)
    assert view.props["tokens"] == ["·the", "·the·", "\\n"]


def test_the_lens_grid_shows_the_model_s_own_prediction_in_its_last_row(model: GPT) -> None:
    tokens = torch.tensor([0, 1, 6, 2])
    figure = lens_figure(logit_lens(model, tokens), target=1)
    likeliest = model(tokens[None])[0].argmax(-1)
    hover = figure.data[0].hovertext[-1]
    for place, token in zip(hover, likeliest.tolist(), strict=True):
        rank = re.search(r"rank of [^:]*: (\d+)", place)
        assert rank is not None
        assert (rank[1] == "0") == (token == 1)


def test_a_saved_lens_can_be_drawn_without_its_model(model: GPT, tmp_path: Path) -> None:
    lens = logit_lens(model, torch.tensor([0, 1, 6]))
    lens.save(tmp_path / "lens")
    figure = Result.load(tmp_path / "lens").plot()
    assert figure.data[0].text[0][0] == text.label(TOKENS[int(lens.logits[0, 0].argmax())], 9)


def test_the_report_holds_every_part(written: tuple[Findings, str, Path]) -> None:
    _, html, _ = written
    headings = re.findall(r"<h2>([^<]*)</h2>", html)
    assert headings == [
        "The task",
        "Baselines",
        "Logit lens",
        "Activation patching",
        "Head attribution",
        "What adds up to the logit difference",
        "Head scores",
        "Attention of the heads that matter",
        "Surprise along the prompt",
        "Provenance",
    ]
    assert html.count('data-plot="') == 2 + 4 + 2 + 1  # lens, patching, attribution, scores
    assert html.count('data-view="') == 1
    assert html.count("var CircuitsVis=") == 1


def test_a_model_with_capped_logits_is_reported_without_shares_that_would_not_add_up(tmp_path: Path) -> None:
    capped = GPT(TransformerConfig(2, 2, 16, 12, 24, seed=0, init_range=0.5, output_logits_soft_cap=5.0))
    findings = write_report(capped, hostile_pairs(), tmp_path / "report.html", progress=False)
    assert findings.attribution is None
    assert findings.heads[0] == findings.patching["z"].top(1)[0].index
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "do not add up in this model" in html
    assert "What adds up to the logit difference" not in html


def test_the_report_says_where_its_numbers_come_from(written: tuple[Findings, str, Path]) -> None:
    findings, html, _ = written
    facts = findings.provenance
    assert facts.weights is not None
    for fact in (facts.weights, facts.created, "logit_diff", "denoise", "float32", facts.versions["torch"]):
        assert str(fact) in html


def test_no_token_of_the_report_is_markup(written: tuple[Findings, str, Path]) -> None:
    _, html, _ = written
    assert SCRIPT not in html
    assert (
        "onload=window.harmed"
        not in re.sub(r"&lt;/style&gt;&lt;/title&gt;&lt;svg onload=window\.harmed", "", html).split("<script")[0]
    )
    for content in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.S):
        assert "<" not in content
        json.loads(content)
    assert html.count("&lt;/script&gt;&lt;img") > 10


def test_baselines_that_cannot_be_told_apart_are_pointed_out(written: tuple[Findings, str, Path]) -> None:
    findings, _, _ = written
    result = findings.patching["z"]
    apart = replace(result, clean=np.array([3.0, 3.5, 4.0]), corrupted=np.array([-3.0, -3.5, -3.2]))
    alike = replace(result, clean=np.array([3.0, -3.5, 4.0]), corrupted=np.array([-3.0, 3.5, 3.9]))
    for patched, expected in ((apart, False), (alike, True)):
        section = baselines(replace(findings, patching={"z": patched}))
        assert any("say little" in str(block) for block in section.blocks) == expected


def test_the_report_ends_with_the_findings_it_shows(written: tuple[Findings, str, Path]) -> None:
    findings, html, path = written
    assert list(findings.patching) == ["resid_pre", "attn_out", "mlp_out", "z"]
    assert findings.patching["resid_pre"].values.shape == (2, 6)
    assert findings.heads[0] == findings.patching["z"].top(1)[0].index
    assert findings.attribution is not None
    best = findings.attribution.top(1)[0]
    assert best.index in findings.heads
    assert best.place in html
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_the_surprise_is_the_model_s_loss(model: GPT) -> None:
    tokens = torch.tensor([0, 1, 6, 2, 1])
    losses = token_losses(logit_lens(model, tokens))
    expected = model(tokens[None], return_type="loss", loss_per_token=True)[0].tolist()
    assert np.isnan(losses[0])
    np.testing.assert_allclose(losses[1:], expected, atol=1e-5)  # float32 log-softmax


def test_an_unwritable_path_is_refused_before_the_model_runs(model: GPT, tmp_path: Path) -> None:
    ran = []
    with model.hooks([("blocks.0.hook_resid_pre", lambda resid, hook: ran.append(1))]):
        with pytest.raises(LabError, match="no folder"):
            write_report(model, hostile_pairs(), tmp_path / "absent" / "report.html")
        with pytest.raises(LabError, match="it is a folder"):
            write_report(model, hostile_pairs(), tmp_path)
    assert not ran


@pytest.mark.parametrize("error", [LabError("no"), KeyboardInterrupt()])
def test_a_report_that_fails_leaves_the_old_one_alone(
    model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "report.html"
    path.write_text("the old report")
    monkeypatch.setattr(report_module, "attention_patterns", fail)
    with pytest.raises(type(error)):
        write_report(model, hostile_pairs(), path, progress=False)
    assert path.read_text() == "the old report"
    assert list(tmp_path.iterdir()) == [path]


def test_an_example_that_is_not_there_is_refused(model: GPT, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no prompt 3: the pairs are numbered 0 to 2"):
        write_report(model, hostile_pairs(), tmp_path / "report.html", example=3)


def test_a_model_without_mlps_or_tokenizer_gets_its_report(tmp_path: Path) -> None:
    cfg = TransformerConfig(
        n_layers=1,
        n_heads=2,
        d_model=8,
        d_vocab=len(TOKENS),
        n_ctx=12,
        attn_only=True,
        init_range=0.5,
        model_name="bare",
    )
    bare = GPT(cfg)
    pairs = PromptPairs.from_tokens(
        torch.tensor([[0, 1, 2]]), torch.tensor([[0, 3, 2]]), torch.tensor([4]), torch.tensor([5])
    )
    findings = write_report(bare, pairs, tmp_path / "bare.html", progress=False)
    assert list(findings.patching) == ["resid_pre", "attn_out", "z"]
    assert "bare" in (tmp_path / "bare.html").read_text(encoding="utf-8")
