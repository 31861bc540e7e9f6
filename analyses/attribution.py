"""Direct logit attribution: how much each component itself wrote towards the right answer.

    share(c) = (centre(c) · gain / scale) · (W_U[right] - W_U[wrong])

with the final norm's scale as it was for the whole stream (Wang et al. 2022, arXiv:2211.00593, §3.1). All parts,
the norm's bias and b_U among them, sum to the logit difference exactly. Where a norm comes after attention and MLPs
(Gemma 2, OLMo 2), what a head, a neuron or a bias wrote is its part of that norm's output, its scale held in the same
way. Read at each prompt's last token, where the answer is predicted; several right or wrong answers are averaged, as
the metric `logit_diff` does.

Cost: one forward.
It does not show: what a component does through later ones, which may be all it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from analyses.labels import position_labels
from interp import provenance
from interp.cache import ActivationCache
from interp.contract import HookedModel
from interp.errors import LabError
from interp.held_norms import hold
from interp.metrics import logit_diff
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy
from interp.shares import check_logits_are_linear, check_parts_reach_the_stream

UNIT = "share of the logit difference"


@dataclass(frozen=True, eq=False, repr=False)
class AttributionResult(Result):
    """Every part's share of the logit difference, averaged over prompts; the parts sum to `logit_diff`.

    values: heads, without the output bias. mlp: each MLP with its bias. other: what is neither, labelled "embed",
    "pos_embed", "b_O" (all attention output biases, with those of norms after attention), "ln_final.b", "b_U".
    by_prompt: the heads' shares in every prompt. logit_diff: measured on the logits, per prompt.
    """

    title = "Head attribution"
    shows = "what each head itself wrote towards the right answer and away from the wrong one"
    caveat = "What a head does through later components is not counted."
    unit = UNIT

    values: Float[np.ndarray, "layer head"]
    mlp: Float[np.ndarray, "layer"]
    other: Float[np.ndarray, "part"]
    by_prompt: Float[np.ndarray, "layer head prompt"]
    logit_diff: Float[np.ndarray, "prompt"]

    def total(self) -> float:
        """The sum of all parts, which is the mean logit difference up to rounding."""
        return float(self.values.sum() + self.mlp.sum() + self.other.sum())


@dataclass(frozen=True, eq=False, repr=False)
class NeuronAttributionResult(Result):
    """Each neuron's share of the logit difference, averaged over prompts; MLP biases are not among them."""

    title = "Neuron attribution"
    shows = "what each neuron itself wrote towards the right answer and away from the wrong one"
    caveat = "What a neuron does through later components is not counted."
    unit = UNIT

    values: Float[np.ndarray, "layer neuron"]


@dataclass(frozen=True, eq=False, repr=False)
class SourceAttributionResult(Result):
    """Each head's share of the logit difference by the position it read from; over `pos` it sums to the head's."""

    title = "Head attribution by source position"
    shows = "from which position each head brought its share of the logit difference"
    caveat = "A position may hold what earlier layers copied there."
    unit = UNIT

    values: Float[np.ndarray, "layer head pos"]


def head_attribution(model: HookedModel | Any, pairs: PromptPairs) -> AttributionResult:
    """Shares of heads, MLPs, embeddings and biases in the clean prompts' logit difference: `.values[layer, head]`.

    Raises:
        LabError: prompts that the model cannot take, or a model whose parts' shares do not add up (`interp.shares`).
    """
    pairs, logits, cache = _last_token_run(model, pairs, ("hook_z", "hook_mlp_out", "embed"))
    direction = _direction(model, pairs)
    with torch.inference_mode():
        heads = _shares(cache, cache.stack_head_results(), direction)
        by_prompt = rearrange(heads, "(layer head) prompt -> layer head prompt", layer=model.cfg.n_layers)
        mlp = _mlp_shares(model, cache, direction)
        other = _other_shares(model, pairs, cache, direction)
    return AttributionResult(
        to_numpy(by_prompt.mean(-1)),
        to_numpy(mlp.mean(-1)),
        to_numpy(torch.stack([share.mean() for share in other.values()])),
        to_numpy(by_prompt),
        to_numpy(logit_diff(logits, pairs)),
        labels={"part": list(other)},
        provenance=_provenance(model, pairs),
    )


def neuron_attribution(model: HookedModel | Any, pairs: PromptPairs) -> NeuronAttributionResult:
    """Shares of all MLP neurons: `.values[layer, neuron]`. Never holds a neuron's output vector.

    share(neuron) = activation · (W_out[neuron] · read), where `read` is the norms and the answers' direction in one.

    Raises:
        LabError: a model without MLPs or whose parts' shares do not add up (`interp.shares`), or prompts that it
            cannot take.
    """
    if model.cfg.attn_only:
        raise LabError(f"the model {model.cfg.model_name!r} has no MLPs, so it has no neurons to attribute to.")
    pairs, _, cache = _last_token_run(model, pairs, ("mlp.hook_post",))
    direction = _direction(model, pairs)
    with torch.inference_mode():
        stream = _read_direction(model, cache, direction)
        values = []
        for layer, block in enumerate(model.blocks):
            read = _before_post_norm(cache, layer, "mlp", stream)
            post, W_out = cache["mlp_post", layer].to(read), block.mlp.W_out.to(read)
            values.append(einsum(post, W_out, read, "b mlp, mlp model, b model -> b mlp"))
    return NeuronAttributionResult(to_numpy(torch.stack(values).mean(1)), provenance=_provenance(model, pairs))


