"""The waves in position vectors: known ones are found, as are the shares that a plain Fourier sum gives.

float64 throughout, but for the sinusoids of a model, which are float32; 1e-9 unless said otherwise. Waves are told to
a fiftieth of a turn over the window: they are fitted at eighths of a turn, and a parabola lies between.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analyses import nearest_tokens, position_geometry
from interp.errors import LabError
from interp.results import Result
from models import GPT, TransformerConfig
from models.bert import BERT
from models.bert_config import BertConfig
from models.encoder_decoder import EncoderDecoder
from models.encoder_decoder_config import EncoderDecoderConfig
from tests.strategies import SEEDS

CLOSE = 1e-9
TURN = 0.02
RELATIVE = {"positional_embedding_type": "none", "relative_attention_num_buckets": 4}


def model_of(vectors: Tensor) -> GPT:
    """A model with these learned positions."""
    n_ctx, d_model = vectors.shape
    model = GPT(TransformerConfig(1, 1, d_model, 5, n_ctx=n_ctx), dtype=torch.float64)
    with torch.no_grad():
        model.pos_embed.W_pos.copy_(vectors)
    return model


def drawn(seed: int, n_ctx: int = 12, d_model: int = 4) -> Tensor:
    return torch.randn(n_ctx, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=SEEDS, n_ctx=st.integers(4, 13))
def test_similarities_and_spectrum_are_those_that_loops_give(seed: int, n_ctx: int) -> None:
    W_pos = drawn(seed, n_ctx)
    found = position_geometry(model_of(W_pos))
    rows = W_pos.tolist()
    for i, j in np.ndindex(n_ctx, n_ctx):
        dot = sum(x * y for x, y in zip(rows[i], rows[j], strict=True))
        assert found.values[i, j] == pytest.approx(dot / math.hypot(*rows[i]) / math.hypot(*rows[j]), abs=CLOSE)
    centred = (W_pos - W_pos.mean(0)).numpy()
    power = []
    for k in range(1, n_ctx // 2 + 1):
        angle = 2 * np.pi * k * np.arange(n_ctx) / n_ctx
        waves = [wave for wave in (np.cos(angle), np.sin(angle)) if np.abs(wave).max() > 1e-6]
        power.append(sum(((wave / np.linalg.norm(wave)) @ centred) @ ((wave / np.linalg.norm(wave)) @ centred)
                         for wave in waves))  # fmt: skip
    np.testing.assert_allclose(found.spectrum, np.array(power) / (centred**2).sum(), atol=CLOSE)
    assert found.spectrum.sum() == pytest.approx(1.0, abs=CLOSE)


def test_sinusoidal_positions_are_recovered_from_their_vectors() -> None:
    """Those whose wavelength, 2π · 10000^(2i/d), the window holds at least once."""
    d_model, n_ctx = 32, 400
    cfg = TransformerConfig(1, 1, d_model, 5, n_ctx=n_ctx, positional_embedding_type="sinusoidal")
    found = position_geometry(GPT(cfg))
    known = np.array([2 * math.pi * 10000 ** (2 * (i // 2) / d_model) for i in range(d_model)])
    held = known < n_ctx
    assert 10 < held.sum() < d_model
    np.testing.assert_allclose(n_ctx / found.wavelength[held], n_ctx / known[held], atol=TURN)
    assert (found.fit > 0.999).all(), "slower ones are pieces of a wave too"
    assert set(np.argsort(-found.spectrum)[:3] + 1) <= {1, *np.round(n_ctx / known[held]).astype(int)}


def test_similarity_of_sinusoids_depends_on_the_distance_alone() -> None:
    """Σ cos ω(i - j) over the frequencies; 1e-5, as the vectors are float32."""
    cfg = TransformerConfig(1, 1, 16, 5, n_ctx=40, positional_embedding_type="sinusoidal")
    found = position_geometry(GPT(cfg))
    frequencies = [10000 ** (-2 * i / 16) for i in range(8)]
    for i, j in ((0, 0), (3, 7), (30, 34), (0, 39)):
        assert found.values[i, j] == pytest.approx(sum(math.cos(w * (i - j)) for w in frequencies) / 8, abs=1e-5)


@given(turns=st.floats(0.6, 18.0), phase=st.floats(0, 6.28), height=st.floats(-5, 5))
def test_any_wave_is_found_whatever_its_phase_and_height(turns: float, phase: float, height: float) -> None:
    n = 48
    omega = 2 * math.pi * turns / n
    wave = torch.cos(omega * torch.arange(n, dtype=torch.float64) + phase) + height
    found = position_geometry(model_of(torch.stack([wave, drawn(0, n, 1)[:, 0]], 1)))
    assert found.fit[0] > 0.999
    if turns >= 1:
        assert n / found.wavelength[0] == pytest.approx(turns, abs=TURN)
    assert found.fit[1] < 0.6, "noise is no wave"


def test_a_coordinate_that_does_not_change_has_no_wave() -> None:
    vectors = drawn(0)
    vectors[:, 1] = 3.0
    found = position_geometry(model_of(vectors))
    assert np.isnan(found.wavelength[1])
    assert found.fit[1] == 0
    assert np.isfinite(found.wavelength[[0, 2, 3]]).all()


def test_positions_on_a_circle_are_two_components_and_one_frequency() -> None:
    angle = 2 * math.pi * 3 * torch.arange(12, dtype=torch.float64) / 12
    plane = torch.linalg.qr(drawn(1, 6, 2)).Q
    found = position_geometry(model_of(torch.stack([angle.cos(), angle.sin()], 1) @ plane.T + drawn(2, 1, 6)))
    np.testing.assert_allclose(found.explained, [0.5, 0.5], atol=CLOSE)
    np.testing.assert_allclose(found.spectrum, np.eye(6)[2], atol=CLOSE)
    np.testing.assert_allclose(np.linalg.norm(found.coordinates, axis=1), 1.0, atol=CLOSE)
    np.testing.assert_allclose(12 / found.wavelength, 3.0, atol=TURN)


@pytest.mark.parametrize(("kind", "why"), [("rotary", "turn queries and keys"), ("none", "causal attention alone")])
def test_without_position_vectors_it_says_how_the_model_knows_where_it_is(kind: str, why: str) -> None:
    cfg = TransformerConfig(1, 1, 4, 5, n_ctx=8, positional_embedding_type=kind, model_name="mine")
    with pytest.raises(LabError, match=rf"'mine' has no position vectors: .*{why}"):
        position_geometry(GPT(cfg))


def test_an_encoder_has_position_vectors_like_any_other() -> None:
    model = BERT(BertConfig(1, 2, 8, 11, n_ctx=6), dtype=torch.float64)
    W_pos = model.W_pos.detach()
    expected = torch.nn.functional.cosine_similarity(W_pos[:, None], W_pos, dim=-1)
    np.testing.assert_allclose(position_geometry(model).values, expected, atol=CLOSE)


@pytest.mark.parametrize(("own", "why"), [({}, "no W_pos for both"), (RELATIVE, "how far apart two tokens are")])
def test_an_encoder_decoder_has_no_position_vectors_for_both_sides(own: dict[str, Any], why: str) -> None:
    model = EncoderDecoder(EncoderDecoderConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=8, **own))
    with pytest.raises(LabError, match=why):
        position_geometry(model)
    assert nearest_tokens(model, [3], 2).values.shape == (1, 2, 2)


def test_too_few_positions_or_components_are_refused() -> None:
    with pytest.raises(LabError, match="3 positions; expected at least four"):
        position_geometry(model_of(drawn(0, 3)))
    with pytest.raises(LabError, match="k=0"):
        position_geometry(model_of(drawn(0)), 0)


def test_it_comes_back_from_its_file_and_shows_all_its_pictures(tmp_path: Path) -> None:
    found = position_geometry(model_of(drawn(0)))
    found.save(tmp_path / "it.safetensors")
    assert Result.load(tmp_path / "it.safetensors") == found
    page = found.to_html()
    assert page.count('class="plot"') == 3
    assert "wavelength of the closest wave" in page
