"""Weights and configs under HookedTransformer's names, as TransformerLens 2 and 3 saved them, and back.

    model = GPT(config_of_hooked(cfg_dict))             # HookedTransformerConfig.to_dict(), or its JSON
    model.load_state_dict(from_hooked(torch.load("model.pth", weights_only=True), model.cfg))
    state_dict = to_hooked(model)                       # for HookedTransformer.load_state_dict(strict=False)

Where the two keep the same numbers otherwise: a HookedTransformer has every bias, its norms' gains and token vectors
hold `norm_gain_offset` and `embed_scale`, and the `b_in` of its gated MLPs is added after the product. It has no biases
before that product; where ours are not zero they are `mlp.b_gate` and `mlp.b_pre_linear`, which it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from interp.errors import LabError
from interp.shares import norms_the_stream
from models.config import TransformerConfig
from models.hooked_transformer.fields import config_of_hooked

if TYPE_CHECKING:
    from models.gpt import GPT

__all__ = ["check_names", "config_of_hooked", "from_hooked", "to_hooked", "unmatched"]

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")

# Their name in an attention layer or MLP: our name, their axes, our axes.
_ATTENTION = {
    "W_Q": ("q.weight", "head model d_head", "(head d_head) model"),
    "W_K": ("k.weight", "kv model d_head", "(kv d_head) model"),
    "W_V": ("v.weight", "kv model d_head", "(kv d_head) model"),
    "W_O": ("o.weight", "head d_head model", "model (head d_head)"),
    "b_Q": ("q.bias", "head d_head", "(head d_head)"),
    "b_K": ("k.bias", "kv d_head", "(kv d_head)"),
    "b_V": ("v.bias", "kv d_head", "(kv d_head)"),
    "b_O": ("o.bias", "model", "model"),
}
_MLP = {
    "W_in": ("in_.weight", "model mlp", "mlp model"),
    "W_out": ("out.weight", "mlp model", "model mlp"),
    "b_in": ("in_.bias", "mlp", "mlp"),
    "b_out": ("out.bias", "model", "model"),
}
_SHARED = ("W_K", "W_V", "b_K", "b_V")  # stored as _W_K and so on where heads share them


@dataclass(frozen=True)
class Place:
    """A tensor of a HookedTransformer and the parameter of ours that holds the same numbers.

    axes: theirs and ours, as einops patterns over `sizes(cfg)`. kept: whether our model has the parameter; where it
    has not, theirs is zero. plus, times: theirs is ours plus the one, times the other. extra: a HookedTransformer does
    not know it, and it is there only where it is not zero.
    """

    theirs: str
    ours: str
    axes: tuple[str, str]
    kept: bool = True
    plus: float = 0.0
    times: float = 1.0
    extra: bool = False

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the tensor that they have."""
        return tuple(sizes[axis] for axis in self.axes[0].split())


def to_hooked(model: GPT) -> dict[str, Tensor]:
    """The weights under HookedTransformer's names and in its shapes; views of ours wherever the numbers are the same.

    Without its buffers, which hold no weights: give it `strict=False`, and see that nothing is unexpected but what a
    HookedTransformer cannot compute (biases before the product of a gated MLP).
    """
    lengths, state = sizes(model.cfg), {}
    for place in places(model.cfg):
        if not place.kept:
            state[place.theirs] = torch.zeros(place.shape(lengths), device=model.device, dtype=model.dtype)
            continue
        ours = model.get_parameter(place.ours).detach()
        if place.extra and not ours.any():
            continue
        theirs = rearrange(ours, f"{place.axes[1]} -> {place.axes[0]}", **_named(place.axes[0], lengths))
        theirs = theirs + place.plus if place.plus else theirs
        state[place.theirs] = theirs * torch.tensor(place.times, dtype=theirs.dtype) if place.times != 1 else theirs
    if model.cfg.positional_embedding_type == "sinusoidal":
        state["pos_embed.W_pos"] = model.W_pos.detach()
    return state


