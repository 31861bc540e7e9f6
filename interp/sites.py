"""Where an activation lives: `Site(kind, layer, head, pos)` <-> hook name, axes and index.

`KINDS` is the one table of the lab's activations: what each is called, on which hook point it appears and
which axes it has. Names and shapes are those of TransformerLens's HookedTransformer.

Axes: `batch pos head kv_head d_model d_head d_mlp d_vocab q_pos k_pos` and `one` (an axis of size 1); of recurrent
models, whose states live in no block, also `d_hidden`; of cross-attention `target_pos` and `source_pos`.
`kv_head` counts the key/value heads, fewer than `head` when queries share them (grouped-query attention).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

from interp.errors import LabError, choose

Index = tuple[slice | int, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of activation: the template of its hook name and its axes."""

    template: str
    axes: tuple[str, ...]

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.template


def _kind(template: str, axes: str) -> Kind:
    return Kind(template, tuple(axes.split()))


KINDS: MappingProxyType[str, Kind] = MappingProxyType(
    {
        "embed": _kind("hook_embed", "batch pos d_model"),
        "pos_embed": _kind("hook_pos_embed", "batch pos d_model"),
        "token_type_embed": _kind("hook_token_type_embed", "batch pos d_model"),
        "embed_ln.scale": _kind("embed_ln.hook_scale", "batch pos one"),
        "embed_ln.normalized": _kind("embed_ln.hook_normalized", "batch pos d_model"),
        "full_embed": _kind("hook_full_embed", "batch pos d_model"),
        "resid_pre": _kind("blocks.{layer}.hook_resid_pre", "batch pos d_model"),
        "attn_in": _kind("blocks.{layer}.hook_attn_in", "batch pos head d_model"),
        "q_input": _kind("blocks.{layer}.hook_q_input", "batch pos head d_model"),
        "k_input": _kind("blocks.{layer}.hook_k_input", "batch pos kv_head d_model"),
        "v_input": _kind("blocks.{layer}.hook_v_input", "batch pos kv_head d_model"),
        "ln1.scale": _kind("blocks.{layer}.ln1.hook_scale", "batch pos one"),
        "ln1.normalized": _kind("blocks.{layer}.ln1.hook_normalized", "batch pos d_model"),
        "q": _kind("blocks.{layer}.attn.hook_q", "batch pos head d_head"),
        "k": _kind("blocks.{layer}.attn.hook_k", "batch pos kv_head d_head"),
        "v": _kind("blocks.{layer}.attn.hook_v", "batch pos kv_head d_head"),
        "rot_q": _kind("blocks.{layer}.attn.hook_rot_q", "batch pos head d_head"),
        "rot_k": _kind("blocks.{layer}.attn.hook_rot_k", "batch pos kv_head d_head"),
        "q_norm.scale": _kind("blocks.{layer}.attn.q_norm.hook_scale", "batch pos head one"),
        "q_norm.normalized": _kind("blocks.{layer}.attn.q_norm.hook_normalized", "batch pos head d_head"),
        "k_norm.scale": _kind("blocks.{layer}.attn.k_norm.hook_scale", "batch pos kv_head one"),
        "k_norm.normalized": _kind("blocks.{layer}.attn.k_norm.hook_normalized", "batch pos kv_head d_head"),
        "attn_scores": _kind("blocks.{layer}.attn.hook_attn_scores", "batch head q_pos k_pos"),
        "pattern": _kind("blocks.{layer}.attn.hook_pattern", "batch head q_pos k_pos"),
        "z": _kind("blocks.{layer}.attn.hook_z", "batch pos head d_head"),
        "result": _kind("blocks.{layer}.attn.hook_result", "batch pos head d_model"),
        "ln1_post.scale": _kind("blocks.{layer}.ln1_post.hook_scale", "batch pos one"),
        "ln1_post.normalized": _kind("blocks.{layer}.ln1_post.hook_normalized", "batch pos d_model"),
        "attn_out": _kind("blocks.{layer}.hook_attn_out", "batch pos d_model"),
        "resid_mid": _kind("blocks.{layer}.hook_resid_mid", "batch pos d_model"),
        "mlp_in": _kind("blocks.{layer}.hook_mlp_in", "batch pos d_model"),
        "ln2.scale": _kind("blocks.{layer}.ln2.hook_scale", "batch pos one"),
        "ln2.normalized": _kind("blocks.{layer}.ln2.hook_normalized", "batch pos d_model"),
        "mlp_pre": _kind("blocks.{layer}.mlp.hook_pre", "batch pos d_mlp"),
        "mlp_pre_linear": _kind("blocks.{layer}.mlp.hook_pre_linear", "batch pos d_mlp"),
        "mlp_post": _kind("blocks.{layer}.mlp.hook_post", "batch pos d_mlp"),
        "ln2_post.scale": _kind("blocks.{layer}.ln2_post.hook_scale", "batch pos one"),
        "ln2_post.normalized": _kind("blocks.{layer}.ln2_post.hook_normalized", "batch pos d_model"),
        "mlp_out": _kind("blocks.{layer}.hook_mlp_out", "batch pos d_model"),
        "resid_post": _kind("blocks.{layer}.hook_resid_post", "batch pos d_model"),
        "normalized_resid_post": _kind("blocks.{layer}.hook_normalized_resid_post", "batch pos d_model"),
        "cross_q": _kind("blocks.{layer}.cross_attn.hook_q", "batch target_pos head d_head"),
        "cross_k": _kind("blocks.{layer}.cross_attn.hook_k", "batch source_pos kv_head d_head"),
        "cross_v": _kind("blocks.{layer}.cross_attn.hook_v", "batch source_pos kv_head d_head"),
        "cross_attn_scores": _kind("blocks.{layer}.cross_attn.hook_attn_scores", "batch head target_pos source_pos"),
        "cross_pattern": _kind("blocks.{layer}.cross_attn.hook_pattern", "batch head target_pos source_pos"),
        "cross_z": _kind("blocks.{layer}.cross_attn.hook_z", "batch target_pos head d_head"),
        "cross_result": _kind("blocks.{layer}.cross_attn.hook_result", "batch target_pos head d_model"),
        "cross_attn_out": _kind("blocks.{layer}.hook_cross_attn_out", "batch target_pos d_model"),
        "ln_final.scale": _kind("ln_final.hook_scale", "batch pos one"),
        "ln_final.normalized": _kind("ln_final.hook_normalized", "batch pos d_model"),
        "unembed.in": _kind("unembed.hook_in", "batch pos d_model"),
        "unembed.out": _kind("unembed.hook_out", "batch pos d_vocab"),
        "encoder.embed": _kind("encoder.hook_embed", "batch pos d_model"),
        "encoder.hidden": _kind("encoder.hook_hidden", "batch pos d_hidden"),
        "encoder.cell": _kind("encoder.hook_cell", "batch pos d_hidden"),
        "decoder.embed": _kind("decoder.hook_embed", "batch target_pos d_model"),
        "decoder.hidden": _kind("decoder.hook_hidden", "batch target_pos d_hidden"),
        "decoder.cell": _kind("decoder.hook_cell", "batch target_pos d_hidden"),
        "decoder.attn_scores": _kind("decoder.hook_attn_scores", "batch target_pos source_pos"),
        "decoder.pattern": _kind("decoder.hook_pattern", "batch target_pos source_pos"),
        "decoder.context": _kind("decoder.hook_context", "batch target_pos d_hidden"),
    }
)

