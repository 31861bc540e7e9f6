"""Which of a `TransformerBridge`'s hook points serve which of the lab's names, and the switches they need.

A name is served when its point fires in a run with the shape that the name's axes promise. Aliases that
carry something else (`hook_pos_embed` is the rotation's cosine in rotary models) and points that never fire
are thereby left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hook_point import HookPoint
from interp.sites import KINDS, Kind
from models.config import TransformerConfig

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint as BridgePoint
    from transformer_lens.model_bridge import TransformerBridge

_levels = itertools.count(-1, -1)  # one per attachment, so that it can be removed alone; TransformerLens counts up

# What TransformerLens computes only on request: the end of the hook name -> the bridge's switch.
SWITCHES = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}
EXCLUSIVE = {"use_split_qkv_input", "use_attn_in"}  # TransformerLens serves one of them in a run

_BATCH = 2  # of the run that finds out which points fire


def firing_points(inner: TransformerBridge, cfg: TransformerConfig) -> dict[str, BridgePoint]:
    """Hook name -> the bridge's point that serves it, in the order of the forward pass."""
    points = inner.hook_dict
    wanted = {name: kind for name, kind in _names(cfg.n_layers) if name in points}
    if cfg.n_kv_heads != cfg.n_heads:  # the bridge would give keys and values the first heads' streams
        wanted = {name: kind for name, kind in wanted.items() if not name.endswith("hook_attn_in")}
    n_pos = _positions(cfg)
    shapes = {name: _shape(kind, cfg, n_pos) for name, kind in wanted.items()}
    seen: set[str] = set()
    for switches in (set(SWITCHES.values()) - {"use_attn_in"}, {"use_attn_in"}):
        with switched_on(inner, {switch for switch in switches if _can_switch_on(inner, switch)}):
            seen |= _names_that_fire(inner, points, shapes, n_pos)
    middle = {"hook_resid_pre", "hook_attn_out"}  # what `hook_resid_mid` is served by
    for name in [name for name in seen if name.endswith("hook_resid_mid")]:
        if not {name.replace("hook_resid_mid", end) for end in middle} <= seen:
            seen.discard(name)
    return {name: points[name] for name in wanted if name in seen}


def needed_switches(names: list[str]) -> set[str]:
    """The switches without which the bridge would not compute some of these points."""
    return {switch for end, switch in SWITCHES.items() if any(name.endswith(end) for name in names)}


@contextmanager
def attached(point: BridgePoint, hook: Callable[..., Any]) -> Iterator[None]:
    """The bridge's point with this hook on it, and afterwards with what it had before."""
    level = next(_levels)
    point.add_hook(hook, level=level)
    try:
        yield
    finally:
        point.remove_hooks("fwd", level=level)


@contextmanager
def switched_on(inner: TransformerBridge, switches: set[str]) -> Iterator[None]:
    """The bridge with these switches on, and afterwards as it was."""
    before = {switch: bool(getattr(inner.cfg, switch, False)) for switch in switches}
    try:
        for switch in switches:
            getattr(inner, f"set_{switch}")(True)
        yield
    finally:
        for switch, was_on in before.items():
            getattr(inner, f"set_{switch}")(was_on)


def hand_over_to(point: HookPoint) -> Callable[..., Tensor | None]:
    """A hook for the bridge's point that gives the activation to the lab's."""

    def hand_over(tensor: Tensor, hook: Any) -> Tensor | None:
        returned = point(tensor)
        return None if returned is tensor else returned

    return hand_over


def hand_over_sum_to(point: HookPoint) -> tuple[Callable[..., None], Callable[..., Tensor | None]]:
    """Hooks for the start of a block and for its attention's output that give their sum to the lab's point.

    The wrapped block adds the MLP's output to a stream that it kept before the bridge's own `hook_resid_mid`,
    where an edit therefore reaches the MLP alone. Changed here, in what attention adds, it reaches both.
    """
    entering: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        entering[:] = [resid]

    def hand_over(attn_out: Tensor, hook: Any) -> Tensor | None:
        resid = entering.pop()
        middle = resid + attn_out
        returned = point(middle)
        return None if returned is middle else returned - resid

    return keep, hand_over


def layer_of(name: str) -> int | None:
    """The layer in a hook name, None outside the blocks."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def _names_that_fire(
    inner: TransformerBridge, points: dict[str, BridgePoint], shapes: dict[str, tuple[int, ...]], n_pos: int
) -> set[str]:
    seen: set[str] = set()

    def look_for(name: str) -> Callable[..., None]:
        def look(tensor: Any, hook: Any) -> None:
            if getattr(tensor, "shape", None) == shapes[name]:
                seen.add(name)

        return look

    with ExitStack() as cleanup, torch.no_grad():
        for name in shapes:
            cleanup.enter_context(attached(points[name], look_for(name)))
        inner(torch.zeros(_BATCH, n_pos, dtype=torch.long, device=inner.W_E.device))
    return seen


def _can_switch_on(inner: TransformerBridge, switch: str) -> bool:
    try:
        with switched_on(inner, {switch}):
            return True
    except NotImplementedError:  # TransformerLens's word for "not in this architecture"
        return False


def _names(n_layers: int) -> Iterator[tuple[str, Kind]]:
    """Every hook name of the table for a model of so many layers, in the order of the forward pass."""
    kinds = list(KINDS.values())
    in_blocks = [i for i, kind in enumerate(kinds) if kind.per_layer]
    first, last = in_blocks[0], in_blocks[-1] + 1
    yield from ((kind.template, kind) for kind in kinds[:first])
    for layer in range(n_layers):
        yield from ((kind.template.format(layer=layer), kind) for kind in kinds[first:last])
    yield from ((kind.template, kind) for kind in kinds[last:])


def _positions(cfg: TransformerConfig) -> int:
    """As many positions as no other axis is long, so that a point with its axes in another order is not taken."""
    return next(n for n in range(_BATCH + 1, _BATCH + 5) if n not in (cfg.n_heads, cfg.n_kv_heads, cfg.head_size))


def _shape(kind: Kind, cfg: TransformerConfig, n_pos: int) -> tuple[int, ...]:
    sizes = {"batch": _BATCH, "pos": n_pos, "q_pos": n_pos, "k_pos": n_pos, "one": 1}
    sizes |= {"head": cfg.n_heads, "kv_head": cfg.n_kv_heads, "d_head": cfg.head_size}
    sizes |= {"d_model": cfg.d_model, "d_mlp": cfg.mlp_size, "d_vocab": cfg.n_outputs}
    return tuple(sizes[axis] for axis in kind.axes)