def from_hooked(state_dict: Mapping[str, Tensor], cfg: TransformerConfig, strict: bool = True) -> dict[str, Tensor]:
    """The weights of a HookedTransformer under the names of our parameters, for a `GPT` of this config.

    Its buffers are left out. strict: every weight must be there and nothing else.

    Raises:
        LabError: tensors are missing, unexpected (all are listed) or of other shapes, or hold what this config has no
            place for, such as a bias that is not zero.
    """
    if strict:
        check_names(state_dict, cfg)
    table = [place for place in _as_stored(state_dict, cfg) if place.theirs in state_dict]
    _check_shapes(state_dict, table, sizes(cfg))
    ours, after_product = {}, {}
    for place in table:
        tensor = state_dict[place.theirs]
        if place.kept:
            ours[place.ours] = _ours(tensor, place, sizes(cfg))
        elif cfg.gated_mlp and cfg.mlp_bias and place.theirs.endswith(".mlp.b_in"):
            after_product[place.theirs.removesuffix("b_in")] = tensor
        elif tensor.any():
            raise LabError(f"{place.theirs!r} is not zero, and this config has no such weights.")
    _move_past_product(ours, after_product)
    if cfg.tie_embeddings:
        _check_tied(ours)
    return ours


def check_names(names: Collection[str], cfg: TransformerConfig) -> None:
    """Raises:
    LabError: a HookedTransformer of this config would miss tensors, or not know some; all are listed.
    """
    missing, unexpected = unmatched(names, cfg)
    if missing or unexpected:
        raise LabError(
            f"the state dict does not fit the config: missing {', '.join(missing) or 'none'}; "
            f"not expected {', '.join(unexpected) or 'none'}.  Check that both come from the same HookedTransformer."
        )


def unmatched(stored: Collection[str], cfg: TransformerConfig) -> tuple[list[str], list[str]]:
    """The names that a HookedTransformer of this config would miss, and those that it would not know."""
    known = _as_stored(stored, cfg)
    moved = "mlp.b_in" if cfg.mlp_bias else "none"  # in a gated MLP it is no parameter of ours, and yet counts
    wanted = [p.theirs for p in known if (p.kept or p.theirs.endswith(moved)) and not p.extra]
    missing = [name for name in wanted if name not in stored]
    names = {place.theirs for place in known}
    extra = ("pos_embed.W_pos",) if cfg.positional_embedding_type == "sinusoidal" else ()
    return missing, [name for name in stored if name not in names and not name.endswith(BUFFERS + extra)]


def places(cfg: TransformerConfig) -> Iterator[Place]:
    """Every weight of a HookedTransformer of this config.

    Raises:
        LabError: norms stand on the stream, which HookedTransformer does not have.
    """
    if norms_the_stream(cfg):
        raise LabError("norms stand on the stream (norm_places='stream'), and a HookedTransformer has none there.")
    yield Place("embed.W_E", "embed.W_E", ("vocab model", "vocab model"), times=cfg.embed_scale or 1.0)
    if cfg.positional_embedding_type == "learned":
        yield Place("pos_embed.W_pos", "pos_embed.W_pos", ("ctx model", "ctx model"))
    for layer in range(cfg.n_layers):
        yield from _block(cfg, f"blocks.{layer}")
    yield from _norm(cfg, "ln_final", "ln_final", "model", folded=_folded(cfg))
    yield Place("unembed.W_U", "unembed.weight", ("model out", "out model"))
    yield Place("unembed.b_U", "unembed.bias", ("out", "out"), cfg.unembed_bias)


def sizes(cfg: TransformerConfig) -> dict[str, int]:
    """The length of every axis that a `Place` names."""
    heads, kv, d_head = cfg.n_heads, cfg.n_kv_heads, cfg.head_size
    return {
        **{"vocab": cfg.d_vocab, "out": cfg.n_outputs, "ctx": cfg.n_ctx, "model": cfg.d_model, "mlp": cfg.mlp_size},
        **{"head": heads, "kv": kv, "d_head": d_head, "heads": heads * d_head, "kvs": kv * d_head},
    }


