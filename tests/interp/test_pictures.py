"""Pictures and pages: labels that cannot merge, tokens that cannot run, cuts that are told, each library once."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float

from interp import markup, page, pictures, style, text
from interp.errors import LabError
from interp.page import Page, Plot, Section, View
from interp.pictures import Axis
from interp.provenance import Provenance
from interp.results import Result

SCRIPT = "</script><img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Any4(Result):
    title = "Anything"
    values: Float[np.ndarray, "*axes"]


class Elements(HTMLParser):
    """The elements of a page and the content of its scripts, as a parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes.append(dict(attrs))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.names and self.names[-1] == "script" and self.cdata_elem == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)


def everything(words: list[str]) -> list[Any]:
    """One of each picture with `words` wherever a token can stand."""
    n = len(words)
    values = np.linspace(-1.0, 1.0, 2 * n).reshape(2, n)
    sides = (Axis("layer", 2), Axis("pos", n, words))
    square = np.ones((2, n, n)) / n
    return [
        pictures.heatmap(values, *sides, title=words[0], unit=words[0]),
        pictures.facets(square, Axis("head", 2, words[:1] * 2), Axis("q_pos", n, words), Axis("k_pos", n, words)),
        pictures.lens_grid(
            np.array([[words, words], [words, words]]).transpose(0, 2, 1).reshape(2, n, 2),
            np.full((2, n, 2), 0.5),
            *sides,
            target=words[0],
            target_rank=np.zeros((2, n), dtype=int),
        ),
        pictures.bars(values[0], words, title=words[0], unit=words[0]),
        pictures.lines(dict.fromkeys(words, values[0]), sides[1], title=words[0], unit=words[0]),
    ]


def small_page(words: list[str]) -> str:
    """`whole_page` without the megabytes of the libraries, which are the same on every page."""
    with mock.patch.multiple(page, plotly_bundle=lambda: "plotly", circuitsvis_bundle=lambda: "circuitsvis"):
        return whole_page(words)


def whole_page(words: list[str]) -> str:
    """A page with one of everything, `words` in every place."""
    first = f"x{words[0]}"  # an empty heading would be left out
    blocks = [
        *(Plot(figure, first) for figure in everything(words)),
        View("AttentionHeads", {"attention": [[[1.0]]], "tokens": words[:1]}, first),
        markup.tokens(words, marked=[0]),
        markup.colored_tokens(words, np.ones(len(words)), unit=first),
        markup.table(words, [words]),
        markup.tiles([(first, first, first)]),
        markup.roles([(first, markup.answers(words, words))]),
        markup.paragraph(first),
    ]
    facts = Provenance(model=first, prompts={"clean": words}, settings={first: words})
    return Page(first, [Section(first, blocks, first, first)] * 3, facts, first).render()


def test_labels_that_repeat_keep_a_column_each() -> None:
    figure = pictures.heatmap(np.eye(3), Axis("layer", 3), Axis("pos", 3, [" a", " a", " a"]))
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2]
    assert list(figure.layout.xaxis.ticktext) == ["·a"] * 3
    assert figure.data[0].x is None  # columns stand at their numbers
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first row on top


def test_signed_values_are_white_at_zero_and_as_deep_on_both_sides() -> None:
    figure = pictures.heatmap(np.array([[-1.0, 3.0]]), Axis("layer", 1), Axis("head", 2))
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-3.0, 3.0)


def test_probabilities_are_coloured_from_zero_to_one() -> None:
    figure = pictures.facets(np.full((2, 3, 3), 0.25), None, Axis("q_pos", 3), Axis("k_pos", 3), scale=pictures.SHARE)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0.0, 1.0)
    assert len(figure.data) == 2


def test_values_without_a_number_can_be_drawn() -> None:
    for values in (np.full((2, 2), np.nan), np.array([[np.inf, 1.0], [0.0, -np.inf]]), np.zeros((2, 2))):
        figure = pictures.heatmap(values, Axis("layer", 2), Axis("pos", 2))
        assert figure.layout.coloraxis.cmin < figure.layout.coloraxis.cmax


def test_what_is_not_drawn_is_told() -> None:
    n = style.MAX_CELLS + 5
    figure = pictures.heatmap(np.ones((2, n)), Axis("layer", 2), Axis("pos", n))
    assert figure.data[0].z.shape == (2, style.MAX_CELLS)
    assert f"the first {style.MAX_CELLS} of {n} (pos)" in figure.layout.title.subtitle.text
    many = np.ones((style.MAX_FACETS + 1, 2, 2))
    figure = pictures.facets(many, Axis("head", len(many)), Axis("q_pos", 2), Axis("k_pos", 2))
    assert len(figure.data) == style.MAX_FACETS
    assert f"of {len(many)} (head)" in figure.layout.title.subtitle.text
    assert "and 3 more tokens" in markup.tokens(["a"] * (markup.MAX_TOKENS + 3)).html


def test_hover_tells_place_and_number() -> None:
    figure = pictures.heatmap(
        np.array([[0.5, -2.0]]), Axis("layer", 1, [7]), Axis("pos", 2, [" a", "<b>"]), unit="nats"
    )
    assert figure.data[0].hovertext[0][1] == "<b>layer 7, position 1 &lt;b&gt;</b><br>nats -2"


