"""The GPT's forward goes on from any layer and position, and finishes only the positions that are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import LabError
from interp.kv_cache import KeyValueCache, LayerCache
from models import GPT, TransformerConfig
from models.attention import at_positions
from tests.strategies import D_VOCAB, SEEDS, configs, models, padding_masks, random_model, token_batches

# float64 models: positions, masks and caches only change the order of summation.
EXACT: Any = {"atol": 1e-9, "rtol": 1e-9}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    """Token ids and a mask of either side, or none."""
    tokens = draw(token_batches())
    return tokens, draw(st.none() | padding_masks(*tokens.shape))


def some_positions(n: int, batch: int, pos: int, seed: int) -> Tensor:
    """Each row its own, in any order, perhaps one twice."""
    return torch.randint(pos, (batch, n), generator=torch.Generator().manual_seed(seed))


ANY_WAY = st.sampled_from(["causal", "causal", "bidirectional"]).flatmap(lambda way: configs(attention_dir=way))


@given(ANY_WAY, inputs(), st.integers(1, 4), SEEDS)
@torch.no_grad()
def test_finishing_some_positions_is_taking_them_from_the_whole(
    cfg: TransformerConfig, padded: tuple[Tensor, Tensor | None], n: int, seed: int
) -> None:
    model, (tokens, mask) = random_model(cfg, seed), padded
    finish = some_positions(n, *tokens.shape, seed)
    close(model(tokens, attention_mask=mask, finish=finish), at_positions(model(tokens, attention_mask=mask), finish))
    for stop in range(cfg.n_layers + 1):
        whole = model(tokens, attention_mask=mask, stop_at_layer=stop)
        close(model(tokens, attention_mask=mask, stop_at_layer=stop, finish=finish), at_positions(whole, finish))
        close(
            model(whole, attention_mask=mask, start_at_layer=stop, finish=finish),
            at_positions(model(tokens, attention_mask=mask), finish),
        )


@given(ANY_WAY, inputs(), st.sampled_from(["pattern", "attn_scores", "q", "z", "k_input", "result"]), SEEDS)
@torch.no_grad()
def test_a_hook_in_the_last_layer_sees_the_finished_queries_and_every_key(
    cfg: TransformerConfig, padded: tuple[Tensor, Tensor | None], kind: str, seed: int
) -> None:
    """Attention is then explicit, or heads have streams of their own: the numbers are the same."""
    model, (tokens, mask) = random_model(cfg, seed), padded
    finish, name = some_positions(2, *tokens.shape, seed), (kind, cfg.n_layers - 1)
    run = {"attention_mask": mask, "finish": finish}
    seen: list[tuple[int, ...]] = []
    where = f"blocks.{name[1]}." + ("hook_k_input" if kind == "k_input" else f"attn.hook_{kind}")

    def look(tensor: Tensor, hook: Any) -> Tensor:
        seen.append(tuple(tensor.shape))
        return tensor.clone()

    hooked = model.run_with_hooks(tokens, fwd_hooks=[(where, look)], **run)
    close(hooked, at_positions(model(tokens, attention_mask=mask), finish))
    batch, pos = tokens.shape
    if kind in ("pattern", "attn_scores"):
        assert seen == [(batch, cfg.n_heads, 2, pos)]
    elif kind == "k_input":
        assert seen == [(batch, pos, cfg.n_kv_heads, cfg.d_model)]
    else:
        assert seen[0][:3] == (batch, 2, cfg.n_heads)


@given(models(), inputs(), st.data())
@torch.no_grad()
def test_finishing_after_a_past_is_taking_from_the_whole(
    model: GPT, padded: tuple[Tensor, Tensor | None], data: Any
) -> None:
    tokens, mask = padded
    start = data.draw(st.integers(1, tokens.shape[1] - 1), label="start")
    finish = some_positions(2, len(tokens), tokens.shape[1] - start, data.draw(SEEDS))
    past, (before, after) = KeyValueCache(), ((None, None) if mask is None else (mask[:, :start], mask[:, start:]))
    model(tokens[:, :start], attention_mask=before, past_kv_cache=past)
    found = model(tokens[:, start:], attention_mask=after, past_kv_cache=past, finish=finish)
    close(found, at_positions(model(tokens, attention_mask=mask), finish + start))


@given(models(), inputs(), st.data())
@torch.no_grad()
def test_a_run_goes_on_from_any_layer_and_position_of_another(
    model: GPT, padded: tuple[Tensor, Tensor | None], data: Any
) -> None:
    """From the cached stream, keys and values alone; the past is made by hand and holds no other layer."""
    tokens, mask = padded
    batch, pos = tokens.shape
    mask = torch.ones(batch, pos, dtype=torch.bool) if mask is None else mask
    start = data.draw(st.integers(1, pos - 1), label="start")
    logits, cache = model.run_with_cache(tokens, attention_mask=mask)
    rotated = "blocks.0.attn.hook_rot_k" in model.hook_dict
    for layer in range(model.cfg.n_layers):
        stream = cache["resid_pre", layer][:, start:]
        for later in range(layer, model.cfg.n_layers):
            past = KeyValueCache(mask[:, :start])
            past.unpadded = False
            keys, values = cache["rot_k" if rotated else "k", later], cache["v", later]
            past.layers[later] = LayerCache(keys[:, :start], values[:, :start])
            stream = model(
                stream,
                start_at_layer=later,
                stop_at_layer=later + 1,
                attention_mask=mask[:, start:],
                past_kv_cache=past,
            )
            close(stream, cache["resid_post", later][:, start:])
    close(model.logits_at(stream), logits[:, start:])


@given(models(), token_batches(), st.integers(1, 5), SEEDS)
@torch.no_grad()
def test_some_logits_are_those_of_all(model: GPT, tokens: Tensor, n: int, seed: int) -> None:
    final = model(tokens, stop_at_layer=model.cfg.n_layers)
    every = model.logits_at(final)
    close(every, model(tokens))
    wanted = torch.randint(D_VOCAB, (len(tokens), n), generator=torch.Generator().manual_seed(seed))
    index = wanted[:, None].expand(-1, tokens.shape[1], -1)
    close(model.logits_at(final, wanted), every.gather(-1, index))


def test_a_loss_needs_every_position() -> None:
    model = random_model(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=D_VOCAB, n_ctx=8))
    for kind in ("loss", "both"):
        with pytest.raises(LabError, match="a loss needs every position; give no finish="):
            model(torch.tensor([[1, 2, 3]]), return_type=kind, finish=torch.tensor([[2]]))
