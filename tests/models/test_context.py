"""A model whose positions are computed runs in any window, with the same numbers in the one that it had."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from interp.errors import LabError
from models import GPT, TransformerConfig
from models.context import with_context
from models.positions import SinusoidalPositions
from models.rotary_scaling import RotaryScaling
from tests.strategies import D_VOCAB, N_CTX, configs, random_model

COMPUTED = ("sinusoidal", "rotary", "none")
LONG = 3 * N_CTX


def tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(D_VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", COMPUTED)
@given(cfg=configs())
def test_in_the_old_window_nothing_changes_and_beyond_it_the_model_runs(kind: str, cfg: TransformerConfig) -> None:
    plain = {"rotary_dim": None, "rotary_scaling": None, "rotary_base_local": None, "qk_norm": None}
    sizes = cfg.to_dict() | plain | {"positional_embedding_type": kind, "dtype": torch.float64}
    model = random_model(TransformerConfig.from_dict(sizes))
    wide = with_context(model, LONG)
    rows = tokens(LONG)
    logits = wide(rows)
    assert logits.shape[:2] == (2, LONG)
    torch.testing.assert_close(wide(rows[:, :N_CTX]), model(rows[:, :N_CTX]), atol=0, rtol=0)
    if cfg.causal:  # 1e-10: sums over keys that are masked out may be grouped otherwise
        torch.testing.assert_close(logits[:, :N_CTX], model(rows[:, :N_CTX]), atol=1e-10, rtol=1e-10)
    with pytest.raises(LabError, match="do not fit the context window"):
        model(rows)


def test_far_positions_have_the_vectors_that_the_formula_gives() -> None:
    """1e-3: the lab computes angles in float32, where those of position 5000 are known to 5000 · 6e-8."""
    cfg = TransformerConfig(1, 2, 8, D_VOCAB, n_ctx=4, positional_embedding_type="sinusoidal")
    W_pos = with_context(GPT(cfg), 5001).W_pos
    for position in (0, 3, 4, 777, 5000):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            pair = W_pos[position, 2 * i : 2 * i + 2].numpy()
            np.testing.assert_allclose(pair, [np.sin(angle), np.cos(angle)], atol=1e-3)


def test_the_window_is_the_only_thing_that_bounds_sinusoids() -> None:
    cfg = TransformerConfig(1, 2, 8, D_VOCAB, n_ctx=4, positional_embedding_type="sinusoidal")
    beyond = torch.tensor([[3, 4, 100]])
    positions = SinusoidalPositions(cfg)
    torch.testing.assert_close(positions(beyond)[0, 0], positions.W_pos[3])
    assert positions(beyond).isfinite().all()


def test_a_copy_shares_nothing_and_draws_nothing() -> None:
    model = GPT(TransformerConfig(1, 2, 8, D_VOCAB, n_ctx=4, positional_embedding_type="none", tie_embeddings=True))
    model.revision = "step-3"
    before = torch.get_rng_state()
    wide = with_context(model, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert (wide.cfg.n_ctx, wide.revision, wide.unembed.weight is wide.embed.W_E) == (8, "step-3", True)
    rows = tokens(4)
    expected = model(rows).detach()
    with torch.no_grad():
        wide.embed.W_E.zero_()
    torch.testing.assert_close(model(rows), expected, atol=0, rtol=0)


def test_learned_positions_are_refused_by_name() -> None:
    model = GPT(TransformerConfig(1, 2, 8, D_VOCAB, n_ctx=4, model_name="mine"))
    with pytest.raises(LabError, match=r"'mine' has learned positions, a vector for each of its 4 \(n_ctx\)"):
        with_context(model, 8)


def test_longrope_ends_with_its_first_context() -> None:
    scaling = RotaryScaling("longrope", 2.0, 6, frequency_factors=(1.0, 2.0))
    cfg = TransformerConfig(1, 2, 8, D_VOCAB, n_ctx=4, positional_embedding_type="rotary", rotary_scaling=scaling)
    assert with_context(GPT(cfg), 6).cfg.n_ctx == 6
    with pytest.raises(LabError, match="n_ctx of at most 6, given 7"):
        with_context(GPT(cfg), 7)


def test_a_window_of_nothing_is_refused() -> None:
    model = GPT(TransformerConfig(1, 2, 8, D_VOCAB, n_ctx=4, positional_embedding_type="none"))
    with pytest.raises(LabError, match="n_ctx=0"):
        with_context(model, 0)
