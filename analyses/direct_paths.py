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

All of this is position by position. A *point* numbers the places where the stream can be read: 2l is the input of layer
l, 2l + 1 lies between its attention and its MLP, and 2 n_layers is the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import einsum, pack, rearrange, unpack
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.shares import norms_what_is_written
from interp.sites import Site

Deltas = Float[Tensor, "sender prompt pos d_model"]
WEIGHTS = {"q": "W_Q", "k": "W_K", "v": "W_V"}
BIASES = {"q": "b_Q", "k": "b_K", "v": "b_V"}


def written_at(cfg: Any, site: Site) -> int:
    """The first point at which the stream holds what a sender (z, mlp_out or embed) writes."""
    if site.layer is None:
        return 0
    middle = site.kind == "z" and not getattr(cfg, "parallel_attn_mlp", False)
    return 2 * site.layer + (1 if middle else 2)


def read_at(cfg: Any, site: Site) -> int:
    """The point at which a receiver (q, k, v or mlp_in) reads the stream."""
    assert site.layer is not None
    middle = site.kind == "mlp_in" and not getattr(cfg, "parallel_attn_mlp", False)
    return 2 * site.layer + int(middle)


def end(cfg: Any) -> int:
    """The point after the last layer."""
    return 2 * cfg.n_layers


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

    def stream(self, point: int) -> Float[Tensor, "prompt pos d_model"]:
        """The stream of the run that is patched."""
        return _wide(self.run[stream_name(self.model.cfg, point)])

    def written(self, senders: Sequence[Site]) -> Deltas:
        """By how much the other run's output of each sender differs. senders: heads of one layer, or one other."""
        name, heads = senders[0].hook_name, [site.head for site in senders]
        change = _wide(self.other[name]) - _wide(self.run[name])
        if senders[0].kind == "z":
            block = self.model.blocks[senders[0].layer]
            W_O, mixed = block.attn.W_O[heads].to(change), change[:, :, heads]
            delta = einsum(mixed, W_O, "prompt pos head d_head, head d_head model -> head prompt pos model")
            if norms_what_is_written(self.model):
                attn = _before_post_norm(block, self.run[name])
                delta = _change(lambda written: _normed(self.model, block.ln1_post, written), attn, delta)
        else:
            delta = rearrange(change, "prompt pos model -> 1 prompt pos model")
        return torch.where(self.chosen[..., None], delta, 0.0)

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


def check_closed_form(model: Any, tokens: Int[Tensor, "1 pos"], receivers: Iterable[Site], freeze_mlps: bool) -> None:
    """Hold the arithmetic above to the model's own run of one prompt.

    Raises:
        LabError: the model lacks a hook point or a weight, something lies between its parts that is not in the
            formulas, such as a factor on what attention writes, or hooks that edit are attached to it.
    """
    cfg = model.cfg
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
    sites = [Site(kind, layer) for layer in range(cfg.n_layers) for kind in kinds] + [Site(*read) for read in reads]
    if missing := [site.hook_name for site in sites if site.hook_name not in model.hook_dict]:
        raise LabError(f"path patching needs the hook points {', '.join(missing)}, which {cfg.model_name!r} lacks.")
    with torch.inference_mode():
        _, run = model.run_with_cache(tokens, names_filter=sorted({site.hook_name for site in sites}))
        for layer in range(cfg.n_layers):
            _check_layer(model, layer, [run[Site(kind, layer).hook_name] for kind in kinds])
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
