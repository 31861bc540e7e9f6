"""The logit lens: read the residual stream as if the model ended there.

    logits_l = W_U · LN_f(h_l) + b_U

nostalgebraist 2020, "interpreting GPT: the logit lens". The final norm's statistics are computed afresh for
each stream, so the last row is the model's own logits. `component_lens` reads one component's output instead,
as its share of the final logits (the final norm's scale is that of the whole stream).

Cost: one forward, and one unembedding per row.
It does not show: what later layers could read from a stream; early streams may be in another basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from analyses.labels import token_texts
from interp import provenance
from interp.cache import ActivationCache
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.results import Result, to_numpy
from interp.shares import check_logits_are_linear, check_parts_reach_the_stream, check_stream_is_a_sum
from interp.stream_points import after_layers, stream_names

if TYPE_CHECKING:
    import plotly.graph_objects as go

Prompt = str | Int[Tensor, "pos"] | Int[Tensor, "1 pos"]
LIKELY = 5
COMPONENTS = ("attn_out", "mlp_out", "result")


@dataclass(frozen=True, eq=False, repr=False)
class LensResult(Result):
    """What each layer would predict at each position of one prompt.

    logits: the lens. entropy: of each prediction, in nats. kl: KL(final || row), in nats. `layer` is labelled
    "embed", then by block: its row is the stream after it. likely: the text of the likeliest tokens, the likeliest
    first.
    """

    title = "Logit lens"
    shows = "what the model would predict if it stopped after each layer"
    caveat = "Early streams may hold what later layers read in another basis."
    primary = "entropy"
    unit = "nats"

    logits: Float[np.ndarray, "layer pos d_vocab"]
    entropy: Float[np.ndarray, "layer pos"]
    kl: Float[np.ndarray, "layer pos"]
    tokens: Int[np.ndarray, "pos"]
    likely: Shaped[np.ndarray, "layer pos rank"]

    def plot(self) -> go.Figure:
        """The likeliest token in each cell, coloured by its probability, and its rivals on hover."""
        from analyses.lens_picture import lens_figure

        return lens_figure(self)

    def probabilities(self) -> Float[np.ndarray, "layer pos d_vocab"]:
        return np.exp(_log_softmax(self.logits))

    def probability(self, token: int) -> Float[np.ndarray, "layer pos"]:
        """Probability of one token in every row and position."""
        return np.exp(_log_softmax(self.logits)[..., token])

    def rank(self, token: int) -> Int[np.ndarray, "layer pos"]:
        """How many tokens are more likely than this one; 0 is the top."""
        return (self.logits > self.logits[..., token, None]).sum(-1)

    def top_tokens(self, k: int = 5) -> Int[np.ndarray, "layer pos k"]:
        """Ids of the k most likely tokens, the likeliest first."""
        return np.argsort(-self.logits, axis=-1, kind="stable")[..., :k]

    def loss(self) -> Float[np.ndarray, "layer"]:
        """Mean cross-entropy of the prompt's own next tokens under each row, in nats."""
        log_probs = _log_softmax(self.logits)[:, :-1]
        return -np.take_along_axis(log_probs, self.tokens[None, 1:, None], -1).mean((1, 2))


@dataclass(frozen=True, eq=False, repr=False)
class ComponentLensResult(Result):
    """Each component's share of the logits at each position of one prompt, [component pos d_vocab].

    The shares of all heads, MLPs, embeddings and biases sum to the logits; here are those of one kind.
    """

    title = "Component lens"
    shows = "what each component adds to the logits, the final norm's scale held as it was"
    caveat = "A share can be large and yet cancelled by another component's."
    primary = "logits"

    logits: Float[np.ndarray, "component pos d_vocab"]

    def top_tokens(self, k: int = 5) -> Int[np.ndarray, "component pos k"]:
        """Ids of the k tokens that each component raises most."""
        return np.argsort(-self.logits, axis=-1, kind="stable")[..., :k]


