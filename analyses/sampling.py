"""What temperature, top-k and top-p do to what a model writes: how free each choice is, and how much repeats.

For each way of sampling, the same prompt is written on `n` times, and of the written tokens are measured

    entropy    H(q_i) in nats, q_i the distribution that token i was drawn from
    log_prob   log p(token i | those before it) in nats, under the model's own probabilities p
    repetition 1 - distinct n-grams / n-grams, of each text alone          (Welleck et al. 2020, arXiv:1908.04319)
    distinct   distinct n-grams / n-grams, of all texts of a way together  (Li et al. 2016, arXiv:1510.03055)

Greedy text tends to loop, and a high temperature to say what the model holds unlikely (Holtzman et al. 2020,
arXiv:1904.09751). Li et al. divide by tokens instead of n-grams; so divided, short texts would seem less diverse.

Cost: for each way, writing n texts at once: a run of each new token, or of all tokens where the model cannot resume.
It does not show: whether what is written is true or good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from analyses.context import check_reads_onward
from analyses.labels import token_texts
from analyses.lens import Prompt, one_prompt
from interp import provenance
from interp.contract import HookedModel, ResumableModel
from interp.errors import LabError
from interp.kv_cache import KeyValueCache
from interp.results import Result, to_numpy
from interp.sampling import Sampling, distribution, entropy, next_token

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

WAYS = (
    Sampling(0),
    Sampling(0.1),
    Sampling(0.5),
    Sampling(1),
    Sampling(2),
    Sampling(top_k=5),
    Sampling(top_k=50),
    Sampling(top_p=0.5),
    Sampling(top_p=0.9),
)
LENGTHS = (1, 2, 3, 4)
"""Of the n-grams that are counted."""
MEASURES = ("entropy", "log probability", "repeated 3-grams")
"""Of each text: the first two are means over its tokens, in nats."""


@dataclass(frozen=True, eq=False, repr=False)
class SamplingEffects(Result):
    """What was written in each way, [way sample pos], as ids and as text, and what it is like.

    entropy: of what each token was drawn from, in nats. log_prob: of each token under the model, in nats. repetition:
    share of n-grams that the same text has already, NaN where it has none. distinct: share of different n-grams among
    those of all samples.
    `n` is labelled with the length of the n-grams.
    """

    title = "Ways of sampling"
    shows = "how free each choice was, how likely the model holds what it wrote, and how much of it repeats"
    caveat = "One prompt; samples of a way differ by their draws alone. Greedy samples are all the same."
    primary = "entropy"
    unit = "nats"

    tokens: Int[np.ndarray, "way sample pos"]
    words: Shaped[np.ndarray, "way sample pos"]
    entropy: Float[np.ndarray, "way sample pos"]
    log_prob: Float[np.ndarray, "way sample pos"]
    repetition: Float[np.ndarray, "way sample n"]
    distinct: Float[np.ndarray, "way n"]

    def by_sample(self) -> dict[str, Float[np.ndarray, "way sample"]]:
        """Each measure of `MEASURES` for each text: means over its tokens, and how much of its 3-grams repeats."""
        means = (self.entropy.mean(-1), self.log_prob.mean(-1), self.repetition[..., LENGTHS.index(3)])
        return dict(zip(MEASURES, means, strict=True))

    def rows(self) -> list[tuple[str, tuple[float, ...], tuple[float, ...], float]]:
        """For each way its name, the means over samples and the standard deviations of `MEASURES`, and `distinct` of
        3-grams."""
        measures = np.stack(list(self.by_sample().values()), 1)
        means, spreads, distinct = measures.mean(-1), measures.std(-1), self.distinct[:, LENGTHS.index(3)]
        return [
            (str(way), tuple(map(float, means[i])), tuple(map(float, spreads[i])), float(distinct[i]))
            for i, way in enumerate(self.labels["way"])
        ]

    def text(self, way: int, sample: int = 0) -> str:
        """What was written."""
        return "".join(self.words[way, sample])

    def plot(self) -> go.Figure:
        """A panel for each of `MEASURES`: a mark for every text, and its way's mean."""
        from analyses.sampling_picture import spread_figure

        return spread_figure(self)

    def sections(self) -> tuple[Section, ...]:
        """The picture, and the first text of each way."""
        from interp import markup
        from interp.page import Plot, Section

        texts = markup.table(
            ["way", "what it wrote first"], [(w, self.text(i)) for i, w in enumerate(self.labels["way"])]
        )
        return (Section(self.title, (Plot(self.plot().update_layout(title=None)), texts), self.shows, self.caveat),)


