"""Attention patterns: where each head looks, as data and as a picture.

    A[head, q, k] = softmax over k of the masked scores of query position q

The page shows them with circuitsvis's attention view, from its own bundle, so it works offline.

`cross_attention_patterns`: the same of a decoder's attention to its source, q in the target and k in the source.

Cost: one forward.
It does not show: what a head moves from where it looks, or whether anything later reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.lens import Prompt, one_prompt
from interp import provenance, text
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import SHARE

if TYPE_CHECKING:
    from interp.page import Section, View

Head = tuple[int, int]

MAX_HEADS = 12
MAX_TOKENS = 64
"""More than this many heads and tokens make circuitsvis's view slow."""


@dataclass(frozen=True, eq=False, repr=False)
class PatternsResult(Result):
    """Attention of some heads on one prompt: each row of `values[head, q_pos, k_pos]` sums to one.

    heads: the (layer, head) of each entry. causal: whether a query sees only keys up to its own position.
    """

    title = "Attention patterns"
    shows = "where each head looks from each position: rows are queries, columns are keys"
    caveat = "What a head moves from where it looks, and whether anything later reads it, is not seen."
    unit = "attention"
    scale = SHARE

    values: Float[np.ndarray, "head q_pos k_pos"]
    heads: tuple[Head, ...]
    causal: bool

    def view(self) -> View:
        """circuitsvis's attention view: a small map per head, the chosen one large. Draws `MAX_HEADS` heads, and the
        last `MAX_TOKENS` tokens, where the answer is."""
        from interp.page import View

        start = max(0, self.values.shape[1] - MAX_TOKENS)
        shown = self.values[:MAX_HEADS, start:, start:]
        props = {
            "attention": np.round(shown.astype(np.float64), 4).tolist(),
            "attentionHeadNames": list(self.labels["head"][:MAX_HEADS]),
            "tokens": [text.short(text.visible(token), 24) for token in self.labels["q_pos"][start:]],
            "minValue": 0,
            "maxValue": 1,
            "positiveColor": "#08519c",
            "maskUpperTri": self.causal,
        }
        return View("AttentionHeads", props, self._left_out(len(shown), start))

    def sections(self) -> tuple[Section, ...]:
        """Its page shows the view."""
        from interp.page import Section

        return (Section(self.title, (self.view(),), self.shows, self.caveat),)

    def _left_out(self, drawn: int, start: int) -> str:
        cuts = [f"the first {drawn} of {len(self.heads)} heads"] if drawn < len(self.heads) else []
        cuts += [f"the last {MAX_TOKENS} of {start + MAX_TOKENS} tokens"] if start else []
        return f"drawn: {', '.join(cuts)}" if cuts else ""


def attention_patterns(model: HookedModel | Any, prompt: Prompt, heads: Sequence[Head] | None = None) -> PatternsResult:
    """The attention of `heads`, given as (layer, head), on one prompt: `.values[head, q_pos, k_pos]`.

    heads: all heads by default, layer by layer.

    Raises:
        LabError: a head that the model does not have, no head at all, or a prompt that it cannot take.
    """
    chosen = _checked(model, heads)
    tokens = one_prompt(model, prompt)
    words = model.to_str_tokens(tokens[0])
    return PatternsResult(
        _patterns(model, tokens, [Site("pattern", layer, head=head) for layer, head in chosen]),
        chosen,
        getattr(model.cfg, "attention_dir", "causal") == "causal",
        labels={"head": [f"L{layer}H{head}" for layer, head in chosen], "q_pos": words, "k_pos": words},
        provenance=provenance.of(model, prompts=tokens, site="pattern"),
    )


@dataclass(frozen=True, eq=False, repr=False)
class CrossPatternsResult(Result):
    """Attention of a decoder's heads to the source: each row of `values[head, target_pos, source_pos]` sums to one.

    heads: the (layer, head) of each entry.
    """

    title = "Cross-attention patterns"
    shows = "where each head looks in the source (columns) when the decoder has read the target up to a token (rows)"
    caveat = PatternsResult.caveat
    unit = "attention"
    scale = SHARE

    values: Float[np.ndarray, "head target_pos source_pos"]
    heads: tuple[Head, ...]


def cross_attention_patterns(
    model: HookedModel | Any, prompt: Prompt, heads: Sequence[Head] | None = None
) -> CrossPatternsResult:
    """The attention of `heads` of a decoder to its source, on one target: `.values[head, target_pos, source_pos]`.

    model: a decoder that was given a source, `model.decoder_given(source)`. heads: as in `attention_patterns`.

    Raises:
        LabError: a model that has no source, and as `attention_patterns`.
    """
    if Site("cross_pattern", 0).hook_name not in model.hook_dict or not hasattr(model, "source"):
        raise LabError(
            f"{model.cfg.model_name!r} is no decoder that looks at a source; expected model.decoder_given(source) of "
            "an encoder-decoder.  Try attention_patterns for attention inside one sequence."
        )
    chosen = _checked(model, heads)
    tokens = one_prompt(model, prompt)
    values = _patterns(model, tokens, [Site("cross_pattern", layer, head=head) for layer, head in chosen])
    return CrossPatternsResult(
        values,
        chosen,
        labels={
            "head": [f"L{layer}H{head}" for layer, head in chosen],
            "target_pos": model.to_str_tokens(tokens[0]),
            "source_pos": model.to_str_tokens(model.source[0]),
        },
        provenance=provenance.of(model, prompts=tokens, site="cross_pattern"),
    )


def _patterns(
    model: HookedModel | Any, tokens: Int[Tensor, "1 pos"], sites: Sequence[Site]
) -> Float[np.ndarray, "head q_pos k_pos"]:
    names = sorted({site.hook_name for site in sites})
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, names_filter=names)
        return to_numpy(torch.stack([cache[site][0].float() for site in sites]))


def _checked(model: HookedModel | Any, heads: Sequence[Head] | None) -> tuple[Head, ...]:
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if heads is None:
        return tuple((layer, head) for layer in range(n_layers) for head in range(n_heads))
    chosen = tuple((int(layer), int(head)) for layer, head in heads)
    if not chosen:
        raise LabError("no heads given; expected (layer, head) pairs such as [(0, 1)], or None for all.")
    for layer, head in chosen:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise LabError(
                f"there is no head ({layer}, {head}): this model has layers 0 to {n_layers - 1} with heads 0 to "
                f"{n_heads - 1}; give (layer, head)."
            )
    return chosen
