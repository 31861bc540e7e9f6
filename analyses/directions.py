"""Directions of the residual stream: the mean difference between two sets of prompts, and the edits that use one.

    v_l = E[h_l | toward] - E[h_l | away]       at the last token, in every layer
    add:      h_l <- h_l + strength · v_l       in one layer (Rimsky et al. 2024, arXiv:2312.06681)
    ablate:   h <- h - (r · h) r, r = v / |v|   wherever the stream passes (Arditi et al. 2024, arXiv:2406.11717)

    found = steering_vectors(model, toward, away)
    print(generate_with(model, add_direction(found.vector(2), layer=2), "The capital city of Italy is"))

What they do to a metric is for `analyses.steering` to say.

Cost: a forward of both sets; text is run one prompt at a time.
It does not show: that the model itself uses the direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.fills import Reference, prompts_of
from analyses.patching import check_site
from interp import edits, provenance
from interp.contract import HookedModel, ResumableModel
from interp.edits import Edit
from interp.errors import LabError, choose
from interp.prompt_text import prompt_ids
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy
from interp.shares import check_stream_is_a_sum
from interp.sites import Site
from interp.style import AMOUNT

Prompts = Reference | Sequence[str] | Sequence[Sequence[int]]
Vector = Float[Tensor, "d_model"]
SITES = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVectors(Result):
    """The mean difference of the stream between two sets of prompts, in every layer.

    values: the vectors. length: theirs as a part of the mean length of the stream there. site: where it was read, and
    where it is to be added.
    """

    title = "Mean difference of the stream"
    shows = "how far apart two sets of prompts are on average, as a part of the length of the stream"
    caveat = "A direction that tells the sets apart need not be one that the model uses."
    primary = "length"
    unit = "length of the difference / length of the stream"
    scale = AMOUNT

    values: Float[np.ndarray, "layer d_model"]
    length: Float[np.ndarray, "layer"]
    site: str

    def vector(self, layer: int) -> Vector:
        """The vector of one layer."""
        return torch.from_numpy(self.values[layer].copy())


def steering_vectors(
    model: HookedModel | Any, toward: Prompts, away: Prompts | None = None, site: str = "resid_post"
) -> SteeringVectors:
    """The mean difference between two sets of prompts at their last tokens: `.vector(layer)`.

    toward, away: texts, rows of token ids, token ids [prompt pos] without padding, or `PromptPairs`, of which the clean
    prompts are taken; with pairs, `away` is by default their corrupted prompts. site: "resid_pre", "resid_mid" or
    "resid_post".

    Raises:
        LabError: an unknown site, an empty set, only one set that is no pairs, or prompts that the model cannot take.
    """
    choose("site", site, SITES)
    check_site(model, site)
    if away is None:
        if not isinstance(toward, PromptPairs):
            raise LabError("one set of prompts has no mean difference; give away=, or PromptPairs.")
        away = toward.swapped()
    means, lengths = zip(*(_mean_stream(model, prompts, site) for prompts in (toward, away)), strict=True)
    difference = means[0] - means[1]
    origin = provenance.of(
        model, prompts=toward if isinstance(toward, PromptPairs) else None, site=site, settings={"away": _told(away)}
    )
    length = difference.norm(dim=-1) / (sum(lengths) / 2)
    return SteeringVectors(to_numpy(difference), to_numpy(length), site, provenance=origin)


def add_direction(
    vector: Vector, layer: int, strength: float = 1.0, site: str = "resid_post", pos: int | None = None
) -> list[Edit]:
    """The edit that adds `strength · vector` to the stream in one layer, everywhere or at one position."""
    return [edits.add(Site(site, layer, pos=pos), vector, strength)]


def ablate_direction(model: HookedModel | Any, vector: Vector) -> list[Edit]:
    """The edits that take a direction out of the stream wherever a block reads it or leaves it behind.

    Raises:
        LabError: the direction is zero, or norms stand on the stream, which bring directions back.
    """
    check_stream_is_a_sum(model)
    n_layers = model.cfg.n_layers
    sites = [Site(kind, layer) for layer in range(n_layers) for kind in ("resid_pre", "resid_mid")]
    sites.append(Site("resid_post", n_layers - 1))
    return [edits.project_out(site, vector) for site in sites if site.hook_name in model.hook_dict]


def generate_with(
    model: HookedModel | Any,
    changes: Sequence[Edit],
    prompt: str | list[str] | Int[Tensor, "batch pos"] | Int[Tensor, "pos"],
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    seed: int | None = None,
) -> Any:
    """What the model writes while the edits are made at every token: text for text, ids for ids, as `model.generate`.

    Raises:
        LabError: an edit at one position or with values for certain positions, which mean nothing while the text grows;
            a model that is not the lab's own; and as `model.generate`.
    """
    if not isinstance(model, ResumableModel) or not hasattr(model, "generate"):
        raise LabError(f"{type(model).__name__} does not write text with edits; try load(...) without a backend.")
    for edit in changes:
        axis = edit.site.pos_axis
        if edit.site.pos is not None or (edit.values is not None and axis is not None and edit.values.shape[axis] > 1):
            raise LabError(f"{edit} belongs to certain positions; expected an edit of all of them, as the text grows.")
    with model.hooks([edit.as_hook() for edit in changes]):
        return model.generate(prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)


def _mean_stream(
    model: HookedModel | Any, prompts: Prompts, site: str
) -> tuple[Float[Tensor, "layer d_model"], Float[Tensor, "layer"]]:
    """The mean stream at the last tokens in every layer, and its mean length, in float32 at least."""
    names = [Site(site, layer).hook_name for layer in range(model.cfg.n_layers)]
    if isinstance(prompts, PromptPairs | Tensor):
        batches = [prompts_of(model, prompts)]
    else:
        rows = [prompt_ids(model, row) if isinstance(row, str) else [int(token) for token in row] for row in prompts]
        batches = [prompts_of(model, torch.tensor([row], dtype=torch.long)) for row in rows]
    if not batches:
        raise LabError("a set of no prompts; expected at least one.")
    found = []
    for tokens, mask in batches:
        with torch.inference_mode():
            given = None if bool(mask.all()) else mask
            _, cache = model.run_with_cache(tokens, attention_mask=given, names_filter=names)
        last = (torch.arange(mask.shape[1], device=mask.device) * mask).amax(1)
        every = torch.arange(len(tokens), device=last.device)
        found.append(torch.stack([cache[name][every, last] for name in names], 1))
    streams = torch.cat(found)
    streams = streams.to(torch.promote_types(streams.dtype, torch.float32))
    return streams.mean(0), streams.norm(dim=-1).mean(0)


def _told(prompts: Prompts) -> Any:
    """Prompts for the provenance."""
    if isinstance(prompts, PromptPairs):
        return "corrupted prompts"
    return {"n": len(prompts), "sha256": provenance.tensor_hash(prompts)} if isinstance(prompts, Tensor) else [*prompts]
