"""What flows from a component along the residual stream straight into another's input, in closed form.

The stream is a sum, so when a component's output changes by δ, every later one reads δ more, as long as all that lies
between stays as it was (Elhage et al. 2021; Wang et al. 2022, arXiv:2211.00593, §3.1):

    head h                        δ = (z' - z) W_O[h]
    MLP, embedding                δ = its other output - its own
    query (key and value alike)   changes by (ln1(stream + δ) - ln1(stream)) W_Q

MLPs in between that are not frozen pass it on, the lowest first:

    δ <- δ + mlp(ln2(stream + δ)) - mlp(ln2(stream))

Where a norm comes after attention (Gemma 2, OLMo 2), a head's change d = (z' - z) W_O[h] goes through it, all other
heads as they were: δ = ln1_post(attn + d) - ln1_post(attn), attn being what all heads and b_O add up to; `mlp` above
then stands for ln2_post(mlp(·)).

The change of a neuron, d = (post' - post) W_out[n], goes through `ln2_post` in the same way. All of this is position by
position; points of the stream are numbered as in `interp.stream_points`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from einops import einsum, pack, rearrange, reduce, unpack
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.shares import check_stream_is_a_sum, norms_what_is_written
from interp.sites import Site
from interp.stream_points import read_at, written_at

Deltas = Float[Tensor, "sender prompt pos d_model"]
WEIGHTS = {"q": "W_Q", "k": "W_K", "v": "W_V"}
BIASES = {"q": "b_Q", "k": "b_K", "v": "b_V"}


def stream_name(cfg: Any, point: int) -> str:
    """The hook name of the stream at a point."""
    layer, middle = divmod(point, 2)
    if layer == cfg.n_layers:
        return Site("resid_post", layer - 1).hook_name
    return Site("resid_mid" if middle else "resid_pre", layer).hook_name


def mlp_points(cfg: Any) -> list[tuple[int, int, int]]:
    """Of each MLP: its layer, the point where it reads and the first that holds what it writes."""
    layers = [] if cfg.attn_only else range(cfg.n_layers)
    return [(n, read_at(cfg, Site("mlp_in", n)), written_at(cfg, Site("mlp_out", n))) for n in layers]


@dataclass(frozen=True)
class DirectPaths:
    """Closed-form direct paths of one run.

    run: activations of the run that is patched, by hook name. other: the senders' in the run that is patched from.
    chosen: where senders take the other run's output. freeze_mlps: whether the MLPs in between keep their outputs.
    Computed in float32 at least; the MLPs run in the model's dtype.
    """

    model: Any
    run: Mapping[str, Tensor]
    other: Mapping[str, Tensor]
    chosen: Bool[Tensor, "prompt pos"]
    freeze_mlps: bool

    def at(self, index: Int[Tensor, "prompt n"]) -> DirectPaths:
        """The same at some positions of each prompt alone."""
        rows = rearrange(torch.arange(len(index), device=index.device), "prompt -> prompt 1")
        run, other = ({name: kept[rows, index] for name, kept in cache.items()} for cache in (self.run, self.other))
        return replace(self, run=run, other=other, chosen=self.chosen[rows, index])

    def part(self, prompts: slice, positions: slice) -> DirectPaths:
        """The same of some prompts, at some positions."""
        run, other = (
            {name: kept[prompts, positions] for name, kept in cache.items()} for cache in (self.run, self.other)
        )
        return replace(self, run=run, other=other, chosen=self.chosen[prompts, positions])

    @cached_property
    def moving(self) -> slice:
        """The positions from the first to the last at which any sender's output differs, in any prompt."""
        differ = [reduce(other != self.run[name], "prompt pos ... -> pos", "any") for name, other in self.other.items()]
        moved = torch.stack(differ).any(0).nonzero()
        return slice(int(moved[0]), int(moved[-1]) + 1) if len(moved) else slice(0, 0)

    def stream(self, point: int) -> Float[Tensor, "prompt pos d_model"]:
        """The stream of the run that is patched."""
        return _wide(self.run[stream_name(self.model.cfg, point)])

    def written(self, senders: Sequence[Site]) -> Deltas:
        """By how much the other run's output of each sender differs. senders: heads or neurons of one layer, or one
        other."""
        return self.through_post_norm(senders[0], self.computed(senders))

    def computed(self, senders: Sequence[Site]) -> Deltas:
        """The same before the norm that what heads or neurons write goes through, where there is one."""
        first = senders[0]
        change = _wide(self.other[first.hook_name]) - _wide(self.run[first.hook_name])
        if first.kind == "z":
            heads, attn = [site.head for site in senders], self.model.blocks[first.layer].attn
            weight, some = attn.W_O[heads].to(change), change[:, :, heads]
            delta = einsum(some, weight, "prompt pos head d_head, head d_head model -> head prompt pos model")
        elif first.kind == "mlp_post":
            neurons, mlp = [site.neuron for site in senders], self.model.blocks[first.layer].mlp
            weight, some = mlp.W_out[neurons].to(change), change[:, :, neurons]
            delta = einsum(some, weight, "prompt pos mlp, mlp model -> mlp prompt pos model")
        else:
            delta = rearrange(change, "prompt pos model -> 1 prompt pos model")
        return torch.where(self.chosen[..., None], delta, 0.0)

    def through_post_norm(self, sender: Site, delta: Deltas) -> Deltas:
        """What is left of a change to a head's or neuron's layer after the norm on what the whole of it writes, where
        there is one; each of the deltas alone, all else as it was."""
        if sender.kind not in ("z", "mlp_post") or not norms_what_is_written(self.model):
            return delta
        block, activation = self.model.blocks[sender.layer], self.run[sender.hook_name]
        if sender.kind == "z":
            whole, norm = _before_post_norm(block, activation), block.ln1_post
        else:
            whole, norm = _by_neurons(block, activation), block.ln2_post
        return _change(lambda written: _normed(self.model, norm, written), whole, delta)

    def arriving(self, delta: Deltas, start: int, points: Iterable[int]) -> Iterator[tuple[int, Deltas]]:
        """(point, δ there) for each of the points, in order, that is not before `start`, where δ was written."""
        for point in sorted(point for point in points if point >= start):
            delta = delta if self.freeze_mlps else self._through_mlps(delta, start, point)
            start = point
            yield point, delta

    def read(self, kind: str, layer: int, delta: Deltas) -> Float[Tensor, "sender prompt pos *width"]:
        """By how much an activation (q, k, v or mlp_in) changes when the stream that it reads changes by δ."""
        if kind == "mlp_in":
            return delta
        block = self.model.blocks[layer]
        normed = _change(lambda stream: _normed(self.model, block.ln1, stream), self.stream(2 * layer), delta)
        weight = getattr(block.attn, WEIGHTS[kind]).to(normed)
        return einsum(normed, weight, "sender prompt pos model, head model d_head -> sender prompt pos head d_head")

    def _through_mlps(self, delta: Deltas, start: int, stop: int) -> Deltas:
        for layer, reads, writes in mlp_points(self.model.cfg):
            if start <= reads and writes <= stop:
                delta = delta + _change(self._mlp(layer), self.stream(reads), delta)
        return delta

    def _mlp(self, layer: int) -> Callable[[Tensor], Tensor]:
        block = self.model.blocks[layer]

        def mlp(stream: Tensor) -> Tensor:
            normed = _normed(self.model, block.ln2, stream).to(self.model.dtype)
            batch, sizes = pack([normed], "* pos model")
            written = unpack(block.mlp(batch), sizes, "* pos model")[0].to(stream)
            return _normed(self.model, block.ln2_post, written) if norms_what_is_written(self.model) else written

        return mlp