def test_the_lens_lists_the_likeliest_tokens_and_the_rank_of_the_target() -> None:
    figure = pictures.lens_grid(
        np.array([[[" cat", " dog"]]]),
        np.array([[[0.75, 0.25]]]),
        Axis("layer", 1, ["embed"]),
        Axis("pos", 1, [" the"]),
        target=" dog",
        target_rank=np.array([[1]]),
    )
    assert figure.data[0].text[0][0] == "·cat"
    hover = figure.data[0].hovertext[0][0].split("<br>")
    assert hover == ["<b>layer embed, position 0 ·the</b>", "·cat  75.0%", "·dog  25.0%", "rank of ·dog: 1"]


@pytest.mark.parametrize(("axes", "kind", "count"), [(1, "bar", 1), (2, "heatmap", 1), (3, "heatmap", 2)])
def test_a_result_is_drawn_as_its_axes_ask(axes: int, kind: str, count: int) -> None:
    names = ("role", "layer", "head")[-axes:] if axes < 3 else ("role", "layer", "head")
    figure = Any4(np.ones((2, 3, 4)[-axes:] if axes < 3 else (2, 3, 4)), axes=names).plot()
    assert [trace.type for trace in figure.data] == [kind] * count


def test_a_result_with_four_axes_says_that_it_needs_a_choice() -> None:
    with pytest.raises(LabError, match="expected one to three"):
        Any4(np.ones((1, 1, 1, 1)), axes=tuple("abcd")).plot()


def test_a_hostile_token_is_text_in_every_picture() -> None:
    for figure in everything([SCRIPT, "<b>bold</b>", "&amp;"]):
        drawn = json.loads(figure.to_json())
        texts = [t for t in _strings(drawn) if "img" in t or "bold" in t or "amp" in t]
        assert texts
        assert not any(re.search(r"<(?!br>|/?b>)", t) or "<b>bold" in t for t in texts)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [found for item in items for found in _strings(item)]


@given(words=st.lists(st.text(st.characters(codec="utf-8"), max_size=12) | st.just(SCRIPT), min_size=1, max_size=3))
def test_no_token_adds_an_element_or_an_attribute_to_a_page(words: list[str]) -> None:
    tame, wild = Elements(small_page(["tame"] * len(words))), Elements(small_page(words))
    assert wild.names == tame.names
    assert [sorted(a) for a in wild.attributes] == [sorted(a) for a in tame.attributes]
    data = [content for attrs, content in wild.scripts if attrs.get("type") == "application/json"]
    assert len(data) == 18  # three sections of five plots and one view
    for content in data:
        json.loads(content)


def test_a_page_holds_each_library_once_and_allows_nothing_else_to_run() -> None:
    html = whole_page(["a", "b"])
    code = [content for attrs, content in Elements(html).scripts if "type" not in attrs]
    assert len(code) == 3  # plotly.js, circuitsvis, and what calls them
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    for script in code:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert not re.search(r"script-src[^;]*unsafe-inline", policy[1])


def test_a_page_without_pictures_runs_nothing() -> None:
    html = Page("Words", [Section("One", [markup.paragraph("text")])]).render()
    assert "<script" not in html
    assert "script-src 'none'" in html
    assert len(html) < 20_000


def test_a_page_asks_no_other_address() -> None:
    elements = Elements(small_page(["a"]))
    for name, attributes in zip(elements.names, elements.attributes, strict=True):
        address = attributes.get("src") or attributes.get("href")
        assert address is None or address.startswith(("#", "data:")), (name, address)


def test_a_result_writes_its_page_whole(tmp_path: Path) -> None:
    result = Any4(np.ones((2, 3)), axes=("layer", "head"), provenance=Provenance(model="tiny", metric="logit_diff"))
    html = result.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html
    assert "logit_diff" in html
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(LabError, match="no folder"):
        result.to_html(tmp_path / "absent" / "page.html")


def test_quotes_stay_quotes_in_figures_and_are_escaped_in_attributes() -> None:
    assert text.label('"a"') == '"a"'  # plotly knows no &quot;
    assert 'title="&quot;a&quot;' in markup.tokens(['"a"']).html


def test_sentences_leave_identifiers_alone() -> None:
    assert text.sentence("where it looks") == "Where it looks."
    assert text.sentence("logit_diff of the run.") == "logit_diff of the run."


@given(st.text())
def test_visible_text_is_printable_and_never_empty(token: str) -> None:
    shown = text.visible(token)
    assert shown
    assert shown.isprintable()


def test_tokens_are_coloured_by_sign_and_size() -> None:
    html = markup.colored_tokens(["a", "b", "c"], np.array([1.0, -0.5, np.nan])).html
    assert re.findall(r"rgba\(([\d,]+),([\d.]+)\)", html) == [("33,102,172", "0.750"), ("178,24,43", "0.375")]
    with pytest.raises(LabError, match="a value for each token"):
        markup.colored_tokens(["a"], np.ones(2))


def test_pictures_load_their_libraries_only_when_drawn() -> None:
    code = (
        "import sys, interp.results, interp.pictures, interp.page, interp.markup\n"
        "print([m for m in ('plotly', 'circuitsvis', 'pandas', 'transformers') if m in sys.modules])"
    )
    root = Path(page.__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_table_s_numbers_have_a_sign_where_their_column_has_both() -> None:
    found = str(markup.table(["loss", "share"], [[0.25, 1.5], [4.0, -0.5]]))
    assert re.findall(r"<td[^>]*>([^<]*)</td>", found) == ["0.25", "+1.5", "4", "-0.5"]