# The short names that code written for HookedTransformer uses for the same activations.
_HABITS = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "pre": "mlp_pre",
    "post": "mlp_post",
    "pre_linear": "mlp_pre_linear",
    "scale": "ln_final.scale",
    "normalized": "ln_final.normalized",
    "scale1": "ln1.scale",
    "scale2": "ln2.scale",
    "normalized1": "ln1.normalized",
    "normalized2": "ln2.normalized",
    "mlp_mid": "mlp_post",
}

RECURRENT = tuple(name for name in KINDS if name.startswith(("encoder.", "decoder.")))
"""The kinds of recurrent encoder-decoders."""
CROSS = tuple(name for name in KINDS if name.startswith("cross_"))
"""The kinds of a decoder's attention to the source."""
HEAD_AXES = ("head", "kv_head")
POSITION_AXES = ("pos", "q_pos")
"""Positions of the prompt."""
PICKS = {
    "head": HEAD_AXES,
    "pos": (*POSITION_AXES, "target_pos", "source_pos"),
    "neuron": ("d_mlp",),
    "key": ("k_pos", "source_pos"),
}
"""What a site may pick, and the axes that it picks from."""


@dataclass(frozen=True)
class Site:
    """One activation of a model, or the part of it at one head, position, neuron or key.

    kind: a key of `KINDS`. layer: from 0, for kinds that live in a block. head: from 0 (a key/value head for
    k and v). pos: a position in the sequence; for scores and patterns, the query position. neuron: of an MLP.
    key: for scores and patterns, the key position; head, pos and key together are one attention edge.

    Raises:
        LabError: an unknown kind, a layer missing or superfluous, a pick from an axis that the kind does not have.
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    pos: int | None = None
    neuron: int | None = None
    key: int | None = None

    def __post_init__(self) -> None:
        kind = KINDS[choose("site kind", self.kind, KINDS)]
        if kind.per_layer != (self.layer is not None):
            need = "needs a layer" if kind.per_layer else "has no layer"
            raise LabError(f"{self} {need}: try Site({self.kind!r}{', 0' if kind.per_layer else ''}).")
        if self.layer is not None and self.layer < 0:
            raise LabError(f"{self} counts layers from the end; expected a layer from 0.")
        for name, axis in self.picks.items():
            if axis is None:
                what = "position" if name == "pos" else name
                raise LabError(f"{self} gives a {what}, but {self.kind!r} has the axes {' '.join(kind.axes)}.")

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of the whole activation at this hook point."""
        return KINDS[self.kind].axes

    @cached_property
    def free_axes(self) -> tuple[str, ...]:
        """The axes that are left at this site."""
        return tuple(axis for i, axis in enumerate(self.axes) if i not in self.picks.values())

    @property
    def hook_name(self) -> str:
        return KINDS[self.kind].template.format(layer=self.layer)

    @property
    def head_axis(self) -> int | None:
        return _find(self.axes, HEAD_AXES)

    @property
    def pos_axis(self) -> int | None:
        return _find(self.axes, PICKS["pos"])

    @cached_property
    def picks(self) -> dict[str, int | None]:
        """The axis of each pick that is given, by name ("head", "pos", ...); None where the kind has no such axis."""
        return {name: _find(self.axes, axes) for name, axes in PICKS.items() if getattr(self, name) is not None}

    @property
    def index(self) -> Index:
        """What to index the whole activation with to get this site's part; the batch axis stays."""
        index: list[slice | int] = [slice(None)] * len(self.axes)
        for name, axis in self.picks.items():
            if axis is not None:
                index[axis] = getattr(self, name)
        return tuple(index)

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in ("layer", *PICKS)}
        parts = [f"{name}={value}" for name, value in given.items() if value is not None]
        return f"Site({', '.join([repr(self.kind), *parts])})"


def _find(axes: tuple[str, ...], names: tuple[str, ...]) -> int | None:
    return next((i for i, axis in enumerate(axes) if axis in names), None)


def hook_name(kind: str, layer: int | None = None) -> str:
    """The hook name of a kind: `hook_name("resid_post", 3)` is `"blocks.3.hook_resid_post"`.

    Also understands HookedTransformer's short names ("attn", "post", "scale1", ...) and `"scale"` with
    `("scale", 3, "ln1")` spelled `"ln1.scale"`.
    """
    kind = _HABITS.get(kind, kind)
    return Site(kind, layer).hook_name


@lru_cache(maxsize=4096)
def axes_of(name: str) -> tuple[str, ...] | None:
    """The axes of the activation at a hook name, or None for a point that the table does not know."""
    template = re.sub(r"^(blocks|encoder|decoder)\.\d+\.", "blocks.{layer}.", name)
    return _AXES_BY_TEMPLATE.get(template)


_AXES_BY_TEMPLATE = {kind.template: kind.axes for kind in KINDS.values()}
