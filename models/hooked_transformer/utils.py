"""The helpers that scripts import beside HookedTransformer: `from models.hooked_transformer import utils`.

Only those that such scripts cannot do without; each does what its namesake of `transformer_lens.utils` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.factored_matrix import FactoredMatrix, composition_scores
from interp.text import visible
from models.loss import next_token_loss
from models.mlp import gelu_new

__all__ = [
    "composition_scores",
    "gelu_new",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_device",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "remove_batch_dim",
    "test_prompt",
    "to_numpy",
    "transpose",
]

_SHORT = {"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"}
_SHORT |= {"mlp_pre": "pre", "mlp_mid": "mid", "mlp_post": "post"}
_PARTS = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_IN_ATTENTION = ("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores")
_IN_MLP = ("pre", "post", "mid", "pre_linear")
_IN_NORM = ("scale", "normalized")


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The hook name of a short name: ("k", 6), ("scale", 4, "ln1"), "embed", or in one word "k6", "scale4ln1".

    Checks nothing: asking a model for a name that it does not have is what raises.

    >>> get_act_name("resid_post", 3), get_act_name("pre5"), get_act_name("normalized", 2, "ln2")
    ('blocks.3.hook_resid_post', 'blocks.5.mlp.hook_pre', 'blocks.2.ln2.hook_normalized')
    """
    if layer is None and layer_type is None and ("." in name or name.startswith("hook_")):
        return name
    if match := re.match(r"([a-z]+)(\d+)(.*)", name):
        name, layer, layer_type = match[1], match[2], match[3]
    name = _SHORT.get(name, name)
    part = _PARTS.get(layer_type or "", layer_type or "")
    part = "attn" if name in _IN_ATTENTION else "mlp" if name in _IN_MLP else part
    if layer is None and name in _IN_NORM:
        part = "ln_final"
    where = [] if layer is None else [f"blocks.{layer}"]
    return ".".join([*where, *([part] if part else []), f"hook_{name}"])


def to_numpy(tensor: Any) -> np.ndarray:
    """The numbers of a tensor, list, number or array, in host memory; bfloat16 as float32."""
    if not isinstance(tensor, Tensor):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def get_corner(tensor: Tensor | FactoredMatrix, n: int = 3) -> Tensor:
    """The first n entries along every axis."""
    return tensor.get_corner(n) if isinstance(tensor, FactoredMatrix) else tensor[(slice(n),) * tensor.ndim]


def remove_batch_dim(tensor: Float[Tensor, "1 *rest"]) -> Float[Tensor, "*rest"]:
    """Without a first axis of size 1; other tensors stay as they are."""
    return tensor.squeeze(0)


def transpose(tensor: Float[Tensor, "*axes a b"]) -> Float[Tensor, "*axes b a"]:
    return tensor.mT


def get_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Tensor | None = None,
    per_token: bool = False,
) -> Tensor:
    """`models.loss.next_token_loss`."""
    return next_token_loss(logits, tokens, None if attention_mask is None else attention_mask.bool(), per_token)


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], per_token: bool = False
) -> Tensor:
    """Whether the likeliest next token is the one that comes: each [batch pos-1], or the share of them."""
    right = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return right if per_token else right.float().mean()


def get_attention_mask(tokenizer: Any, tokens: Int[Tensor, "batch pos"], prepend_bos: bool) -> Int[Tensor, "batch pos"]:
    """1 for real tokens and 0 for padding, as a `HookedTokenizer` tells them apart."""
    return tokenizer.real_tokens(tokens, prepend_bos).to(tokens.dtype)


def rank_answer(
    prompt: str,
    answer: str | Sequence[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print how the model ranks an answer after a prompt: each of its tokens, or the first token of several answers."""
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [each if each.startswith(" ") else f" {each}" for each in answers]
    start = model.to_tokens(prompt, prepend_bos=prepend_bos)
    ids = [model.to_tokens(each, prepend_bos=False)[0] for each in answers]
    ids = ids if len(ids) == 1 else [each[:1] for each in ids]
    ranks = []
    with torch.no_grad():
        for row in ids:
            log_probs = model(torch.cat([start[0], row])[None])[0, start.shape[1] - 1 : -1].float().log_softmax(-1)
            for step, token in enumerate(row.tolist()):
                rank = int((log_probs[step] > log_probs[step, token]).sum())
                ranks.append((model.to_string([token]), rank))
                if print_details:
                    _print_step(model, log_probs[step], token, rank, top_k)
    print(f"Ranks of the answer's tokens: {ranks}")


test_prompt = rank_answer


def _print_step(model: Any, log_probs: Float[Tensor, "d_vocab"], token: int, rank: int, top_k: int) -> None:
    def line(what: str, id_: int) -> str:
        return f"{what}  probability {float(log_probs[id_].exp()):7.2%}  token {visible(model.to_string([id_]))!r}"

    print(line(f"answer, rank {rank}", token))
    for place, best in enumerate(log_probs.topk(min(top_k, len(log_probs))).indices.tolist()):
        print(line(f"  top {place}", best))
