"""Windows of layers: some neighbours that are edited together."""

from __future__ import annotations

from interp.errors import LabError


def layer_windows(n_layers: int, width: int) -> list[range]:
    """For each layer l the layers from l - width // 2 on, `width` of them, as far as there are any.

    Raises:
        LabError: a width of no layers.
    """
    if width < 1:
        raise LabError(f"window={width}; expected at least one layer.")
    starts = range(-(width // 2), n_layers - width // 2)
    return [range(max(0, start), min(n_layers, start + width)) for start in starts]
