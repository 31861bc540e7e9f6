"""Two models side by side on the same tokens: how far apart at every hook point, and in what they predict.

    difference(hook) = max |a - b|        relative(hook) = ||a - b|| / ||a||

Read along the depth, the first hook point that differs is where a port goes wrong. Only hook points that both
models have, with the same shape, are compared; the predictions of any two models with one vocabulary are.

Cost: one forward of each model.
It does not show: whether two models that differ everywhere still compute the same thing in another basis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.lens import Prompt, one_prompt
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonResult(Result):
    """How far two models are apart on one prompt, by hook point in the order of the forward.

    relative: ||a - b|| / ||a||. difference: the largest |a - b|. kl: KL(a || b) of the predictions, in nats.
    agreement: share of positions with the same likeliest next token. models: their names.
    """

    title = "Comparison of two models"
    shows = "how far the activations are apart at each hook point that both models have"
    caveat = "Two models may compute the same in different bases."
    primary = "relative"
    unit = "relative difference"

    relative: Float[np.ndarray, "hook"]
    difference: Float[np.ndarray, "hook"]
    kl: Float[np.ndarray, "pos"]
    agreement: float
    models: list[str]

    def first_difference(self, tolerance: float = 1e-4) -> str | None:
        """The first hook point whose relative difference exceeds `tolerance`; None when all agree."""
        names = self.labels["hook"]
        return next((str(name) for name, r in zip(names, self.relative, strict=True) if not r <= tolerance), None)


def compare(a: HookedModel | Any, b: HookedModel | Any, prompt: Prompt) -> ComparisonResult:
    """Compare two models on one prompt, text (tokenised by `a`) or token ids.

    Raises:
        LabError: vocabularies of different sizes, or a prompt that one of the models cannot take.
    """
    if a.cfg.d_vocab != b.cfg.d_vocab:
        raise LabError(
            f"the models have vocabularies of {a.cfg.d_vocab} and {b.cfg.d_vocab} tokens; "
            "expected the same, so that token ids and predictions mean the same."
        )
    tokens = one_prompt(a, prompt)
    one_prompt(b, tokens)
    with torch.inference_mode():
        logits_a, cache_a = a.run_with_cache(tokens)
        logits_b, cache_b = b.run_with_cache(tokens.to(b.device))
        shared = [name for name in cache_a if name in cache_b and cache_a[name].shape == cache_b[name].shape]
        if not shared:
            raise LabError("the models share no hook point of the same shape, so there are no internals to compare.")
        pairs = [(_wide(cache_a[name]), _wide(cache_b[name])) for name in shared]
        log_a, log_b = (_wide(x)[0].log_softmax(-1) for x in (logits_a, logits_b))
    return ComparisonResult(
        to_numpy(torch.stack([_relative(x, y) for x, y in pairs])),
        to_numpy(torch.stack([(x - y).abs().max() for x, y in pairs])),
        to_numpy((log_a.exp() * (log_a - log_b)).sum(-1)),
        float((log_a.argmax(-1) == log_b.argmax(-1)).float().mean()),
        [a.cfg.model_name, b.cfg.model_name],
        labels={"hook": shared, "pos": a.to_str_tokens(tokens[0])},
        provenance=provenance.of(a, prompts=tokens, settings={"compared with": provenance.of(b).to_dict()}),
    )


def _relative(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    norm = a.norm()
    return (a - b).norm() / torch.where(norm > 0, norm, torch.ones_like(norm))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.cpu().double()