def _block(cfg: TransformerConfig, at: str) -> Iterator[Place]:
    before, after = cfg.norm_places in ("pre", "both"), cfg.norm_places in ("post", "both")
    for number in ("1",) if cfg.attn_only else ("1", "2"):
        if before:
            yield from _norm(cfg, f"{at}.ln{number}", f"{at}.ln{number}", "model", folded=_folded(cfg))
        if after:  # a model with norms after alone has them under the names of norms before
            theirs = f"{at}.ln{number}_post" if before else f"{at}.ln{number}"
            yield from _norm(cfg, theirs, f"{at}.ln{number}_post", "model", folded=False)
    kept = {"W": True, "b": cfg.attn_bias}
    for theirs, (ours, *axes) in _ATTENTION.items():
        shared = "_" if theirs in _SHARED and cfg.n_kv_heads != cfg.n_heads else ""
        has = cfg.out_bias if theirs == "b_O" else kept[theirs[0]]
        yield Place(f"{at}.attn.{shared}{theirs}", f"{at}.attn.{ours}", (axes[0], axes[1]), has)
    if cfg.qk_norm is not None:
        widths = ("heads", "kvs") if cfg.qk_norm == "width" else ("d_head", "d_head")
        for name, width in zip(("q_norm", "k_norm"), widths, strict=True):
            yield Place(f"{at}.attn.{name}.w", f"{at}.attn.{name}.w", (width, width), plus=cfg.norm_gain_offset)
    if cfg.attn_only:
        return
    for theirs, (ours, *axes) in _MLP.items():
        has = theirs[0] == "W" or (cfg.mlp_bias and not (cfg.gated_mlp and theirs == "b_in"))
        yield Place(f"{at}.mlp.{theirs}", f"{at}.mlp.{ours}", (axes[0], axes[1]), has)
    if cfg.gated_mlp:
        yield Place(f"{at}.mlp.W_gate", f"{at}.mlp.gate.weight", ("model mlp", "mlp model"))
    if cfg.gated_mlp and cfg.mlp_bias:
        yield Place(f"{at}.mlp.b_gate", f"{at}.mlp.gate.bias", ("mlp", "mlp"), extra=True)
        yield Place(f"{at}.mlp.b_pre_linear", f"{at}.mlp.in_.bias", ("mlp", "mlp"), extra=True)


def _norm(cfg: TransformerConfig, theirs: str, ours: str, width: str, folded: bool) -> Iterator[Place]:
    if cfg.normalization_type is None or folded:
        return
    yield Place(f"{theirs}.w", f"{ours}.w", (width, width), plus=cfg.norm_gain_offset)
    if cfg.normalization_type.startswith("LN"):
        yield Place(f"{theirs}.b", f"{ours}.b", (width, width))


def _folded(cfg: TransformerConfig) -> bool:
    return str(cfg.normalization_type).endswith("Pre")


def _named(axes: str, lengths: Mapping[str, int]) -> dict[str, int]:
    return {axis: lengths[axis] for axis in axes.split()}


def _as_stored(stored: Collection[str], cfg: TransformerConfig) -> list[Place]:
    """The places under the names that are stored, which may say _W_K where no heads share keys."""
    table = []
    for place in places(cfg):
        owner, _, leaf = place.theirs.rpartition(".")
        other = f"{owner}.{leaf.removeprefix('_') if leaf.startswith('_') else '_' + leaf}"
        table.append(replace(place, theirs=other) if place.theirs not in stored and other in stored else place)
    return table


def _check_shapes(state_dict: Mapping[str, Tensor], table: Collection[Place], lengths: Mapping[str, int]) -> None:
    for place in table:
        found, expected = tuple(state_dict[place.theirs].shape), place.shape(lengths)
        if found != expected:
            raise LabError(f"{place.theirs!r} has shape {list(found)}; the config makes it {list(expected)}.")


def _ours(theirs: Tensor, place: Place, lengths: Mapping[str, int]) -> Tensor:
    scaled = theirs / torch.tensor(place.times, dtype=theirs.dtype) if place.times != 1 else theirs
    moved = scaled - place.plus if place.plus else scaled
    return rearrange(moved, f"{place.axes[0]} -> {place.axes[1]}", **_named(place.axes[0], lengths))


def _move_past_product(ours: dict[str, Tensor], biases: Mapping[str, Tensor]) -> None:
    """Take their biases after the product of a gated MLP through W_out to its output; ours before it are often zero."""
    for at, bias in biases.items():
        ours.setdefault(f"{at}in_.bias", torch.zeros_like(bias))
        ours.setdefault(f"{at}gate.bias", torch.zeros_like(bias))
        if bias.any() and not {f"{at}out.bias", f"{at}out.weight"} <= ours.keys():
            raise LabError(f"{at}b_in is not zero; expected W_out and b_out beside it, through which it is taken.")
        if bias.any():
            ours[f"{at}out.bias"] = ours[f"{at}out.bias"] + ours[f"{at}out.weight"] @ bias


def _check_tied(ours: Mapping[str, Tensor]) -> None:
    """Raises:
    LabError: the embedding and the unembedding, which are one in a tied model, differ.
    """
    embedding, unembedding = ours.get("embed.W_E"), ours.get("unembed.weight")
    if embedding is not None and unembedding is not None and not torch.allclose(embedding, unembedding):
        raise LabError("'embed.W_E' and 'unembed.W_U' differ, and the config ties them; load into an untied config.")