def sampling_effects(
    model: HookedModel | Any,
    prompt: Prompt,
    ways: Sequence[Sampling] = WAYS,
    n: int = 8,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> SamplingEffects:
    """What the ways of sampling do to what is written after one prompt: `.entropy[way, sample, pos]`, `.by_sample()`.

    n: texts for each way. Every text has `max_new_tokens` tokens: an end-of-text token does not end it. seed: of the
    draws, which every way begins anew with.

    Raises:
        LabError: no way, text or token asked for, more tokens than fit into the context window, a model that does not
            write from left to right, and as `logit_lens`.
    """
    check_reads_onward(model)
    tokens = one_prompt(model, prompt)
    _check(model, tokens, ways, n, max_new_tokens)
    rows = repeat(tokens, "1 pos -> sample pos", sample=n)
    with torch.inference_mode():
        written = [_written(model, rows, max_new_tokens, way, seed) for way in ways]
    new, freedom, log_probs = (to_numpy(torch.stack(parts)) for parts in zip(*written, strict=True))
    settings = {"ways": [asdict(way) for way in ways], "n": n, "max_new_tokens": max_new_tokens}
    return SamplingEffects(
        new,
        token_texts(model, new),
        freedom,
        log_probs,
        np.stack([[[1 - distinct_share(text[None], size) for size in LENGTHS] for text in way] for way in new]),
        np.stack([[distinct_share(way, size) for size in LENGTHS] for way in new]),
        labels={"way": [str(way) for way in ways], "n": LENGTHS},
        provenance=provenance.of(model, prompts=tokens, seed=seed, settings=settings),
    )


def distinct_share(texts: Int[np.ndarray, "sample pos"], n: int) -> float:
    """Different n-grams in all texts together / n-grams; NaN where the texts are shorter."""
    grams = [tuple(row[i : i + n]) for row in texts.tolist() for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _written(
    model: Any, rows: Int[Tensor, "sample pos"], length: int, way: Sampling, seed: int
) -> tuple[Int[Tensor, "sample new"], Float[Tensor, "sample new"], Float[Tensor, "sample new"]]:
    """What is written after the rows, the entropy of what each token was drawn from, and its log probability.

    With a cache of keys and values where the model can resume; else everything is read again for each token.
    """
    source = torch.Generator(rows.device).manual_seed(seed)
    past = KeyValueCache() if isinstance(model, ResumableModel) else None
    unread, steps = rows, []
    for _ in range(length):
        logits = (model(rows) if past is None else model(unread, past_kv_cache=past))[:, -1]
        wide = logits.float() if logits.itemsize < 4 else logits
        drawn = next_token(wide, way.temperature, way.top_k, way.top_p, source)
        unread = rearrange(drawn, "sample -> sample 1")
        log_prob = wide.log_softmax(-1).gather(-1, unread)[:, 0]
        steps.append((drawn, entropy(distribution(wide, way.temperature, way.top_k, way.top_p)), log_prob))
        rows = torch.cat([rows, unread], 1)
    new, freedom, log_probs = (torch.stack(each, -1) for each in zip(*steps, strict=True))
    return new, freedom, log_probs


def _check(
    model: HookedModel | Any, tokens: Int[Tensor, "1 pos"], ways: Sequence[Sampling], n: int, length: int
) -> None:
    if not ways or n < 1 or length < 1:
        raise LabError(f"{len(ways)} ways, n={n}, max_new_tokens={length}; expected at least one of each.")
    cfg = model.cfg
    if model.W_U.shape[-1] > cfg.d_vocab:
        raise LabError(
            f"the model {cfg.model_name!r} has {model.W_U.shape[-1]} outputs for {cfg.d_vocab} tokens; expected a "
            "model that can read what it writes."
        )
    if tokens.shape[1] + length > cfg.n_ctx + 1:  # the last token is written but never read
        raise LabError(
            f"a prompt of {tokens.shape[1]} tokens and {length} new ones do not fit into the context window of "
            f"{cfg.n_ctx}; try max_new_tokens={cfg.n_ctx + 1 - tokens.shape[1]}."
        )
