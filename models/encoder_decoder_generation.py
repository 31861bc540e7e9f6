"""Writing with an encoder-decoder: the encoder runs once, the decoder with a cache of keys and values.

Greedy (temperature 0), by sampling, or by beam search (`models.beam_search`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.sampling import next_token
from models.beam_search import beam_search
from models.encoder_decoder_text import Source, SourceMask
from models.generation import check_settings, random_source

if TYPE_CHECKING:
    from models.encoder_decoder import EncoderDecoder, Memory


@torch.no_grad()
def generate(
    model: EncoderDecoder,
    input: Source,
    max_new_tokens: int = 20,
    temperature: float | int = 0.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    stop_tokens: Collection[int] | None = None,
    seed: int | None = None,
    attention_mask: SourceMask | None = None,
    num_beams: int = 1,
    length_penalty: float | int = 1.0,
) -> Any:
    """The target of each source: text for text, a list for a list; for ids the ids, which begin with the start token.

    temperature, top_k, top_p, seed: as for `models.generation.generate`; 0, the default, takes the likeliest token.
    num_beams: more than 1 searches for the likeliest target with so many beams. stop_tokens: a target ends after one
    of these; None stands for the end token, () for none. A row of ids that ended before the others is filled up with
    the padding token; text ends before the stop token.

    Raises:
        LabError: before any work: a setting out of range, beams together with sampling, sources that the encoder
            cannot take, or more tokens than fit into the context window.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_beams(num_beams, temperature)
    stops = _stops(model) if stop_tokens is None else stop_tokens
    if max_new_tokens > model.cfg.n_ctx:  # the last token is written but never read
        raise LabError(f"max_new_tokens={max_new_tokens}; the context window of the target holds {model.cfg.n_ctx}.")
    memory = model.encode(input, attention_mask)
    start = torch.full((len(memory.states),), model.cfg.decoder_start_token_id, device=model.device)
    if num_beams > 1:
        step = _Steps(model, memory.repeated(num_beams))
        written = beam_search(step, start, num_beams, max_new_tokens, stops, model.padding_id, length_penalty)
    else:
        random = random_source(model.device, seed)
        draw = partial(next_token, temperature=temperature, top_k=top_k, top_p=top_p, source=random)
        written = _drawn(_Steps(model, memory), start, max_new_tokens, stops, model.padding_id, draw)
    if isinstance(input, Tensor):
        return written[0] if input.ndim == 1 else written
    texts = [model.target_text(row.tolist(), stops) for row in written]
    return texts[0] if isinstance(input, str) else texts


def check_beams(num_beams: int, temperature: float | int) -> None:
    """Raises:
    LabError: no beams, or beams and sampling, which are two ways to choose a target.
    """
    if num_beams < 1:
        raise LabError(f"num_beams={num_beams}; expected at least 1.")
    if num_beams > 1 and temperature != 0:
        raise LabError(
            f"num_beams={num_beams} searches for the likeliest target, temperature={temperature} draws one; expected "
            "temperature=0 with beams, or num_beams=1."
        )


class _Steps:
    """The decoder from one token to the next: what it has read stays in its cache."""

    def __init__(self, model: EncoderDecoder, memory: Memory) -> None:
        from models.encoder_decoder import DecoderCache

        self.model, self.memory, self.cache = model, memory, DecoderCache()

    def __call__(self, newest: Int[Tensor, "row"], parents: Int[Tensor, "row"] | None = None) -> Float[Tensor, "row v"]:
        """The logits after each row's newest token. parents: the row, of the same source, that each one continues."""
        if parents is not None:
            self.cache.target.select_batch(parents)
        resid = self.model.decode(rearrange(newest, "row -> row 1"), self.memory, cache=self.cache)
        return self.model.logits_of(resid)[:, -1]


def _drawn(
    step: _Steps,
    start: Int[Tensor, "batch"],
    max_new_tokens: int,
    stop_tokens: Collection[int],
    padding: int,
    draw: Callable[[Tensor], Tensor],
) -> Int[Tensor, "batch pos"]:
    """Each row's start token and what is drawn after it, until all rows have ended."""
    stops = torch.tensor(sorted(stop_tokens), dtype=start.dtype, device=start.device)
    written, ended = [start], torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for _ in range(max_new_tokens):
        new = draw(step(written[-1])).to(start.dtype)
        written.append(torch.where(ended, padding, new))
        ended = ended | torch.isin(new, stops)
        if len(stops) and bool(ended.all()):
            break
    return torch.stack(written, 1)


def _stops(model: EncoderDecoder) -> Collection[int]:
    end = model.cfg.eos_token_id
    if end is None and model.tokenizer is not None:
        end = model.tokenizer.eos_token_id
    return () if end is None else (end,)
