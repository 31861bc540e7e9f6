"""Make every notebook from its percent script: `python -m notebooks.sync`, or `--check` that they are in step."""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent


def notebook_of(script: Path) -> str:
    """The notebook that belongs to a script, without outputs and without anything random."""
    notebook = jupytext.read(script)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = nbformat.from_dict({})
    return nbformat.writes(notebook) + "\n"


def main(arguments: list[str]) -> int:
    stale = []
    for script in sorted(FOLDER.glob("[0-9]*.py")):
        made, path = notebook_of(script), script.with_suffix(".ipynb")
        if path.is_file() and path.read_text() == made:
            continue
        stale.append(path.name)
        if "--check" not in arguments:
            path.write_text(made)
    if stale:
        print(("out of step: " if "--check" in arguments else "made: ") + ", ".join(stale))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
