"""Examples come from files of JSON lines as they are, or the first wrong line is named; held out is held out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from interp.tasks.indirect_object import NAMES, never_together
from models.examples import Example, Preference, read_examples, set_apart
from models.zoo import gifts

TEXT = st.text(min_size=1, max_size=20).filter(str.strip)


def written(folder: Path, *lines: object) -> Path:
    path = folder / "examples.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_examples_come_back_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]
) -> None:
    lines = [{"id": i, "prompt": prompt, "answer": answer} for i, (prompt, answer) in enumerate(texts)]
    path = written(tmp_path_factory.mktemp("examples"), *lines, "")
    assert read_examples(path, Example) == [Example(*pair) for pair in texts]


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**GOOD, "rejected": "a"}, r"line 2: chosen and rejected are both 'a'; a preference needs two different"),
        ('{"prompt": "p"', r"line 2: not JSON: .* at column 15; expected \{\"prompt\""),
        ('["p", "a", "b"]', r"line 2: a list; expected an object"),
        ({"prompt": "p", "chosen": "a"}, r"line 2: no 'rejected' \(it has 'prompt', 'chosen'\)"),
        ({**GOOD, "chosen": 3}, r"line 2: chosen is 3; expected text"),
        ({**GOOD, "prompt": " "}, r"line 2: the prompt is empty"),
    ],
)
def test_the_first_wrong_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(LabError, match=message):
        read_examples(written(tmp_path, GOOD, line, "not JSON either"), Preference)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\n\n", "has no examples"), (b"\xff", "not UTF-8")]
)
def test_a_file_without_examples_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(LabError, match=message):
        read_examples(tmp_path / "a.jsonl", Example)


@given(n=st.integers(1, 30), share=st.sampled_from([0, 0.1, 0.5, 0.99]), seed=st.integers(0, 5))
def test_no_prompt_is_both_learned_and_measured(n: int, share: float, seed: int) -> None:
    """Of several prompts at least one is on each side; answers to one prompt stay together."""
    examples = [Example(f"prompt {i % max(1, n // 2)}", f"answer {i}") for i in range(n)]
    learned, apart = set_apart(examples, share, seed)
    assert sorted(map(str, [*learned, *apart])) == sorted(map(str, examples))
    assert {e.prompt for e in learned}.isdisjoint(e.prompt for e in apart)
    assert learned
    assert bool(apart) == (share > 0 and n >= 4)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(LabError, match=r"held_out=.*; expected a share of the prompts"):
        set_apart([Example("a", "b")], share, 0)


@pytest.mark.parametrize("held_out", [False, True])
def test_the_labs_own_examples_ask_only_about_people_of_their_side(held_out: bool) -> None:
    """Held out are the pairs that the town's corpus keeps apart, and every question has both of its answers."""
    asked = gifts.preferences(200, held_out, seed=3)
    for each in asked:
        words = re.findall(r"\w+", each.prompt)
        giver, receiver = [word for word in words if word in NAMES][:2]
        assert never_together(giver, receiver) is held_out
        assert each.chosen != each.rejected
        assert len(each.chosen) < len(each.rejected)
    both = gifts.examples(50, held_out)
    assert [e.prompt for e in both[::2]] == [e.prompt for e in both[1::2]]
    assert gifts.examples(50, held_out) == both != gifts.examples(50, held_out, seed=1)
