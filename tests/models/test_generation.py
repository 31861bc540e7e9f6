"""Generation writes what the model says: the cache, the batch and the padding change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from models import GPT, TransformerConfig, load
from models.generation import generate, generate_tokens
from models.tokenizers import characters

POSITIONS = ("learned", "rotary", "sinusoidal", "none")


def model_with(positions: str = "learned", **sizes: Any) -> GPT:
    """A random model whose next token depends strongly on what it reads."""
    cfg: dict[str, Any] = {
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 16,
        "d_vocab": 13,
        "n_ctx": 24,
        "init_range": 0.5,
        "seed": 1,
    }
    return GPT(TransformerConfig(**cfg | {"positional_embedding_type": positions} | sizes))


def naive(model: GPT, prompt: list[int], n: int) -> list[int]:
    """The likeliest token, `n` times, with the whole text read again each time."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("positions", POSITIONS)
def test_greedy_is_the_naive_loop_without_a_cache(positions: str) -> None:
    model, prompt = model_with(positions), [3, 1, 4, 1, 5]
    assert generate(model, torch.tensor(prompt), 12, temperature=0).tolist() == naive(model, prompt, 12)


@pytest.mark.parametrize("positions", POSITIONS)
@given(prompts=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_left_padded_batch_writes_what_each_prompt_writes_alone(positions: str, prompts: list[list[int]]) -> None:
    model = model_with(positions)
    longest = max(map(len, prompts))
    rows = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts])
    written = generate(model, rows, 6, temperature=0, attention_mask=mask)
    assert written[:, longest:].tolist() == [naive(model, p, 6)[-6:] for p in prompts]


def test_texts_give_texts_and_padding_does_not_show() -> None:
    model = model_with()
    model.tokenizer = characters("abcdefghijkl")
    together = generate(model, ["abc", "f"], 8, temperature=0, stop_tokens=())
    assert together == [generate(model, text, 8, temperature=0, stop_tokens=()) for text in ("abc", "f")]
    assert together[0].startswith("abc")
    assert together[1].startswith("f")


def test_greedy_text_of_a_published_model_is_the_published_text(shared_data: Path) -> None:
    model = load(shared_data / "stories260k")
    reference = json.loads((shared_data / "stories260k/reference.json").read_text())
    assert generate(model, reference["prompt"], 60, temperature=0) == reference["greedy_60_text"]
    ids = generate(model, torch.tensor([reference["prompt_ids"]]), 60, temperature=0)[0]
    assert ids[len(reference["prompt_ids"]) :].tolist() == reference["greedy_60_ids"]


def test_a_row_ends_at_its_stop_token_and_the_others_go_on() -> None:
    model, rows = model_with(), torch.tensor([[1, 2], [3, 4], [5, 6]])
    free = generate(model, rows, 10, temperature=0)
    stop = int(free[0, 4])  # the third token that the first row writes
    stopped = generate(model, rows, 10, temperature=0, stop_tokens=(stop,))
    for free_row, row in zip(free.tolist(), stopped.tolist(), strict=True):
        new = free_row[2:]
        end = new.index(stop) + 1 if stop in new else len(new)
        width = len(row) - 2
        assert row[2:] == (new[:end] + [stop] * 10)[:width]
    assert int((stopped[0, 2:] == stop).nonzero()[0]) <= 2


def test_when_every_row_has_ended_generation_ends() -> None:
    model = model_with()
    stop = naive(model, [1, 2], 1)[-1]
    assert generate(model, torch.tensor([[1, 2], [1, 2]]), 20, temperature=0, stop_tokens=(stop,)).shape == (2, 3)


def test_text_ends_before_its_stop_token() -> None:
    model = model_with()
    model.tokenizer = characters("abcdefghijkl")
    whole = generate(model, "ab", 6, temperature=0, stop_tokens=())
    stop = model.to_single_token(whole[4])
    first = whole.index(whole[4], 2)
    assert generate(model, "ab", 6, temperature=0, stop_tokens=(stop,)) == whole[:first]


def test_one_seed_writes_one_text() -> None:
    model, prompt = model_with(), torch.tensor([1, 2, 3])
    drawn = [generate(model, prompt, 15, seed=seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_model_itself_generates() -> None:
    model, prompt = model_with(), torch.tensor([1, 2, 3])
    assert torch.equal(model.generate(prompt, 9, top_k=5, seed=4), generate(model, prompt, 9, top_k=5, seed=4))


def test_the_global_random_state_is_left_alone() -> None:
    model, before = model_with(), torch.get_rng_state()
    generate(model, torch.tensor([1, 2]), 3, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_hook_acts_on_every_token_that_is_written() -> None:
    """Hooks are a property of the model, so they hold through generation, cache included."""
    model, lengths = model_with(), []
    with model.hooks([("blocks.1.hook_resid_post", lambda resid, hook: lengths.append(resid.shape[1]))]):
        generate(model, torch.tensor([1, 2, 3]), 4, temperature=0)
    assert lengths == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 23}, r"a prompt of 3 tokens and 23 new ones .* window of 24; try max_new_tokens=22"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1; expected 0 or more"),
        ({"temperature": -0.5}, "temperature=-0.5; expected"),
        ({"temperature": float("nan")}, "temperature=nan; expected"),
        ({"top_k": 0}, "top_k=0; expected at least 1"),
        ({"top_p": 0.0}, "top_p=0.0; expected a probability"),
        ({"top_p": 1.5}, "top_p=1.5; expected a probability"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_start(settings: dict[str, Any], message: str) -> None:
    model = model_with()
    ran: list[str] = []
    with (
        model.hooks([("hook_embed", lambda embed, hook: ran.append(hook.name))]),
        pytest.raises(LabError, match=message),
    ):
        generate(model, torch.tensor([1, 2, 3]), **settings)
    assert ran == []


def test_bad_prompts_are_refused() -> None:
    model = model_with()
    with pytest.raises(LabError, match="token ids run from 1 to 13; expected 0 to 12"):
        generate(model, torch.tensor([1, 13]), 2)
    with pytest.raises(LabError, match="at least one token"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 2)
    with pytest.raises(LabError, match="padding on the left"):
        generate(model, torch.tensor([[1, 0]]), 2, attention_mask=torch.tensor([[True, False]]))
    with pytest.raises(LabError, match="no tokenizer"):
        generate(model, "text", 2)
    with pytest.raises(LabError, match="its attention is bidirectional"):
        generate(model_with(attention_dir="bidirectional"), torch.tensor([1]), 2)


def test_a_full_window_can_be_filled_to_the_last_position() -> None:
    model = model_with()
    assert generate(model, torch.tensor([1, 2, 3]), 21, temperature=0).tolist() == naive(model, [1, 2, 3], 21)
    assert generate(model, torch.tensor([1, 2, 3]), 0).tolist() == [1, 2, 3]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generation_on_a_gpu_draws_there(dtype: torch.dtype) -> None:
    model = model_with().to(device="cuda", dtype=dtype)
    rows = torch.tensor([[1, 2, 3]], device="cuda")
    assert torch.equal(generate_tokens(model, rows, 8, seed=0), generate_tokens(model, rows, 8, seed=0))
    assert generate_tokens(model, rows, 8, temperature=0).device.type == "cuda"