def check_closed_form(
    model: Any, tokens: Int[Tensor, "1 pos"], senders: Iterable[Site], receivers: Iterable[Site], freeze_mlps: bool
) -> None:
    """Hold the arithmetic above to the model's own run of one prompt.

    Raises:
        LabError: the model lacks a hook point or a weight, something lies between its parts that is not in the
            formulas, such as a factor on what attention writes or norms on the stream, or hooks that edit are attached
            to it.
    """
    cfg = model.cfg
    check_stream_is_a_sum(model)
    editing = [name for name, point in model.hook_dict.items() if point.has_hooks() and not point.is_only_read()]
    if editing:
        raise LabError(
            f"hooks are attached to {', '.join(editing[:3])}, and direct paths are computed from the weights, which do "
            "not know them; leave the hooks, then patch paths."
        )
    if not freeze_mlps and not cfg.attn_only and not callable(model.blocks[0].mlp):
        raise LabError(
            f"freeze_mlps=False runs the MLPs by themselves, which {type(model).__name__} cannot; use "
            "freeze_mlps=True, or load the model with backend='native'."
        )
    kinds = ["resid_pre", "z", "attn_out", *([] if cfg.attn_only else ["mlp_out"]), "resid_post"]
    reads = {(site.kind, site.layer) for site in receivers if site.kind in WEIGHTS and site.layer is not None}
    neurons = {site.layer for site in senders if site.kind == "mlp_post"}
    sites = [Site(kind, layer) for layer in range(cfg.n_layers) for kind in kinds] + [Site(*read) for read in reads]
    sites += [Site("mlp_post", layer) for layer in neurons]
    if missing := [site.hook_name for site in sites if site.hook_name not in model.hook_dict]:
        raise LabError(f"path patching needs the hook points {', '.join(missing)}, which {cfg.model_name!r} lacks.")
    with torch.inference_mode():
        _, run = model.run_with_cache(tokens, names_filter=sorted({site.hook_name for site in sites}))
        for layer in range(cfg.n_layers):
            _check_layer(model, layer, [run[Site(kind, layer).hook_name] for kind in kinds])
        for place in neurons:
            _check_neurons(model, place, *(run[Site(kind, place).hook_name] for kind in ("mlp_post", "mlp_out")))
        for kind, layer in sorted(reads):
            stream = run[Site("resid_pre", layer).hook_name]
            _check_read(model, kind, layer, stream, run[Site(kind, layer).hook_name])