def source_attribution(model: HookedModel | Any, pairs: PromptPairs) -> SourceAttributionResult:
    """Heads' shares by source position: `.values[layer, head, pos]`; positions count in the padded batch.

    share(head, j) = A[last, j] · (v_j W_O · read), where `read` is the norms and the answers' direction in one.

    Raises:
        LabError: prompts that the model cannot take, or a model whose parts' shares do not add up (`interp.shares`).
    """
    pairs, _, cache = _last_token_run(model, pairs, ("hook_pattern", "hook_v"))
    direction = _direction(model, pairs)
    values = []
    with torch.inference_mode():
        stream = _read_direction(model, cache, direction)
        for layer, block in enumerate(model.blocks):
            read = _before_post_norm(cache, layer, "attn", stream)
            onto = einsum(block.attn.W_O.to(read), read, "head d model, b model -> b head d")
            v = cache["v", layer].to(read)
            v = repeat(v, "b pos kv d -> b pos (kv group) d", group=onto.shape[1] // v.shape[2])
            pattern = cache["pattern", layer].to(read)
            values.append(einsum(pattern, v, onto, "b head pos, b pos head d, b head d -> b head pos").mean(0))
    return SourceAttributionResult(
        to_numpy(torch.stack(values)),
        labels={"pos": position_labels(model, pairs)},
        provenance=_provenance(model, pairs),
    )


def _last_token_run(
    model: HookedModel | Any, pairs: PromptPairs, endings: tuple[str, ...]
) -> tuple[PromptPairs, Float[Tensor, "batch pos d_vocab"], ActivationCache]:
    """A run of the clean prompts, and its cache at each prompt's last token: no position axis but for `v`."""
    check_parts_reach_the_stream(model)
    check_logits_are_linear(model)
    pairs.check(model)
    pairs = pairs.to(model.device)
    mask = pairs.mask if pairs.padded else None
    scales = ("ln_final.hook_scale", "ln1_post.hook_scale", "ln2_post.hook_scale")
    with torch.inference_mode():
        logits, cache = model.run_with_cache(
            pairs.clean, attention_mask=mask, names_filter=lambda name: name.endswith((*endings, *scales))
        )
        rows = torch.arange(len(pairs), device=pairs.answered.device)
        tensors = {name: _at_last(name, tensor, rows, pairs.answered) for name, tensor in cache.items()}
    return pairs, logits, ActivationCache(tensors, model)


def _at_last(name: str, tensor: Tensor, rows: Tensor, last: Tensor) -> Tensor:
    if name.endswith("hook_v"):
        return tensor
    return tensor[rows, :, last] if name.endswith("hook_pattern") else tensor[rows, last]


def _direction(model: HookedModel | Any, pairs: PromptPairs) -> Float[Tensor, "batch d_vocab"]:
    """The logit difference as a row vector over the vocabulary: mean of the right minus mean of the wrong."""
    direction = torch.zeros(len(pairs), model.W_U.shape[1], device=model.device, dtype=_wide(model))
    for ids, sign in ((pairs.right, 1.0), (pairs.wrong, -1.0)):
        given = (ids >= 0).to(direction)
        direction.scatter_add_(1, ids.clamp(min=0), sign * given / given.sum(-1, keepdim=True))
    return direction


def _read_direction(
    model: HookedModel | Any, cache: ActivationCache, direction: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, "batch d_model"]:
    """The vector whose product with a component's part of the stream is its share: the final norm, seen through."""
    read = direction @ model.W_U.T.to(direction)
    if model.cfg.normalization_type is None:
        return read
    return hold(model, model.ln_final, cache["ln_final.hook_scale"].to(read)).seen_through(read)


def _before_post_norm(
    cache: ActivationCache, layer: int, part: str, read: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    """The vector whose product with what "attn" or "mlp" of a layer computes is its share, given the stream's."""
    norm = cache.post_norm(layer, part)
    return read if norm is None else norm.seen_through(read)


def _shares(
    cache: ActivationCache, stack: Float[Tensor, "component batch d_model"], direction: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, "component batch"]:
    read = _read_direction(cache.model, cache, direction)
    return einsum(stack.to(read), read, "component b model, b model -> component b")


def _mlp_shares(model: HookedModel | Any, cache: ActivationCache, direction: Tensor) -> Float[Tensor, "layer batch"]:
    if model.cfg.attn_only:
        return torch.zeros(model.cfg.n_layers, len(direction), dtype=direction.dtype)
    return _shares(cache, torch.stack([cache["mlp_out", layer] for layer in range(model.cfg.n_layers)]), direction)


def _other_shares(
    model: HookedModel | Any, pairs: PromptPairs, cache: ActivationCache, direction: Tensor
) -> dict[str, Float[Tensor, "batch"]]:
    bias = cache.output_biases(include_mlp_biases=False)
    vectors = {"embed": cache["hook_embed"]}
    if "hook_pos_embed" in cache:
        vectors["pos_embed"] = cache["hook_pos_embed"]
    vectors["b_O"] = bias.expand_as(vectors["embed"])
    parts = {name: _shares(cache, vector[None], direction)[0] for name, vector in vectors.items()}
    norm_bias = getattr(model.ln_final, "b", None)
    if norm_bias is not None:
        parts["ln_final.b"] = direction @ (model.W_U.T.to(direction) @ norm_bias.to(direction))
    return parts | {"b_U": direction @ model.b_U.to(direction)}


def _wide(model: HookedModel | Any) -> torch.dtype:
    return torch.promote_types(model.dtype, torch.float32)


def _provenance(model: HookedModel | Any, pairs: PromptPairs) -> provenance.Provenance:
    return provenance.of(model, prompts=pairs, metric="logit_diff")
