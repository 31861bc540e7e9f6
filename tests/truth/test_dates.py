"""The zoo's encoder-decoder on dates that it was not trained on: right answers, and attention where the answer is.

Which characters of a source say each digit of its ISO form is known (`models.zoo.iso_dates.Written.alignment`).
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
import torch

from analyses import activation_patching, cross_attention_patterns
from interp import PromptPairs
from models import load
from models.encoder_decoder import EncoderDecoder
from models.zoo import recipes
from models.zoo.iso_dates import (
    N_TARGET,
    Dates,
    Written,
    aligned,
    as_batch,
    attention_on_aligned,
    cross_pattern,
    held_out,
    is_held_out,
    looks_aligned,
)


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    return load("dates")


def test_the_alignment_is_what_a_reader_would_say() -> None:
    written = Written(date(1987, 3, 5), 1)
    assert (written.source, written.target) == ("March 5, 1987", "1987-03-05")
    name, day = list(range(5)), [6]
    assert written.alignment == [[9], [10], [11], [12], [], name, name, [], day, day]
    assert Written(date(1987, 11, 25), 3).alignment[5:] == [[3, 4], [3, 4], [], [0], [1]]


def test_no_batch_has_a_day_that_is_held_out() -> None:
    drawn = Dates().draw(500, torch.Generator().manual_seed(1))
    assert not any(is_held_out(each.day) for each in drawn)
    assert all(is_held_out(each.day) for each in held_out(100))


def test_held_out_dates_are_translated_without_a_mistake(model: EncoderDecoder) -> None:
    """The card says all of 1,000; a hundredth is left for other machines' rounding."""
    dates = held_out(200)
    for beams in (1, 4):
        batch = as_batch(dates)
        found = model.generate(batch.source, N_TARGET + 1, attention_mask=batch.source_mask, num_beams=beams)
        assert (found[:, 1:] == batch.targets).all(1).float().mean() >= 0.99
    assert model.generate(["March 5, 1987", "31 Oct 2024"]) == ["1987-03-05", "2024-10-31"]


def test_cross_attention_looks_at_the_characters_that_say_each_digit(model: EncoderDecoder) -> None:
    """93 % by the card; a head that looks everywhere alike would be right by chance in one of 12 or fewer."""
    dates = held_out(200)
    pattern = cross_pattern(model, dates)
    assert looks_aligned(pattern, dates).mean() >= 0.9
    assert attention_on_aligned(pattern, dates).max() >= 0.7
    where = aligned(dates, pattern.shape[-1])
    everywhere = as_batch(dates).source_mask.float()[None, :, None, None].expand_as(pattern)
    by_chance = attention_on_aligned(everywhere / everywhere.sum(-1, keepdim=True), dates)
    assert by_chance.max() <= 0.2
    assert where.any(-1).sum(1).tolist() == [8] * 200


def test_an_untrained_model_does_not_look_there(model: EncoderDecoder) -> None:
    fresh, dates = EncoderDecoder(model.cfg, model.tokenizer), held_out(100)
    assert looks_aligned(cross_pattern(fresh, dates), dates).mean() <= 0.5


def test_a_digit_of_the_year_crosses_at_its_own_place_and_by_its_value(model: EncoderDecoder) -> None:
    """1947 becomes 1987 where the state, or the cross-attention's value, of the third digit is put there alone."""
    encoder = model.encoder_given("19")
    clean, corrupted = ["5 March 1987", "7 April 1982"], ["5 March 1947", "7 April 1942"]
    pairs = PromptPairs.from_text(encoder, clean, corrupted, ["8", "8"], ["4", "4"])
    place = clean[0].index("8")
    for site in ("resid_pre", "cross_v"):
        values = activation_patching(encoder, pairs, site=site, by=("layer", "pos")).values
        assert (values[:, place] >= 0.95).all()
        assert np.abs(np.delete(values, place, 1)).max() <= 0.05
    assert np.abs(activation_patching(encoder, pairs, site="cross_k", by=("layer", "pos")).values).max() <= 0.05


def test_the_pattern_of_one_date_points_at_its_digits(model: EncoderDecoder) -> None:
    found = cross_attention_patterns(model.decoder_given("March 5, 1987"), "1987-03-0")
    assert found.values.mean(0).argmax(-1)[:4].tolist() == [9, 10, 11, 12]
    figure = found.plot()
    assert "1" in figure.layout.xaxis.ticktext


def test_the_recipe_is_that_of_the_weights_that_ship(model: EncoderDecoder) -> None:
    recipe = recipes.find("dates")
    cfg = recipe.config(recipe.lesson())
    assert cfg.to_dict() == model.cfg.to_dict()
