"""What is written in the place of an ablated component: zero, a mean, or its value on another prompt.

fill = fill_of(model, pairs, ("z",), "mean")
fill.edit(Site("z", 3, head=1))                # an edit for a sweep of `pairs`
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import edits, provenance
from interp.contract import HookedModel
from interp.edits import Edit
from interp.errors import LabError, choose
from interp.prompts import PromptPairs
from interp.sites import Site

VALUES = ("zero", "mean", "resample")
Reference = PromptPairs | Tensor


@dataclass(frozen=True)
class Fill:
    """value: one of `VALUES`. words: what is written, for readers. tensors: by hook name, shaped like the activation,
    with one entry for all prompts where they are the same. settings: for the provenance.
    """

    value: str
    words: str
    tensors: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def edit(self, site: Site) -> Edit:
        """What ablates a site."""
        if self.value == "zero":
            return edits.zero(site)
        return edits.write(site, self.tensors[site.hook_name][site.index], self.value)


def fill_of(
    model: HookedModel | Any, pairs: PromptPairs, kinds: Sequence[str], value: str, reference: Reference | None = None
) -> Fill:
    """The fill for every site of some kinds [batch pos ...], in runs of the clean prompts. Runs the reference set once.

    value: "zero", "mean" or "resample". reference: `PromptPairs`, of which the clean prompts are taken, or token ids
    [prompt pos] without padding; by default the corrupted prompts of the pairs.

    A mean is over prompts, for each position, when all prompts of both sets fill the same positions; else it is over
    all real tokens of the reference, as positions that do not correspond have no mean in common. To resample, prompt i
    takes the values of reference prompt i.

    Raises:
        LabError: an unknown value; a reference for zeros, one that the model cannot take, or one to resample from that
            does not fit the prompts.
    """
    choose("value", value, VALUES)
    if value == "zero":
        if reference is not None:
            raise LabError("value='zero' takes nothing from a reference; leave it out, or try value='mean'.")
        return Fill("zero", "zero")
    tokens, mask = prompts_of(model, pairs.swapped() if reference is None else reference)
    sites = [Site(kind, layer) for kind in kinds for layer in range(model.cfg.n_layers)]
    whose = "the corrupted prompts" if reference is None else f"{len(tokens)} reference prompts"
    settings = {} if reference is None else {"reference": {"n": len(tokens), "sha256": provenance.tensor_hash(tokens)}}
    if value == "resample":
        _check_fits(pairs, tokens, mask)
        whose = "the corrupted prompt" if reference is None else "its reference prompt"
        return Fill(value, f"its value on {whose}", _run(model, tokens, mask, sites), settings)
    aligned = _fill_the_same(pairs.mask, mask)
    over = ("batch",) if aligned else ("batch", "pos")
    means = _means(_run(model, tokens, mask, sites), mask, sites, over, pairs.clean.shape[1])
    return Fill(value, f"its mean over {whose}" + (", position by position" if aligned else ""), means, settings)


def warn_of_zeros(stacklevel: int) -> None:
    """What to mind about zero ablation."""
    warnings.warn(
        "zero ablation takes the model off the distribution that it was trained on, so part of an effect may be damage "
        "and not function; compare with value='mean' or 'resample'.",
        stacklevel=stacklevel + 1,
    )


def prompts_of(
    model: HookedModel | Any, reference: Reference
) -> tuple[Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]]:
    """Token ids of a reference set and which of them are real, on the model's device.

    Raises:
        LabError: no token ids, or ones that the model cannot take.
    """
    if isinstance(reference, PromptPairs):
        reference.check(model)
        return reference.clean.to(model.device), reference.mask.to(model.device)
    if reference.ndim != 2 or not reference.numel() or reference.dtype not in (torch.int32, torch.int64):
        raise LabError(
            f"a reference of shape {list(reference.shape)} and {reference.dtype}; expected integer token ids "
            "[prompt pos], at least one, or PromptPairs."
        )
    lowest, highest = int(reference.min()), int(reference.max())
    if lowest < 0 or highest >= model.cfg.d_vocab or reference.shape[1] > model.cfg.n_ctx:
        raise LabError(
            f"the reference has {reference.shape[1]} positions and token ids from {lowest} to {highest}; expected at "
            f"most {model.cfg.n_ctx}, and ids from 0 to {model.cfg.d_vocab - 1}."
        )
    return reference.to(model.device), torch.ones_like(reference, dtype=torch.bool, device=model.device)


def _check_fits(pairs: PromptPairs, tokens: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"]) -> None:
    """Raises:
    LabError: the prompts to resample from do not stand one beside each of ours.
    """
    if tokens.shape != pairs.clean.shape:
        raise LabError(
            f"{len(tokens)} reference prompts of {tokens.shape[1]} positions for {len(pairs)} prompts of "
            f"{pairs.clean.shape[1]}; to resample, prompt i takes the values of reference prompt i, so there must be "
            "as many, as long. value='mean' takes any reference."
        )
    unequal = (mask != pairs.mask).any(1).nonzero()
    if len(unequal):
        i = int(unequal[0])
        raise LabError(
            f"reference prompt {i} has {int(mask[i].sum())} real tokens, prompt {i} has {int(pairs.mask[i].sum())}, or "
            "they are padded on other sides; to resample they must be aligned. value='mean' takes any reference."
        )


def _fill_the_same(ours: Bool[Tensor, "batch pos"], theirs: Bool[Tensor, "prompt n"]) -> bool:
    """Whether all prompts of both sets fill the same positions."""
    return ours.shape[1] == theirs.shape[1] and bool((ours == ours[0]).all() and (theirs == ours[0]).all())


def _run(
    model: HookedModel | Any,
    tokens: Int[Tensor, "prompt pos"],
    mask: Bool[Tensor, "prompt pos"],
    sites: Sequence[Site],
) -> dict[str, Float[Tensor, "prompt pos ..."]]:
    """The whole activations at some sites, by hook name."""
    names = [site.hook_name for site in sites]
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, attention_mask=None if bool(mask.all()) else mask, names_filter=names)
    return dict(cache.items())


def _means(
    activations: Mapping[str, Float[Tensor, "prompt pos ..."]],
    mask: Bool[Tensor, "prompt pos"],
    sites: Sequence[Site],
    over: tuple[str, ...],
    n_pos: int,
) -> dict[str, Float[Tensor, "1 our_pos ..."]]:
    """The mean of whole activations over these axes, at each of our positions."""
    means = {}
    for site in sites:
        mean = edits.mean(site, activations, over, mask).values
        assert mean is not None  # it always brings values
        means[site.hook_name] = mean.expand(-1, n_pos, *mean.shape[2:])
    return means