def _check_layer(model: Any, layer: int, values: Sequence[Tensor]) -> None:
    pre, z, *written, post = map(_wide, values)
    heads = _before_post_norm(model.blocks[layer], z)
    if norms_what_is_written(model):
        heads = _normed(model, model.blocks[layer].ln1_post, heads)
    _check_close(model, heads, written[0], f"what the heads of layer {layer} write does not add up to attn_out")
    _check_close(model, sum(written, pre), post, f"the stream after layer {layer} is not the sum of what was written")


def _check_read(model: Any, kind: str, layer: int, stream: Tensor, expected: Tensor) -> None:
    block = model.blocks[layer]
    weight, bias = (_wide(getattr(block.attn, names[kind])) for names in (WEIGHTS, BIASES))
    normed = _normed(model, block.ln1, _wide(stream))
    found = einsum(normed, weight, "b pos model, head model d_head -> b pos head d_head") + bias
    _check_close(model, found, expected, f"the {kind} of layer {layer} is not W ln1(stream) + b")


def _check_neurons(model: Any, layer: int | None, post: Tensor, written: Tensor) -> None:
    block = model.blocks[layer]
    found = _by_neurons(block, post)
    if norms_what_is_written(model):
        found = _normed(model, block.ln2_post, found)
    _check_close(model, found, _wide(written), f"what the neurons of layer {layer} write does not add up to mlp_out")


def _by_neurons(block: Any, post: Float[Tensor, "prompt pos d_mlp"]) -> Float[Tensor, "prompt pos d_model"]:
    """What the neurons and b_out add up to."""
    mlp, post = block.mlp, _wide(post)
    return post @ mlp.W_out.to(post) + mlp.b_out.to(post)


def _before_post_norm(block: Any, z: Float[Tensor, "prompt pos head d_head"]) -> Float[Tensor, "prompt pos d_model"]:
    """What the heads and b_O add up to."""
    attn, z = block.attn, _wide(z)
    return einsum(z, attn.W_O.to(z), "b pos head d_head, head d_head model -> b pos model") + attn.b_O.to(z)


def _check_close(model: Any, found: Tensor, expected: Tensor, problem: str) -> None:
    tolerance = torch.finfo(model.dtype).eps ** 0.5  # far above rounding, far below any rescaling worth the name
    if float((found - expected).abs().max()) > tolerance * float(expected.abs().max()):
        raise LabError(
            f"path patching computes direct paths from the weights, but in {model.cfg.model_name!r} {problem}; use "
            "activation_patching, which takes any model."
        )


def _change(fn: Callable[[Tensor], Tensor], stream: Float[Tensor, "prompt pos d_model"], delta: Deltas) -> Deltas:
    """fn(stream + δ) - fn(stream), and exactly zero where δ is, which rounding in batches would not give."""
    moved = delta.ne(0).any(-1, keepdim=True)
    return torch.where(moved, fn(stream + delta) - fn(stream), 0.0)


def _normed(model: Any, norm: Any, stream: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
    """The norm's output; by the lab's own norms in float32 at least, by others in the model's dtype."""
    if norm is None:
        return stream
    own = getattr(norm, "unhooked", None)
    return own(stream) if own else norm(stream.to(model.dtype)).to(stream)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
