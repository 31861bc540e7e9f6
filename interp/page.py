"""One page in one file: it opens offline and asks the network for nothing.

    Page("Patching", [Section("Residual stream", [Plot(figure)], shows="...", caveat="...")], provenance).write(path)

The libraries that draw (plotly.js, circuitsvis's bundle) are embedded once, and only if something needs them. What they
draw is data in the page, not code. A Content-Security-Policy allows exactly the scripts that this module put
there, by their hashes, so that nothing else runs even if it got into the markup.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

from interp import files, text
from interp.provenance import Provenance


@dataclass(frozen=True)
class Plot:
    """A plotly figure, with a sentence below it."""

    figure: Any
    caption: str = ""


@dataclass(frozen=True)
class View:
    """A component of circuitsvis and its properties (plain data), with a sentence below it."""

    component: str
    props: dict[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Markup:
    """Trusted markup. Whoever makes it escapes every token in it (`interp.markup` does)."""

    html: str


Block: TypeAlias = Plot | View | Markup


@dataclass(frozen=True)
class Section:
    """A heading, one sentence on what is seen and one on what it does not show, and what is to be seen."""

    title: str
    blocks: Sequence[Block]
    shows: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class Page:
    """Sections under a title, with the provenance of what they show."""

    title: str
    sections: Sequence[Section]
    provenance: Provenance = field(default_factory=Provenance)
    subtitle: str = ""

    def write(self, path: str | os.PathLike[str]) -> str:
        """Write the page to `path`, whole or not at all, and return its text.

        Raises:
            LabError: the path cannot be written to.
        """
        files.check_writable(path)
        page = self.render()
        files.write_text(path, page)
        return page

    def render(self) -> str:
        """The page as HTML."""
        blocks = [block for section in self.sections for block in section.blocks]
        data = "".join(
            _data(block, _name(i, j))
            for i, section in enumerate(self.sections)
            for j, block in enumerate(section.blocks)
        )
        scripts = _scripts(blocks)
        hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
        body = "".join(_section(section, i, section.title != self.title) for i, section in enumerate(self.sections))
        return _DOCUMENT.format(
            policy=_POLICY.format(scripts=hashes),
            title=text.escape(self.title),
            style=_asset("page.css"),
            header=self._header(),
            contents=_contents(self.sections),
            body=body,
            provenance=_provenance(self.provenance),
            data=data,
            scripts="".join(f"<script>{script}</script>\n" for script in scripts),
        )

    def _header(self) -> str:
        below = f'<p class="subtitle">{text.escape(self.subtitle)}</p>' if self.subtitle else ""
        return f"<h1>{text.escape(self.title)}</h1>{below}"


_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>{header}</header>
{contents}
<main>{body}
{provenance}</main>
{data}{scripts}</body>
</html>
"""


def _section(section: Section, number: int, headed: bool) -> str:
    heading = f"<h2>{text.escape(section.title)}</h2>" if headed else ""  # a page of one result says it once
    shows = f'<p class="shows">{text.escape(text.sentence(section.shows))}</p>' if section.shows else ""
    caveat = f'<p class="caveat">{text.escape(text.sentence(section.caveat))}</p>' if section.caveat else ""
    blocks = "".join(_place(block, _name(number, j)) for j, block in enumerate(section.blocks))
    return f'\n<section id="section-{number}">{heading}{shows}{caveat}{blocks}</section>'


def _name(section: int, block: int) -> str:
    """The id of the element that a block is drawn into."""
    return f"drawing-{section}-{block}"


def _place(block: Block, name: str) -> str:
    """Where `block` will be drawn."""
    if isinstance(block, Markup):
        return f'<div class="markup">{block.html}</div>'
    kind = "plot" if isinstance(block, Plot) else "view"
    height = getattr(getattr(block, "figure", None), "layout", None)
    style = f' style="min-height:{int(height.height)}px"' if height is not None and height.height else ""
    caption = f"<figcaption>{text.escape(text.sentence(block.caption))}</figcaption>" if block.caption else ""
    return f'<figure><div class="{kind}" id="{name}"{style}></div>{caption}</figure>'


def _data(block: Block, name: str) -> str:
    """What will be drawn, as data that cannot run."""
    if isinstance(block, Markup):
        return ""
    if isinstance(block, Plot):
        kind, content = "plot", text.inert_json(block.figure.to_json())
    else:
        kind, content = "view", text.json_for_script({"component": block.component, "props": block.props})
    return f'<script type="application/json" data-{kind}="{name}">{content}</script>\n'


def _scripts(blocks: Sequence[Block]) -> list[str]:
    """The code that the page needs: the libraries that `blocks` use, then the few lines that call them."""
    scripts = []
    if any(isinstance(block, Plot) for block in blocks):
        scripts.append(plotly_bundle())
    if any(isinstance(block, View) for block in blocks):
        scripts.append(circuitsvis_bundle())
    return [*scripts, _asset("page.js")] if scripts else []


@cache
def plotly_bundle() -> str:
    """plotly.js, from the plotly package."""
    from plotly.offline import get_plotlyjs

    return _embeddable(get_plotlyjs())


@cache
def circuitsvis_bundle() -> str:
    """circuitsvis's own bundle, which defines the global `CircuitsVis`."""
    bundle = resources.files("circuitsvis") / "dist" / "cdn" / "iife.js"
    code, _, _ = bundle.read_text(encoding="utf-8").rpartition("//# sourceMappingURL=")
    return _embeddable(code)


@cache
def _asset(name: str) -> str:
    return (resources.files("interp") / "assets" / name).read_text(encoding="utf-8")


def _embeddable(code: str) -> str:
    """`code` with line ends as the browser hashes them, and nothing in it that ends a script element."""
    return code.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 3:
        return ""
    entries = "".join(f'<a href="#section-{i}">{text.escape(s.title)}</a>' for i, s in enumerate(sections))
    return f"<nav>{entries}</nav>"


def _provenance(facts: Provenance) -> str:
    known = facts.to_dict()
    if not known:
        return ""
    rows = "".join(f"<dt>{text.escape(name)}</dt><dd>{_fact(value)}</dd>" for name, value in known.items())
    return f'<section id="provenance"><h2>Provenance</h2><dl>{rows}</dl></section>'


def _fact(value: Any) -> str:
    """One fact: text as it is, several folded away under their number."""
    if isinstance(value, dict):
        return "".join(f"<div><i>{text.escape(name)}</i> {_fact(item)}</div>" for name, item in value.items())
    if isinstance(value, list | tuple) and len(value) > 1:
        items = "".join(f"<li>{_fact(item)}</li>" for item in value)
        return f"<details><summary>{len(value)}</summary><ol>{items}</ol></details>"
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value)
    return f"<span>{text.escape(text.visible(value))}</span>"
