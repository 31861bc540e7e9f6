"""What config.json says of rotary positions and of layers with a window, in our words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from interp.errors import LabError
from models.pretrained.family import UnsupportedError, require, wanted
from models.rotary_scaling import RotaryScaling

_UNSCALED = ("default", "dynamic")
_LAYERS = {"full_attention": "global", "sliding_attention": "local"}


def rotary_entries(config: Mapping[str, Any], default_base: float = 10000.0) -> dict[str, Any]:
    """The entries about rotary positions, wherever the config keeps them, with a `rope_theta` and a `rope_type`.

    Transformers keeps them in "rope_parameters"; before version 5 in "rope_scaling" and at the top.
    """
    entries = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    base = config.get("rope_theta")
    return {
        "rope_type": entries.get("type", "default"),
        "rope_theta": default_base if base is None else base,
        **entries,
    }


def rotary(entries: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """`rotary_base` and `rotary_scaling` of our config. entries: from `rotary_entries`.

    "dynamic" scales only inputs longer than the context (n_ctx), which the lab refuses: within, it does nothing.

    Raises:
        UnsupportedError: a kind of scaling, or an option of one, that the lab does not compute.
    """
    kind = entries["rope_type"]
    known = (*_UNSCALED, *_SCALINGS)
    if kind not in known:
        raise UnsupportedError(
            f"config.json scales the rotary positions (rope_type={kind!r}); the lab's own code computes "
            f"{', '.join(map(repr, known))}."
        )
    scaling = None if kind in _UNSCALED else _SCALINGS[kind](entries, config)
    return {"rotary_base": float(entries["rope_theta"]), "rotary_scaling": scaling}


def _linear(entries: Mapping[str, Any], config: Mapping[str, Any]) -> RotaryScaling:
    return RotaryScaling("linear", float(wanted(entries, "factor")))


def _llama3(entries: Mapping[str, Any], config: Mapping[str, Any]) -> RotaryScaling:
    return RotaryScaling(
        "llama3",
        float(wanted(entries, "factor")),
        _first_n_ctx(entries, config),
        low_freq_factor=float(wanted(entries, "low_freq_factor")),
        high_freq_factor=float(wanted(entries, "high_freq_factor")),
    )


def _yarn(entries: Mapping[str, Any], config: Mapping[str, Any]) -> RotaryScaling:
    require(entries, {"truncate": True, "mscale": None, "mscale_all_dim": None})
    return RotaryScaling(
        "yarn",
        float(wanted(entries, "factor")),
        _first_n_ctx(entries, config),
        beta_fast=float(entries.get("beta_fast") or 32),
        beta_slow=float(entries.get("beta_slow") or 1),
        attention_factor=entries.get("attention_factor"),
    )


def longrope(entries: Mapping[str, Any], config: Mapping[str, Any], half: int) -> RotaryScaling:
    """The scaling of inputs within the first context, which is to be the model's n_ctx (see `models.rotary_scaling`).

    entries: from `rotary_entries`. half: how many frequencies there are.

    Raises:
        LabError: other than one factor for each frequency.
    """
    first, factors = _first_n_ctx(entries, config), wanted(entries, "short_factor")
    if len(factors) != half:
        raise LabError(f"config.json has a short_factor of {len(factors)} numbers; expected {half}, one a frequency.")
    return RotaryScaling(
        "longrope",
        float(entries.get("factor") or wanted(config, "max_position_embeddings") / first),
        first,
        attention_factor=entries.get("attention_factor"),
        frequency_factors=factors,
    )


_SCALINGS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], RotaryScaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _first_n_ctx(entries: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    outside = config.get("original_max_position_embeddings")
    if outside is not None:
        return outside
    return entries.get("original_max_position_embeddings") or wanted(config, "max_position_embeddings")


def local_layers(config: Mapping[str, Any], is_local: Callable[[int], bool], window: int | None) -> dict[str, Any]:
    """`attn_types` and `window_size` of our config.

    is_local: of a layer, where the config has no "layer_types". window: how many positions such a layer sees.

    Raises:
        LabError: local layers without a window, or (UnsupportedError) a type of layer that the lab does not compute.
    """
    depth = wanted(config, "num_hidden_layers")
    stated = config.get("layer_types") or [
        "sliding_attention" if is_local(layer) else "full_attention" for layer in range(depth)
    ]
    unknown = sorted({str(kind) for kind in stated} - set(_LAYERS))
    if unknown:
        raise UnsupportedError(
            f"config.json has layers of the type {', '.join(map(repr, unknown))}; the lab's own code computes "
            f"{', '.join(map(repr, _LAYERS))}."
        )
    if "sliding_attention" not in stated:
        return {"attn_types": None, "window_size": None}
    if window is None:
        raise LabError("config.json has layers of the type 'sliding_attention' but no sliding_window; state one.")
    return {"attn_types": tuple(_LAYERS[kind] for kind in stated), "window_size": window}
