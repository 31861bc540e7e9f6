"""A text comes as it was written, or with the reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from interp.files import read_text, write_text


@given(text=st.text(min_size=1).filter(lambda text: not text.startswith("\ufeff")))
def test_a_text_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assert read_text(write_text(tmp_path_factory.mktemp("text") / "a.txt", text)) == text


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo".encode())
    assert read_text(path) == "one\r\ntwo"


@pytest.mark.parametrize("content", [b"", "\ufeff".encode()])
def test_an_empty_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(LabError, match=r"a\.txt' is empty; expected at least one character"):
        read_text(path)


@pytest.mark.parametrize(
    ("before", "bad"), [(b"", b"\xff"), ("é\nseñor ".encode(), "ñ".encode("latin1") + b"o"), (b"caf", b"\xc3")]
)
def test_the_first_byte_that_is_not_utf_8_is_named(tmp_path: Path, before: bytes, bad: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(before + bad)
    line = before.count(b"\n") + 1
    with pytest.raises(LabError, match=rf"byte 0x{bad[0]:02x} at offset {len(before)} \(line {line}\)"):
        read_text(path)


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_what_is_no_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabError, match="cannot read the text"):
        read_text(tmp_path / name)
