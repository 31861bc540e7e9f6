"""Files appear whole or not at all, and a text is read whole or refused."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from interp.errors import LabError


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return `path` if a file can be put there, before any work is spent on what goes in it.

    The folder is tried by creating and removing a hidden temporary file; `path` itself is not touched.

    Raises:
        LabError: the folder does not exist or cannot be written to, or `path` is a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise LabError(
            f"cannot write to {str(path)!r}: it is a folder; expected the name of a file, such as {str(path / 'out')!r}"
        )
    folder = path.parent
    if not folder.is_dir():
        raise LabError(f"cannot write to {str(path)!r}: there is no folder {str(folder)!r}; create it first")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name[:40]}."):
            pass
    except OSError as problem:
        raise LabError(
            f"cannot write to {str(path)!r}: {problem.strerror or problem}; choose another folder"
        ) from problem
    return path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it takes the place of `path`, else it is removed.

    Raises:
        LabError: the folder cannot be written to, or the file cannot take its place.
    """
    path = check_writable(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(_usual_mode())
        os.replace(part, path)
    except OSError as problem:
        raise LabError(f"cannot write to {str(path)!r}: {problem.strerror or problem}") from problem
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all, and return the path."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return Path(path).expanduser()


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, line ends and all; a byte-order mark at its start is no part of it.

    Raises:
        LabError: no such file, an empty one, or one that is not UTF-8; the first byte that is wrong is named.
    """
    path = Path(path).expanduser()
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise LabError(f"cannot read the text {str(path)!r}: {problem.strerror or problem}.") from problem
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise LabError(
            f"{str(path)!r} is not UTF-8: byte 0x{raw[problem.start]:02x} at offset {problem.start} (line {line}), "
            f"{problem.reason}; convert it, say with `iconv -f latin1 -t utf-8`."
        ) from problem
    text = text.removeprefix("\ufeff")
    if not text:
        raise LabError(f"the text {str(path)!r} is empty; expected at least one character.")
    return text


def _usual_mode() -> int:
    """What the process's umask gives a new file; temporary files are private to their owner instead."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
