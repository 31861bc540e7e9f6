"""Head scores on attention that is known by construction, against a loop, and on a published model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import head_scores
from analyses.roles import HeadScores
from interp import LabError
from interp.results import Result
from models import GPT, TransformerConfig, load
from tests.strategies import models, random_model, token_batches

D_VOCAB, N_CTX = 8, 16
STRENGTH = 60.0  # of the built heads' scores: what they do not attend to has weight exp(-60)


def built() -> GPT:
    """One layer, three heads: previous token (by positions), duplicate token (by tokens), and one that sees all alike.

    The stream holds the token one-hot in its first D_VOCAB coordinates and the position one-hot in the rest.
    """
    width = D_VOCAB + N_CTX
    cfg = TransformerConfig(
        n_layers=1, n_heads=3, d_model=width, d_head=width, d_vocab=D_VOCAB, n_ctx=N_CTX,
        attn_only=True, normalization_type=None, attn_bias=False, dtype=torch.float64,
    )  # fmt: skip
    model = GPT(cfg)
    positions = torch.eye(width)[D_VOCAB:]
    query, key = torch.zeros(3, width, width), torch.zeros(3, width, width)
    query[0, D_VOCAB + 1 :, D_VOCAB:-1] = torch.eye(N_CTX - 1)  # position i asks for i - 1
    key[0, D_VOCAB:, D_VOCAB:] = torch.eye(N_CTX)
    query[1, :D_VOCAB, :D_VOCAB] = key[1, :D_VOCAB, :D_VOCAB] = torch.eye(D_VOCAB)  # a token asks for itself
    # A head that seeks its own token finds itself too: later positions of an equal token score lower by position.
    query[1, :D_VOCAB, -1] = 1.0
    key[1, D_VOCAB:, -1] = -torch.arange(N_CTX) / N_CTX
    with torch.no_grad():
        model.embed.W_E.copy_(torch.eye(width)[:D_VOCAB])
        model.pos_embed.W_pos.copy_(positions)
        attn = model.blocks[0].attn
        attn.q.weight.copy_(torch.cat([head.T for head in query]) * STRENGTH * width**0.5)
        attn.k.weight.copy_(torch.cat([head.T for head in key]))
    return model


def test_a_previous_token_head_scores_one_and_no_other() -> None:
    scores = head_scores(built())
    assert scores.previous[0, 0] == pytest.approx(1.0, abs=1e-6)
    assert scores.duplicate[0, 0] == pytest.approx(0.0, abs=1e-6)
    assert scores.induction[0, 0] == pytest.approx(0.0, abs=1e-6)


def test_a_duplicate_token_head_scores_one_and_no_other() -> None:
    """Blocks of different tokens: in the second copy the head finds the first, at least half the context away.

    A gap of g positions divides the weight on itself by exp(STRENGTH g / N_CTX), at least exp(26) here.
    """
    scores = head_scores(built(), length=7)
    assert scores.duplicate[0, 1] == pytest.approx(1.0, abs=1e-6)
    assert scores.previous[0, 1] == pytest.approx(0.0, abs=1e-6)
    assert scores.induction[0, 1] == pytest.approx(0.0, abs=1e-6)


def test_a_head_that_sees_all_alike_scores_one_over_the_number_of_positions() -> None:
    scores = head_scores(built(), length=7)
    uniform = [1 / (i + 1) for i in range(14)]
    assert scores.previous[0, 2] == pytest.approx(np.mean(uniform[2:]), abs=1e-6)
    assert scores.duplicate[0, 2] == pytest.approx(np.mean(uniform[7:]), abs=1e-6)
    assert scores.induction[0, 2] == pytest.approx(np.mean(uniform[7:]), abs=1e-6)


def test_an_induction_head_scores_what_its_construction_says() -> None:
    """A second layer whose keys are what the previous-token head brought: the token before each position."""
    one = built()
    width = one.cfg.d_model
    cfg = TransformerConfig(
        n_layers=2, n_heads=3, d_model=2 * width, d_head=width, d_vocab=D_VOCAB, n_ctx=N_CTX,
        attn_only=True, normalization_type=None, attn_bias=False, dtype=torch.float64,
    )  # fmt: skip
    model = GPT(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :width] = one.embed.W_E
        model.pos_embed.W_pos[:, :width] = one.pos_embed.W_pos
        first, second = (block.attn for block in model.blocks)
        first.q.weight[:, :width], first.k.weight[:, :width] = one.blocks[0].attn.q.weight, one.blocks[0].attn.k.weight
        tokens = torch.eye(D_VOCAB)
        first.v.weight[:D_VOCAB, :D_VOCAB] = tokens  # the previous-token head carries the token ...
        first.o.weight[width : width + D_VOCAB, :D_VOCAB] = tokens  # ... to free coordinates of the stream
        second.q.weight[:D_VOCAB, :D_VOCAB] = tokens * STRENGTH * width**0.5
        second.k.weight[:D_VOCAB, width : width + D_VOCAB] = tokens
    scores = head_scores(model, length=7)
    # Before the first token there is none, so position 0 carries its own and takes half of one query in seven.
    assert scores.induction[1, 0] == pytest.approx(6.5 / 7, abs=1e-6)
    assert scores.induction[0].max() < 0.2
    assert scores.duplicate[1, 0] == pytest.approx(0.5 / 7, abs=1e-6)


@given(models(), token_batches(min_pos=3), st.integers(2, 11))
def test_scores_equal_a_loop_over_queries(model: GPT, tokens: torch.Tensor, alphabet: int) -> None:
    """On any tokens, repeats within a few positions included."""
    tokens = tokens % alphabet
    scores = head_scores(model, tokens)
    _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern")
    for layer, head in np.ndindex(model.cfg.n_layers, model.cfg.n_heads):
        found: dict[str, list[float]] = {"previous": [], "duplicate": [], "induction": []}
        for row, ids in enumerate(tokens.tolist()):
            weights = cache["pattern", layer][row, head].tolist()
            for i in range(len(ids)):
                earlier = [j for j in range(i) if ids[j] == ids[i]]
                if i >= 2:
                    found["previous"].append(weights[i][i - 1])
                if earlier:
                    found["duplicate"].append(sum(weights[i][j] for j in earlier))
                    found["induction"].append(sum(weights[i][j + 1] for j in earlier if j + 1 < len(ids)))
        for role, weights in found.items():
            expected = np.mean(weights) if weights else np.nan
            assert getattr(scores, role)[layer, head] == pytest.approx(expected, abs=1e-5, nan_ok=True)  # in float32


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    model = random_model(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=12), seed=3)
    assert head_scores(model, seed=1) == head_scores(model, seed=1)
    assert head_scores(model, seed=1) != head_scores(model, seed=2)


def test_the_provenance_names_the_seed_only_where_tokens_were_drawn() -> None:
    model = random_model(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=12), seed=3)
    assert head_scores(model, seed=4).provenance.seed == 4
    assert head_scores(model, torch.tensor([[1, 2, 3]])).provenance.seed is None


def test_tokens_that_cannot_be_scored_are_refused() -> None:
    model = random_model(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=12), seed=3)
    with pytest.raises(LabError, match=r"at least 3 tokens; given shape \[1, 2\]"):
        head_scores(model, torch.tensor([[1, 2]]))
    with pytest.raises(LabError, match="a block of 7 tokens twice needs a context of 14"):
        head_scores(model, length=7)


def test_the_result_survives_a_file_and_is_a_table_and_a_page(tmp_path: Path) -> None:
    scores = head_scores(built())
    scores.save(tmp_path / "scores.safetensors")
    loaded = Result.load(tmp_path / "scores.safetensors")
    assert isinstance(loaded, HeadScores)
    assert loaded == scores
    np.testing.assert_array_equal(loaded.induction, scores.induction)
    assert list(scores.to_dataframe().columns) == ["role", "role_label", "layer", "head", "values"]
    assert scores.top(1)[0].value == scores.values.max()
    assert "Head scores" in scores.to_html()


def test_a_published_model_has_its_published_scores(shared_data: Path) -> None:
    """stories260k on a random block repeated behind its start token; the reference is rounded to four digits.

    Its rows hold 39 different ids and one twice at most, so `induction` counts what `reference.json` counts, up to
    those repeats inside a block.
    """
    folder = shared_data / "stories260k"
    reference = json.loads((folder / "reference.json").read_text())["repeated_sequences"]
    blocks = torch.tensor(json.loads((folder / "random_ids_32x40.json").read_text()))
    tokens = torch.cat([torch.ones(32, 1, dtype=torch.long), blocks, blocks], 1)
    model = load(folder)
    scores = head_scores(model, tokens)
    np.testing.assert_allclose(scores.previous, reference["previous_token_attention"], atol=2e-4)
    np.testing.assert_allclose(scores.induction, reference["induction_attention"], atol=0.02)
    assert scores.induction.max() < 0.05
