"""Writing on: sampling tokens from a model, one after the other, with a cache of keys and values.

What to sample from is a composition of pure functions on logits: see `interp.sampling`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import LabError
from interp.kv_cache import KeyValueCache
from interp.sampling import Sampling, next_token

if TYPE_CHECKING:
    from models.gpt import GPT


def generate(
    model: GPT,
    prompt: str | list[str] | Int[Tensor, "batch pos"] | Int[Tensor, "pos"],
    max_new_tokens: int = 20,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    stop_tokens: Collection[int] | None = None,
    seed: int | None = None,
    prepend_bos: bool | None = None,
    attention_mask: Bool[Tensor, "batch pos"] | None = None,
) -> Any:
    """The prompt and what the model writes after it: text for text, a list for a list, ids for ids.

    temperature: 0 takes the likeliest token each time. top_k: only from the k likeliest. top_p: only from the
    likeliest that together hold the probability p (arXiv:1904.09751). seed: of the draws; None draws anew each time.
    stop_tokens: a row ends after one of these; None stands for the tokenizer's end-of-text token, () for none.
    attention_mask: for ids with padding, which must stand on the left. Texts are padded by themselves.

    A row of ids that ended before the others is filled up with its stop token; text ends before it.

    Raises:
        LabError: before any work: a setting out of range, an empty prompt, padding on the right, ids out of range,
            or more tokens than fit into the context window.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    stops = _stops(model, stop_tokens)
    sampling = (max_new_tokens, temperature, top_k, top_p, stops, seed)
    if isinstance(prompt, Tensor):
        rows = (prompt[None] if prompt.ndim == 1 else prompt).to(model.device)
        written = generate_tokens(model, rows, *sampling, None if attention_mask is None else attention_mask.bool())
        return written[0] if prompt.ndim == 1 else written
    rows, real = model.to_tokens_and_mask(prompt, prepend_bos, padding_side="left", truncate=False)
    written = generate_tokens(model, rows, *sampling, real)
    texts = [_text(model, row, is_real, stops) for row, is_real in zip(written, real, strict=True)]
    return texts[0] if isinstance(prompt, str) else texts


@torch.no_grad()
def generate_tokens(
    model: GPT,
    tokens: Int[Tensor, "batch pos"],
    max_new_tokens: int,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    stop_tokens: Collection[int] = (),
    seed: int | None = None,
    mask: Bool[Tensor, "batch pos"] | None = None,
    freq_penalty: float | int = 0.0,
) -> Int[Tensor, "batch longer_pos"]:
    """`generate` for ids: the rows and up to `max_new_tokens` more. mask: False for padding, on the left.

    freq_penalty: taken from a token's logit, after the temperature, for each time that it is in the row already.

    Raises:
        LabError: as `generate`.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_prompt(model, tokens, mask, max_new_tokens)
    mask = None if mask is None or bool(mask.all()) else mask
    stops = torch.tensor(sorted(stop_tokens), dtype=tokens.dtype, device=tokens.device)
    source = random_source(tokens.device, seed)
    ended = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    cache = KeyValueCache()
    new = tokens
    for i in range(max_new_tokens):
        masked = mask if i == 0 else None
        resid = model(new, attention_mask=masked, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers)
        logits = model.logits_at(resid[:, -1:])[:, 0]  # nobody reads the others
        if freq_penalty:
            logits = logits - freq_penalty * temperature * counts(tokens, logits.shape[-1], mask)
        drawn = next_token(logits, temperature, top_k, top_p, source).to(tokens.dtype)
        new = rearrange(torch.where(ended, tokens[:, -1], drawn), "batch -> batch 1")
        tokens = torch.cat([tokens, new], 1)
        if len(stops):
            ended = ended | torch.isin(new[:, 0], stops)
            if bool(ended.all()):
                break
    return tokens


def counts(
    tokens: Int[Tensor, "batch pos"], d_vocab: int, mask: Bool[Tensor, "batch prompt_pos"] | None = None
) -> Int[Tensor, "batch d_vocab"]:
    """How often each token is in each row. mask: False for padding, of the first positions."""
    real = torch.ones_like(tokens)
    if mask is not None:
        real[:, : mask.shape[1]] = mask.to(real.dtype)
    return torch.zeros(len(tokens), d_vocab, dtype=real.dtype, device=tokens.device).scatter_add(1, tokens, real)


def check_settings(max_new_tokens: int, temperature: float | int, top_k: int | None, top_p: float | int | None) -> None:
    """Raises:
    LabError: a setting out of range.
    """
    if max_new_tokens < 0:
        raise LabError(f"max_new_tokens={max_new_tokens}; expected 0 or more.")
    Sampling(temperature, top_k, top_p)


def check_prompt(
    model: GPT, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None, max_new_tokens: int
) -> None:
    """Raises:
    LabError: the model does not write from left to right, or the prompt is empty, wrongly padded, out of range or
        too long for what is to come.
    """
    cfg = model.cfg
    if not cfg.causal or cfg.n_outputs > cfg.d_vocab:
        raise LabError(
            f"the model {cfg.model_name!r} cannot write text: its attention is {cfg.attention_dir} and it has "
            f"{cfg.n_outputs} outputs for {cfg.d_vocab} tokens; expected a causal model whose outputs are its tokens."
        )
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise LabError(f"the prompt has shape {tuple(tokens.shape)}; expected [batch pos] with at least one token.")
    if tokens.min() < 0 or tokens.max() >= cfg.d_vocab:
        raise LabError(f"token ids run from {tokens.min()} to {tokens.max()}; expected 0 to {cfg.d_vocab - 1}.")
    if mask is not None and mask.shape != tokens.shape:
        raise LabError(f"attention_mask has shape {tuple(mask.shape)}, expected the prompt's {tuple(tokens.shape)}.")
    if mask is not None and not bool(mask[:, -1].all()):
        raise LabError("a prompt ends in padding; expected padding on the left (padding_side='left').")
    length = tokens.shape[1]
    room = cfg.n_ctx - length + 1  # the last token is written but never read
    if room < 1:
        raise LabError(f"the prompt has {length} tokens, the context window {cfg.n_ctx}; shorten the prompt.")
    if max_new_tokens > room:
        raise LabError(
            f"a prompt of {length} tokens and {max_new_tokens} new ones do not fit into the context window of "
            f"{cfg.n_ctx}; try max_new_tokens={room}, or a prompt of at most "
            f"{max(0, cfg.n_ctx + 1 - max_new_tokens)} tokens."
        )


def _stops(model: GPT, stop_tokens: Collection[int] | None) -> Collection[int]:
    if stop_tokens is not None:
        return stop_tokens
    end = None if model.tokenizer is None else model.tokenizer.eos_token_id
    return () if end is None else (end,)


def _text(model: GPT, row: Int[Tensor, "pos"], real: Bool[Tensor, "prompt_pos"], stops: Collection[int]) -> str:
    """A row as text: without padding, start token, and the stop token with what follows it."""
    assert model.tokenizer is not None
    prompt, new = row[: len(real)][real].tolist(), row[len(real) :].tolist()
    end = next((i for i, token in enumerate(new) if token in stops), len(new))
    ids = prompt + new[:end]
    return model.tokenizer.decode(ids[1:] if ids[0] == model.tokenizer.bos_token_id else ids)


def random_source(device: torch.device, seed: int | None) -> torch.Generator:
    """What tokens are drawn with; None draws anew each time."""
    source = torch.Generator(device)
    if seed is None:
        source.seed()
    else:
        source.manual_seed(seed)
    return source
