"""The zoo's encoder: a hidden word is known from the other telling, and attention finds it there, before or behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from analyses import activation_patching
from interp import PromptPairs
from models import BERT, load
from models.zoo.tellings import KINDS, TELLINGS, Tellings, accuracy, places

N = 128
EVERY = torch.arange(N)
CASES = pytest.mark.parametrize(("kind", "telling"), [(kind, telling) for kind in KINDS for telling in TELLINGS])


@pytest.fixture(scope="module")
def model() -> BERT:
    return load("twice-told")


@pytest.fixture(scope="module")
def rows(model: BERT) -> Tensor:
    """Texts of a seed that nothing was trained or measured on."""
    assert model.tokenizer is not None
    return Tellings(model.tokenizer, 3, N, seed=-11).batch(0).tokens


def hidden(model: BERT, rows: Tensor, kind: str, telling: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The texts with a word hidden, where, and where the other telling has it and the other two words of its kind."""
    tokenizer: Any = model.tokenizer
    other = "second" if telling == "first" else "first"
    at = torch.tensor([places(tokenizer, row, kind, telling)[i % 3] for i, row in enumerate(rows)])
    there = torch.tensor([places(tokenizer, row, kind, other) for row in rows])
    same = rows.gather(1, there) == rows[EVERY, at][:, None]
    assert (same.sum(1) == 1).all()
    texts = rows.clone()
    texts[EVERY, at] = tokenizer.mask_token_id
    return texts, at, there[same][:, None], there[~same].unflatten(0, (N, 2))


def right_without(model: BERT, texts: Tensor, at: Tensor, keys: Tensor, words: Tensor) -> float:
    """How often the word is guessed when the mask's attention to some keys is cut in every layer."""

    def cut(scores: Tensor, hook: Any) -> Tensor:
        cut = scores.clone()
        for key in keys.unbind(1):
            cut[EVERY, :, at, key] = torch.finfo(scores.dtype).min
        return cut

    points = [(f"blocks.{layer}.attn.hook_attn_scores", cut) for layer in range(model.cfg.n_layers)]
    logits = model.run_with_hooks(texts, fwd_hooks=points)
    return float((logits[EVERY, at].argmax(-1) == words).double().mean())


@CASES
def test_hidden_words_are_guessed_in_texts_that_it_never_saw(
    model: BERT, rows: Tensor, kind: str, telling: str
) -> None:
    assert model.tokenizer is not None
    assert accuracy(model, model.tokenizer, rows, kind, telling) >= 0.98  # it is 1; a guess among ten is 0.1


@CASES
def test_they_are_found_by_attention_to_the_same_word_in_the_other_telling_alone(
    model: BERT, rows: Tensor, kind: str, telling: str
) -> None:
    texts, at, same, others = hidden(model, rows, kind, telling)
    words = rows[EVERY, at]
    assert right_without(model, texts, at, same, words) <= 0.2
    assert right_without(model, texts, at, others, words) >= 0.98
    _, cache = model.run_with_cache(texts, names_filter="blocks.1.attn.hook_pattern")
    looked = cache["pattern", 1][EVERY, :, at]  # [text head key]
    to_same, to_others = (
        looked.gather(2, keys[:, None].expand(-1, looked.shape[1], -1)).sum(-1) for keys in (same, others)
    )
    assert to_same.mean() >= 0.4
    assert to_same.mean() > to_others.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hidden_in_the_first_telling_is_known_from_the_second_alone(
    model: BERT, rows: Tensor, kind: str
) -> None:
    """With the second telling hidden from it, a guess is left among the words that the first does not have: 1 in 8."""
    texts, at, _, _ = hidden(model, rows, kind, "first")
    real = torch.ones_like(texts).bool()
    real[:, 19:] = False  # three facts of six words, after the first token
    first = torch.cat([texts[:, :19], texts[:, -1:]], 1)  # with the last token, as texts end
    for logits in (model(first), model(texts, attention_mask=real)[:, :19]):
        assert (logits[EVERY, at].argmax(-1) == rows[EVERY, at]).double().mean() <= 0.3


def test_patching_shows_the_word_move_from_the_other_telling_to_the_mask(model: BERT) -> None:
    clean = "mary has the [MASK] ball . tom has the blue cup . the blue cup is tom 's . the red ball is mary 's ."
    pairs = PromptPairs.from_text(model, clean, clean.replace("the red ball", "the green ball"), "red", "green")
    source = int(pairs.first_difference[0])
    at = int(pairs.answered[0])
    assert at < source
    effects = activation_patching(model, pairs, site="resid_pre").values  # [layer pos]
    assert effects[0].argmax() == source
    assert effects[0, source] == pytest.approx(1.0, abs=1e-4)  # float32: the whole difference enters there
    last = activation_patching(model, pairs, site="normalized_resid_post").values[-1]
    assert last.argmax() == at
    assert last[at] == pytest.approx(1.0, abs=1e-4)  # only the mask's own stream is read
