"""Where along the residual stream components read and write.

A *point* numbers the places where the stream can be read: 2l is the input of layer l, 2l + 1 lies between its attention
and its MLP, and 2 n_layers is the end. A component reaches another along the stream alone if it has written before the
other reads.
"""

from __future__ import annotations

from typing import Any

from interp.sites import Site


def written_at(cfg: Any, site: Site) -> int:
    """The first point at which the stream holds what a sender writes: a head's "z", an MLP's "mlp_out" or one neuron's
    "mlp_post", the "embed", or the stream's beginning, "resid_pre" of layer 0."""
    if site.layer is None:
        return 0
    if site.kind == "resid_pre":
        return 2 * site.layer
    middle = site.kind == "z" and not getattr(cfg, "parallel_attn_mlp", False)
    return 2 * site.layer + (1 if middle else 2)


def read_at(cfg: Any, site: Site) -> int:
    """The point at which a receiver (q, k, v or mlp_in) reads the stream."""
    assert site.layer is not None
    middle = site.kind == "mlp_in" and not getattr(cfg, "parallel_attn_mlp", False)
    return 2 * site.layer + int(middle)


def after_layers(cfg: Any) -> str:
    """The kind that is the stream as a layer leaves it and the next one reads it.

    "resid_post"; but where norms stand on the stream, that is the sum before the layer's last norm.
    """
    return "normalized_resid_post" if getattr(cfg, "norm_places", "pre") == "stream" else "resid_post"


def stream_names(cfg: Any) -> list[str]:
    """The hook names of the stream at the input of the first layer and after each."""
    after = [Site(after_layers(cfg), layer) for layer in range(cfg.n_layers)]
    return [site.hook_name for site in [Site("resid_pre", 0), *after]]


def end(cfg: Any) -> int:
    """The point after the last layer."""
    return 2 * cfg.n_layers
