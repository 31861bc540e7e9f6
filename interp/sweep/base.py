"""The base run: the unedited run that every row of a sweep starts from, and reads the past of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.contract import HookedModel, ResumableModel
from interp.edits import Window
from interp.kv_cache import KeyValueCache, LayerCache
from interp.metrics import AnyMetric, CustomMetric
from interp.prompts import PromptPairs
from interp.sites import Site


@dataclass(frozen=True)
class BaseRun:
    """The run of `pairs.clean`: the stream at the input of every layer, keys and values, and the edited activations.

    tensors: by hook name. final: the stream after the last block [prompt pos d_model]. first: the sweep's number of the
    first of the prompts. padded: whether any prompt is.
    """

    model: ResumableModel
    pairs: PromptPairs
    tensors: dict[str, Tensor]
    final: Float[Tensor, "prompt pos d_model"]
    first: int
    padded: bool

    @classmethod
    def of(cls, model: ResumableModel, pairs: PromptPairs, names: Iterable[str], first: int = 0) -> BaseRun:
        """Run once and keep the activations called `names`, beside what resuming needs."""
        n_layers, edited, padded = model.cfg.n_layers, set(names), pairs.padded
        last = {name for name in edited if name.startswith(("ln_final.", "unembed."))}
        needed = {name for layer in range(n_layers) for name in resume_names(model, layer)}
        final, kept = model.run_with_cache(
            pairs.clean,
            attention_mask=pairs.mask if padded else None,
            names_filter=sorted(needed | edited - last),
            stop_at_layer=n_layers,
            return_cache_object=False,
        )
        if last:
            _, beyond = model.run_with_cache(
                final, start_at_layer=n_layers, names_filter=sorted(last), return_cache_object=False
            )
            kept |= beyond
        return cls(model, pairs, kept, final, first, padded)

    def window(self, prompts: slice | None = None, start: int = 0) -> Window:
        """Some of these prompts (None: all), from a position on, by the sweep's numbers."""
        prompts = slice(0, len(self.pairs)) if prompts is None else prompts
        return Window(slice(prompts.start + self.first, prompts.stop + self.first), start)

    def stream(self, layer: int) -> Float[Tensor, "prompt pos d_model"]:
        """The residual stream at the input of a layer; after the last one, the final stream."""
        return self.final if layer == self.model.cfg.n_layers else self.tensors[Site("resid_pre", layer).hook_name]

    def before(self, start: int, prompts: Int[Tensor, "item"], layer: int | None = None) -> KeyValueCache | None:
        """The positions before `start`, with a layer's keys and values there, to resume from; None before the first."""
        if start == 0:
            return None
        past = KeyValueCache(mask=self.pairs.mask[prompts, :start])
        past.unpadded = not self.padded
        if layer is not None:
            k, v = (self.tensors[name][:, :start] for name in resume_names(self.model, layer)[1:])
            past.layers[layer] = LayerCache(k[prompts], v[prompts])
        return past

    def mask(self, start: int, prompts: Int[Tensor, "item"]) -> Tensor | None:
        """Which of the positions from `start` on are real; None when all are."""
        return self.pairs.mask[prompts, start:] if self.padded else None


def resume_names(model: ResumableModel, layer: int) -> tuple[str, str, str]:
    """The hook names of a layer's input, of its keys as they are cached, and of its values."""
    rotated = Site("rot_k", layer).hook_name
    keys = rotated if rotated in model.hook_dict else Site("k", layer).hook_name
    return Site("resid_pre", layer).hook_name, keys, Site("v", layer).hook_name


def measure(
    model: ResumableModel, picked: Float[Tensor, "item n d_model"], pairs: PromptPairs, metric: AnyMetric
) -> Float[Tensor, "item"]:
    """The metric of final streams at the positions that it reads (all of them, for one that reads any)."""
    return scored(read_logits(model, picked, pairs, metric), pairs, metric)


def read_logits(
    model: ResumableModel, picked: Float[Tensor, "item n d_model"], pairs: PromptPairs, metric: AnyMetric
) -> Float[Tensor, "item n token"]:
    """The logits that the metric reads of final streams at the positions that it reads."""
    tokens = metric.tokens(pairs)
    return model.logits_at(picked, None if tokens is None else tokens.clamp(min=0))


def scored(logits: Float[Tensor, "item n token"], pairs: PromptPairs, metric: AnyMetric) -> Float[Tensor, "item"]:
    """The metric, from the logits that it reads."""
    if isinstance(metric, CustomMetric):
        return metric(logits, pairs)
    logits = logits.float() if logits.itemsize < 4 else logits
    return metric.score(rearrange(logits, "item pos token -> item (pos token)"), pairs)


def pick(stream: Float[Tensor, "item pos d_model"], index: Int[Tensor, "item n"]) -> Float[Tensor, "item n d_model"]:
    """Each item's entries at its own positions."""
    rows = torch.arange(len(stream), device=stream.device)
    return stream[rearrange(rows, "item -> item 1"), index]


def baseline(base: BaseRun, metric: AnyMetric) -> Float[Tensor, "prompt"]:
    """The metric of the base run."""
    return _measured(base.model, base.final, base.pairs, metric)


def observe(
    model: HookedModel | Any, pairs: PromptPairs, names: Iterable[str], metric: AnyMetric
) -> tuple[Mapping[str, Tensor], Float[Tensor, "prompt"]]:
    """An unedited run of `pairs.clean`: the activations called `names` (of blocks and embeddings), and the metric.

    A model that can resume unembeds only what the metric reads.
    """
    mask = pairs.mask if pairs.padded else None
    settings = {"attention_mask": mask, "names_filter": list(names)}
    with torch.inference_mode():
        if not can_resume(model):
            logits, cache = model.run_with_cache(pairs.clean, **settings)
            return cache, metric(logits, pairs)
        final, cache = model.run_with_cache(pairs.clean, stop_at_layer=model.cfg.n_layers, **settings)
        return cache, _measured(model, final, pairs, metric)


def can_resume(model: HookedModel | Any) -> bool:
    """Whether runs can be resumed: the model knows how, and no hook is attached that may expect whole runs."""
    return isinstance(model, ResumableModel) and not any(point.has_hooks() for point in model.hook_dict.values())


def _measured(
    model: ResumableModel | Any, final: Float[Tensor, "prompt pos d_model"], pairs: PromptPairs, metric: AnyMetric
) -> Float[Tensor, "prompt"]:
    positions = metric.positions(pairs)
    return measure(model, final if positions is None else pick(final, positions), pairs, metric)
