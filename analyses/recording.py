"""A run that keeps its graph: activations at hook points, and the metric's gradient there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.contract import HookedModel, NamedHook
from interp.errors import LabError
from interp.kv_cache import KeyValueCache, LayerCache
from interp.markers import pure, reads_only
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sites import Site
from interp.sweep.base import can_resume, pick, read_logits, resume_names, scored


@dataclass(frozen=True)
class Past:
    """The positions before `start`, for runs that do not change them: keys and values of every layer, of all positions.

    As the sweep's rows, such runs resume after them.
    """

    start: int
    keys_and_values: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: Any, start: int, values: Mapping[str, Tensor]) -> Past:
        """values: of a run, by hook name, with those of `past_names`."""
        names = [resume_names(model, layer)[1:] for layer in range(model.cfg.n_layers)]
        return cls(start, tuple((values[k], values[v]) for k, v in names))

    def cache(self, pairs: PromptPairs) -> KeyValueCache:
        """To be read, not added to."""
        cache = KeyValueCache(mask=pairs.mask[:, : self.start])
        cache.unpadded = not pairs.padded
        for layer, (k, v) in enumerate(self.keys_and_values):
            cache.layers[layer] = LayerCache(k[:, : self.start], v[:, : self.start])
        cache.freeze()
        return cache


def past_names(model: Any) -> list[str]:
    """The hook points of what a `Past` is made of."""
    return [name for layer in range(model.cfg.n_layers) for name in resume_names(model, layer)[1:]]


@dataclass(frozen=True)
class Recording:
    """One run of the clean prompts. logits: those that the metric reads, or all. scores: the metric. values: what
    passed the hook points, by name, from position `start` on.

    Parameters need no gradient for this, and get none.
    """

    logits: Float[Tensor, "batch n token"]
    scores: Float[Tensor, "batch"]
    values: dict[str, Tensor]
    dropped: set[int] = field(default_factory=set)
    start: int = 0

    def gradients(self, names: Sequence[str], dropped: int | None = None) -> dict[str, Tensor]:
        """dm/da at each of these hook points; each prompt has its own, since no prompt's metric reads another.

        dropped: a layer whose attention and MLP pass no gradient on, so that only the residual stream does.
        """
        self.dropped.clear()
        if dropped is not None:
            self.dropped.add(dropped)
        return dict(zip(names, self._backward([self.values[name] for name in names]), strict=True))

    def logit_gradient(self) -> Float[Tensor, "batch n token"]:
        """dm/dlogits."""
        return self._backward([self.logits])[0]

    def _backward(self, points: list[Tensor]) -> tuple[Tensor, ...]:
        ones = torch.ones_like(self.scores)
        return torch.autograd.grad(self.scores, points, ones, retain_graph=True, materialize_grads=True)


@torch.enable_grad()
def record(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: AnyMetric,
    names: Sequence[str],
    droppable: bool = False,
    edits: Sequence[NamedHook] = (),
    past: Past | None = None,
) -> Recording:
    """Run the clean prompts and keep the graph. droppable: prepare for gradients with a layer dropped. edits: hooks
    that are made before the activations are kept. past: run the positions after it alone.

    Raises:
        LabError: the model or the metric gives no gradient.
    """
    values: dict[str, Tensor] = {}
    dropped: set[int] = set()  # not the recording itself: a graph that held it would never be freed
    hooks: list[NamedHook] = [*edits, *((name, _keep(values)) for name in names)]
    if droppable:
        hooks += _drops(model, dropped)
    logits, scores = _run(model, pairs, metric, hooks, past)
    if not scores.requires_grad:
        raise LabError(f"the metric {metric.name!r} has no gradient; try 'logit_diff' or 'log_prob'.")
    return Recording(logits, scores, values, dropped, 0 if past is None else past.start)


def observed(
    model: HookedModel | Any, pairs: PromptPairs, metric: AnyMetric, names: Sequence[str]
) -> tuple[Float[Tensor, "batch n token"], Float[Tensor, "batch"], dict[str, Tensor]]:
    """As the fields of a recording, without a graph: logits, scores and values."""
    values: dict[str, Tensor] = {}

    @reads_only
    def keep(activation: Tensor, hook: Any) -> None:
        values[hook.name] = activation

    with torch.inference_mode():
        logits, scores = _run(model, pairs, metric, [(name, keep) for name in names])
    return logits, scores, values


def _run(
    model: Any, pairs: PromptPairs, metric: AnyMetric, hooks: Sequence[NamedHook], past: Past | None = None
) -> tuple[Float[Tensor, "batch n token"], Float[Tensor, "batch"]]:
    """The logits that the metric reads (all, of a model that cannot stop before them) and the metric."""
    start = 0 if past is None else past.start
    tokens, mask, resumes = pairs.clean[:, start:], pairs.mask[:, start:] if pairs.padded else None, can_resume(model)
    with model.hooks(hooks):
        if not resumes:
            logits = _with_graph(model, model(tokens, attention_mask=mask))
            return logits, metric(logits, pairs)
        resume = {} if past is None else {"past_kv_cache": past.cache(pairs)}
        final = _with_graph(model, model(tokens, attention_mask=mask, stop_at_layer=model.cfg.n_layers, **resume))
        positions = metric.positions(pairs)
        logits = read_logits(model, final if positions is None else pick(final, positions - start), pairs, metric)
    return logits, scored(logits, pairs, metric)


def _with_graph(model: HookedModel | Any, computed: Tensor) -> Tensor:
    """What the model computed, which has a graph where one is wanted.

    Raises:
        LabError: it has none.
    """
    if torch.is_grad_enabled() and not computed.requires_grad:
        raise LabError(
            f"{type(model).__name__} {model.cfg.model_name!r} gives logits without a gradient: its forward detaches "
            "them. Gradient methods need one that does not; activation_patching works without."
        )
    return computed


def _keep(values: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A hook that keeps the tensor that everything downstream is computed from."""

    @pure
    def hook(activation: Tensor, hook: Any) -> Tensor:
        seen = activation.view_as(activation) if activation.requires_grad else activation.detach().requires_grad_()
        values[hook.name] = seen
        return seen

    return hook


def _drops(model: HookedModel | Any, dropped: set[int]) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks on what each layer adds to the stream, which hold its gradient back while the layer is in `dropped`."""
    sites = [Site(kind, layer) for layer in range(model.cfg.n_layers) for kind in ("attn_out", "mlp_out")]
    return [(site.hook_name, _drop(site.layer, dropped)) for site in sites if site.hook_name in model.hook_dict]


def _drop(layer: int | None, dropped: set[int]) -> Callable[..., Tensor | None]:
    @pure
    def hook(activation: Tensor, hook: Any) -> Tensor | None:
        if not activation.requires_grad:
            return None
        passed = activation.view_as(activation)
        passed.register_hook(lambda gradient: torch.zeros_like(gradient) if layer in dropped else gradient)
        return passed

    return hook
