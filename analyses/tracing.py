"""Causal tracing: corrupt the subject of a prompt, restore the stream at one place, and see where the answer comes
back.

    effect(layer, pos) = [m(corrupted, h[layer, pos] <- clean) - m(corrupted)] / [m(clean) - m(corrupted)]

Meng et al. 2022 (arXiv:2202.05262, §2). Two ways to corrupt:

- replacement (the default): the subject's tokens are another subject's, those of the corrupted prompts. The model stays
  on text like that which it knows (Zhang & Nanda 2024, arXiv:2309.16042, §3).
- noise: Gaussian noise on the embeddings of the subject's tokens, as in the paper, three standard deviations of the
  prompts' embeddings wide. It takes the model off its distribution, and shows different places.

MLP and attention outputs are restored in a window of layers, as the paper does with ten: what one layer writes seldom
brings the answer back alone.

Cost: two forwards for the baselines, and for each place and prompt the part of a forward that follows; with noise, the
part that follows the subject, for each draw.
It does not show: that what is restored is used in the clean run; what matters only together with the subject's own
place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.attention_edges import Positions, marked
from analyses.labels import position_labels
from analyses.patching import cached_run, check_site, on_the_baselines_scale, run
from analyses.windows import layer_windows
from interp import metrics, provenance, sweep
from interp.contract import HookedModel
from interp.edits import Edit, add, replace
from interp.errors import LabError, choose
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy
from interp.sites import Site
from interp.style import SIGNED

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
NOISE = 3.0
"""Width of the noise in standard deviations of the prompts' embeddings (Meng et al. 2022, appendix B.1)."""


@dataclass(frozen=True, eq=False, repr=False)
class CausalTrace(Result):
    """How far the answer comes back, [layer pos]: 0 is the corrupted run, 1 the clean run when `normalized`.

    raw: the metric of every restored run; with noise, its mean over draws. clean, corrupted: that of the two baselines.
    subject: the positions that are corrupted in any prompt. corruption: "replacement" or "noise". noise: its standard
    deviation. window: how many layers are restored at once, around each.
    """

    title = "Causal tracing"
    caveat = "That a place can bring the answer back does not say that the model takes it from there."
    scale = SIGNED

    values: Float[np.ndarray, "layer pos"]
    raw: Float[np.ndarray, "layer pos prompt"]
    clean: Float[np.ndarray, "prompt"]
    corrupted: Float[np.ndarray, "prompt"]
    subject: tuple[int, ...]
    site: str
    metric: str
    corruption: str
    noise: float | None
    window: int
    normalized: bool

    @property
    def shows(self) -> str:  # type: ignore[override]
        how = "noise on" if self.corruption == "noise" else "other tokens for"
        where = "one layer" if self.window == 1 else f"{self.window} layers around each"
        return f"How far {self.site} of the clean run, at one position in {where}, undoes {how} the subject's tokens."

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "0 corrupted, 1 clean" if self.normalized else f"change of {self.metric}"


def causal_trace(
    model: HookedModel | Any,
    pairs: PromptPairs,
    site: str = "resid_post",
    window: int = 1,
    corruption: str = "replacement",
    subject: Positions | None = None,
    noise: float | None = None,
    draws: int = 8,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    normalize: bool = True,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
) -> CausalTrace:
    """Trace the answer through layers and positions: `.values[layer, pos]`; positions count in the padded batch.

    site: "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out". window: layers restored at once: layer l
    stands for those from l - window // 2 on. corruption: "replacement" takes the corrupted prompts of the pairs;
    "noise" adds noise to the clean prompts' embeddings at `subject` (positions, from the end when negative, or as a
    tensor each prompt's own), by default where clean and corrupted prompts differ. noise: its standard deviation, by
    default `NOISE` times that of the prompts' embeddings. draws: how often it is drawn. normalize: False gives the
    change of the metric. metric, budget, progress: as in `interp.sweep.run`; "kl" compares with the clean run. seed: of
    the noise.

    Raises:
        LabError: an unknown site or corruption, a subject or noise for a replacement, prompts without a subject,
            positions that the prompts do not have, noise that is not positive, prompts that the model cannot take, and
            as `sweep.run`.
    """
    choose("site", site, SITES)
    check_site(model, site)
    windows = layer_windows(model.cfg.n_layers, window)
    pairs.check(model)
    if metric != "kl":
        metric = metrics.get(metric)
    pairs = pairs.to(model.device)
    work = _prepare(model, pairs, corruption, subject, noise, draws, seed)
    measure = metrics.kl(run(model, work.clean), work.clean) if metric == "kl" else metrics.get(metric)
    names = [Site(site, layer).hook_name for layer in range(model.cfg.n_layers)]
    source, clean = sweep.observe(model, work.clean, names, measure)
    places = product(windows, range(pairs.clean.shape[1]))
    restored = [[*work.damage, *(replace(Site(site, layer, pos=pos), source) for layer in w)] for w, pos in places]
    found = sweep.run(model, work.runs, [work.damage, *restored], measure, budget, progress=progress)
    values = _over_draws(np.concatenate([to_numpy(clean.double())[None], found.values]), work.draws)
    settings = {"window": window, "subject": work.subject, "noise": work.noise, "draws": work.draws}
    effects, normalized = on_the_baselines_scale(values[2:].mean(-1), values[0], values[1], normalize, model.dtype)
    shape = (len(windows), pairs.clean.shape[1])
    return CausalTrace(
        (effects if normalized else effects - values[1].mean()).reshape(shape),
        values[2:].reshape(*shape, len(pairs)),
        values[0],
        values[1],
        work.subject,
        site,
        found.metric,
        corruption,
        work.noise,
        window,
        normalized,
        labels={"pos": position_labels(model, pairs)},
        provenance=provenance.of(
            model,
            prompts=pairs,
            metric=found.metric,
            site=site,
            direction="denoise",
            ablation=corruption,
            seed=None if work.noise is None else seed,
            settings=settings,
        ),
    )