def logit_lens(model: HookedModel | Any, prompt: Prompt) -> LensResult:
    """The lens on one prompt (text or token ids): `.logits[layer, pos, d_vocab]`, layers + 1 rows.

    Row 0 is the embedding, row l + 1 the stream after block l; the last row equals the model's logits.

    Raises:
        LabError: an empty or too long prompt, text for a model without a tokenizer, or more than one prompt.
    """
    tokens = one_prompt(model, prompt)
    names = stream_names(model.cfg)
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, names_filter=names)
        # One row at a time: only the logits of all rows are ever held, not their normalised streams too.
        logits = torch.stack([_unembed(model, cache[name])[0] for name in names])
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        kl = (log_probs[-1].exp() * (log_probs[-1] - log_probs)).sum(-1)
    return LensResult(
        to_numpy(logits),
        to_numpy(entropy),
        to_numpy(kl),
        to_numpy(tokens[0]),
        token_texts(model, to_numpy(logits.topk(min(LIKELY, logits.shape[-1])).indices)),
        labels={"layer": ["embed", *map(str, range(model.cfg.n_layers))], "pos": model.to_str_tokens(tokens[0])},
        provenance=provenance.of(model, prompts=tokens, site=after_layers(model.cfg)),
    )


def component_lens(model: HookedModel | Any, prompt: Prompt, component: str = "attn_out") -> ComponentLensResult:
    """The share of the logits that each attention layer, MLP or head writes, on one prompt.

    share(c) = W_U · (centre(c) · gain / scale), with the final norm's scale as it was for the whole stream.

    component: "attn_out", "mlp_out" (rows "0_attn_out", ...) or "result" (a row per head, "L0H0", ...).

    Raises:
        LabError: as `logit_lens`, another component, or a model where shares do not add up (`interp.shares`).
    """
    choose("component", component, COMPONENTS)
    if component == "mlp_out" and model.cfg.attn_only:
        raise LabError(f"the model {model.cfg.model_name!r} has no MLPs; try component='attn_out' or 'result'.")
    check_stream_is_a_sum(model)
    check_logits_are_linear(model)
    if component == "result":
        check_parts_reach_the_stream(model)
    tokens = one_prompt(model, prompt)
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: _is_read(name, component))
        stack, labels = _components(cache, component)
        scaled = cache.apply_ln_to_stack(stack)[:, 0]
        logits = _at_least_float32(scaled @ model.W_U.to(scaled))
    return ComponentLensResult(
        to_numpy(logits),
        labels={"component": labels, "pos": model.to_str_tokens(tokens[0])},
        provenance=provenance.of(model, prompts=tokens, site=component),
    )


def one_prompt(model: HookedModel | Any, prompt: Prompt) -> Int[Tensor, "1 pos"]:
    """The prompt as one row of token ids on the model's device.

    Raises:
        LabError: an empty prompt, more than one, or one longer than the context window.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise LabError("the prompt is empty; expected text with at least one token.")
        # Bridges cut a long text silently, so its length is checked before it is cut.
        prompt = model.to_tokens(prompt, truncate=False)
    rows = torch.as_tensor(prompt).to(model.device)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[0] != 1 or rows.shape[1] == 0:
        raise LabError(f"expected one prompt with at least one token, given token ids of shape {list(rows.shape)}.")
    if rows.shape[1] > model.cfg.n_ctx:
        raise LabError(f"the prompt has {rows.shape[1]} tokens, the context window {model.cfg.n_ctx}; shorten it.")
    return rows


def _unembed(model: HookedModel | Any, resid: Float[Tensor, "1 pos d_model"]) -> Float[Tensor, "1 pos d_vocab"]:
    return _at_least_float32(model.unembed(model.ln_final(resid)))


def _at_least_float32(logits: Float[Tensor, "*axes d_vocab"]) -> Float[Tensor, "*axes d_vocab"]:
    return logits.float() if logits.itemsize < 4 else logits


def _is_read(name: str, component: str) -> bool:
    wanted = {"attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "result": "attn.hook_z"}[component]
    return name.endswith((wanted, "ln1_post.hook_scale")) or name == "ln_final.hook_scale"


def _components(cache: ActivationCache, component: str) -> tuple[Tensor, Sequence[str]]:
    if component == "result":
        return cache.stack_head_results(return_labels=True)
    return cache.decompose_resid(mode=component.removesuffix("_out"), incl_embeds=False, return_labels=True)


def _log_softmax(logits: Float[np.ndarray, "*axes d_vocab"]) -> Float[np.ndarray, "*axes d_vocab"]:
    return torch.from_numpy(logits.copy()).log_softmax(-1).numpy()