@dataclass(frozen=True)
class _Work:
    """A corruption. clean: the prompts, each as often as noise is drawn for it; what is restored comes from there.

    runs: what the sweep runs. damage: the edits that every row has.
    """

    clean: PromptPairs
    runs: PromptPairs
    damage: list[Edit]
    subject: tuple[int, ...]
    noise: float | None
    draws: int


def _prepare(
    model: HookedModel | Any,
    pairs: PromptPairs,
    corruption: str,
    subject: Positions | None,
    noise: float | None,
    draws: int,
    seed: int,
) -> _Work:
    choose("corruption", corruption, ("replacement", "noise"))
    if corruption == "replacement" and (subject is not None or noise is not None):
        raise LabError("a replacement is where the corrupted prompts differ; subject= and noise= go with 'noise'.")
    differs = (pairs.clean != pairs.corrupted) & pairs.mask
    where = differs if subject is None else marked(pairs, "subject", subject) & pairs.mask
    without = (~where.any(1)).nonzero()
    if len(without):
        raise LabError(
            f"prompt {int(without[0])} has no subject: its clean and corrupted tokens are the same, or the positions "
            "given are padding; expected at least one token to corrupt."
        )
    positions = tuple(where.any(0).nonzero()[:, 0].tolist())
    if corruption == "replacement":
        return _Work(pairs, pairs.swapped(), [], positions, None, 1)
    if draws < 1 or (noise is not None and not 0 < noise < float("inf")):
        raise LabError(f"noise={noise}, draws={draws}; expected a positive standard deviation and at least one draw.")
    width = NOISE * _spread_of_embeddings(model, pairs) if noise is None else noise
    repeated = pairs.take(torch.arange(len(pairs), device=pairs.clean.device).repeat_interleave(draws))
    vectors = width * _drawn(where.repeat_interleave(draws, 0), model.cfg.d_model, seed)
    return _Work(repeated, repeated, [add(Site("embed"), vectors.to(model.dtype))], positions, width, draws)


def _spread_of_embeddings(model: HookedModel | Any, pairs: PromptPairs) -> float:
    """The standard deviation over all numbers in the embeddings of the clean prompts' tokens."""
    _, cache = cached_run(model, pairs, ["hook_embed"])
    return float(cache["hook_embed"][pairs.mask].float().std())


def _drawn(where: Bool[Tensor, "batch pos"], d_model: int, seed: int) -> Float[Tensor, "batch pos d_model"]:
    """Standard normal vectors at the marked positions, zero elsewhere; drawn on the CPU, so alike on every device."""
    noise = torch.randn(*where.shape, d_model, generator=torch.Generator().manual_seed(seed))
    return noise.to(where.device) * rearrange(where, "batch pos -> batch pos 1")


def _over_draws(values: Float[np.ndarray, "row run"], draws: int) -> Float[np.ndarray, "row prompt"]:
    return rearrange(values, "row (prompt draw) -> row prompt draw", draw=draws).mean(-1)
