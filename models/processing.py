"""Weights rewritten to be easier to read, with the same predictions.

What a model computes does not fix its weights: a gain can sit in the norm or in the weights behind it, a layer norm
takes out what is written along the mean direction, attention that sums to one passes a value bias on whole. Each
function here makes one such choice, in place, as HookedTransformer's `from_pretrained` does (Elhage et al. 2021,
transformer-circuits.pub/2021/framework; TransformerLens, `further_comments.md`):

    fold_norms              W ← W gain, b ← b + W (norm bias); behind a layer norm W is centred too   same logits
    fold_value_biases       b_O ← b_O + Σ_heads b_V W_O, b_V ← 0                                      same logits
    centre_writing_weights  W_E, W_pos, W_O, b_O, W_out, b_out: each minus its mean over d_model      same logits
    centre_unembed          W_U, b_U: each minus its mean over the vocabulary                         same probabilities
    refactor_attention      W_Q W_K^T and W_V W_O by orthogonal factors and their singular values     same logits

What would change the predictions of a model is refused before anything changes. Arithmetic is in float32 at least,
one matrix at a time; hooks stay attached; tied embeddings are untied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import LabError
from interp.factored_matrix import FactoredMatrix
from interp.shares import norms_the_stream
from models.config import TransformerConfig
from models.embedding import Unembed
from models.norm import LayerNorm, Norm, RMSNorm
from models.positions import LearnedPositions

if TYPE_CHECKING:
    from models.gpt import GPT

Reader = nn.Linear | Unembed
Gained = LayerNorm | RMSNorm


def process_weights(
    model: GPT,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
    refactor_factored_attn_matrices: bool = False,
) -> dict[str, str]:
    """The steps that are asked for, in place; gives those that were left out, each with its reason.

    Names and defaults are HookedTransformer's. A default step that would change the predictions is left out;
    `refactor_factored_attn_matrices`, which nobody gets without asking, is refused instead.

    Raises:
        LabError: the attention of this model cannot be refactored. Nothing was changed then.
    """
    asked = {
        "fold_ln": fold_ln,
        "fold_value_biases": fold_value_biases,
        "center_writing_weights": center_writing_weights,
        "center_unembed": center_unembed,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    if refactor_factored_attn_matrices:
        _refuse(_against_refactoring(model.cfg))
    skipped = {}
    for name, (against, step) in _STEPS.items():
        if not asked[name]:
            continue
        if reason := against(model.cfg):
            skipped[name] = reason
        else:
            step(model)
    return skipped


@torch.no_grad()
def fold_norms(model: GPT) -> None:
    """Move the gains and biases of norms into the weights that read their output.

    The norms keep centring and scaling: `normalization_type` becomes "LNPre" or "RMSPre". A layer norm's output has
    mean zero, so the mean of what reads it over d_model goes too. Norms of what is written to the stream, and of
    queries and keys, are no linear map's input and keep their gains. A model that is folded already stays as it is.

    Raises:
        LabError: the model has no norms, or they stand on the stream.
    """
    _refuse(_against_folding(model.cfg))
    _untie(model)
    for norm, readers in _norms_and_readers(model):
        for reader in readers:
            _read_through(norm, reader)
        norm.w = None
        if isinstance(norm, LayerNorm):
            norm.b = None
    kind = "LN" if str(model.cfg.normalization_type).startswith("LN") else "RMS"
    _restate(model, f"{kind}Pre")


@torch.no_grad()
def fold_value_biases(model: GPT) -> None:
    """Move the value biases into the output biases: a head's attention sums to one, so it passes its bias on whole."""
    for block in model.blocks:
        attn = block.attn
        if attn.v.bias is None:
            continue
        biases = repeat(attn.b_V, "kv d_head -> (kv group d_head)", group=model.cfg.n_heads // model.cfg.n_kv_heads)
        _add_bias(attn.o, _wide(attn.o.weight) @ _wide(biases))
        attn.v.bias.zero_()
    _restate(model)


@torch.no_grad()
def centre_writing_weights(model: GPT) -> None:
    """Take the mean over d_model from everything that writes to the stream, which every layer norm takes out anyway.

    Sinusoidal positions are no weights and keep theirs.

    Raises:
        LabError: the model has other norms than layer norms before all that reads the stream.
    """
    _refuse(_against_centring_writers(model.cfg))
    _untie(model)
    _centre(model.embed.W_E, -1)
    positions = getattr(model, "pos_embed", None)
    if isinstance(positions, LearnedPositions):
        _centre(positions.W_pos, -1)
    for block in model.blocks:
        for writer in (block.attn.o, *([] if model.cfg.attn_only else [block.mlp.out])):
            _centre(writer.weight, 0)
            if writer.bias is not None:
                _centre(writer.bias, 0)


@torch.no_grad()
def centre_unembed(model: GPT) -> None:
    """Take the mean over the vocabulary from W_U and b_U: all logits of a position move by the same number.

    Raises:
        LabError: the logits are capped, so that the same number before the cap is not the same after it.
    """
    _refuse(_against_centring_unembed(model.cfg))
    _untie(model)
    _centre(model.unembed.weight, 0)
    if model.unembed.bias is not None:
        _centre(model.unembed.bias, 0)


@torch.no_grad()
def refactor_attention(model: GPT) -> None:
    """Give each head the factors of its singular values: W_Q and W_K columns of equal length, W_O orthonormal rows.

    W_QK = U S V^T, with the biases as one more row, becomes W_Q = U √S, W_K = V √S; W_OV = U S V^T becomes
    W_V = U S, W_O = V^T, once the value biases are folded.

    Raises:
        LabError: queries and keys meet in another way than by their product, or heads share keys and values.
    """
    _refuse(_against_refactoring(model.cfg))
    fold_value_biases(model)
    for block in model.blocks:
        attn = block.attn
        for linear in (attn.q, attn.k, attn.v, attn.o):
            _add_bias(linear, torch.zeros_like(_wide(linear.weight[:, 0])))
        queries = torch.cat([_wide(attn.W_Q), _wide(attn.b_Q)[:, None]], 1)
        keys = torch.cat([_wide(attn.W_K), _wide(attn.b_K)[:, None]], 1)
        queries, keys = FactoredMatrix(queries, keys.mT).make_even().pair
        for linear, even in ((attn.q, queries), (attn.k, keys.mT)):
            linear.weight.copy_(rearrange(even[:, :-1], "head model d_head -> (head d_head) model"))
            linear.bias.copy_(rearrange(even[:, -1], "head d_head -> (head d_head)"))
        circuit = FactoredMatrix(_wide(attn.W_V), _wide(attn.W_O))
        attn.v.weight.copy_(rearrange(circuit.collapse_r(), "head model d_head -> (head d_head) model"))
        attn.o.weight.copy_(rearrange(circuit.V, "head model d_head -> model (head d_head)"))
    _restate(model)


def _against_folding(cfg: TransformerConfig) -> str:
    if norms_the_stream(cfg):
        return "norms stand on the stream, which goes on with their gains"
    return "there are no norms to fold" if cfg.normalization_type is None else ""


def _against_centring_writers(cfg: TransformerConfig) -> str:
    if not str(cfg.normalization_type).startswith("LN"):
        kind = "without norms" if cfg.normalization_type is None else "with RMS norms"
        return f"{kind} the mean of the stream is read like any other direction; only layer norms take it out"
    if cfg.norm_places != "pre":
        return f"with norm_places={cfg.norm_places!r} a norm comes after the weights that would be centred"
    return ""


def _against_centring_unembed(cfg: TransformerConfig) -> str:
    if cfg.output_logits_soft_cap is None:
        return ""
    return f"logits capped at {cfg.output_logits_soft_cap} do not all move by the same number"


def _against_refactoring(cfg: TransformerConfig) -> str:
    if cfg.positional_embedding_type == "rotary":
        return "rotary positions turn queries and keys before their product"
    if cfg.n_kv_heads != cfg.n_heads:
        return f"{cfg.n_heads} heads share {cfg.n_kv_heads} heads of keys and values"
    if cfg.head_size > cfg.d_model:
        return f"heads of d_head={cfg.d_head} are wider than d_model={cfg.d_model}"
    return ""


def _refuse(reason: str) -> None:
    if reason:
        raise LabError(f"this model's weights cannot be rewritten so: {reason}.  Leave this step of processing out.")


_STEPS: dict[str, tuple[Callable[[TransformerConfig], str], Callable[[GPT], None]]] = {
    "fold_ln": (_against_folding, fold_norms),
    "fold_value_biases": (lambda cfg: "", fold_value_biases),
    "center_writing_weights": (_against_centring_writers, centre_writing_weights),
    "center_unembed": (_against_centring_unembed, centre_unembed),
    "refactor_factored_attn_matrices": (_against_refactoring, refactor_attention),
}


def _norms_and_readers(model: GPT) -> Iterator[tuple[Gained, list[Reader]]]:
    """Every norm before something that reads the stream, while it has a gain, and the maps that read it."""
    for block in model.blocks:
        yield from _with_gain(block.ln1, [block.attn.q, block.attn.k, block.attn.v])
        if not model.cfg.attn_only:
            yield from _with_gain(block.ln2, [block.mlp.in_, *([block.mlp.gate] if model.cfg.gated_mlp else [])])
    yield from _with_gain(model.ln_final, [model.unembed])


def _with_gain(norm: Norm, readers: list[Reader]) -> Iterator[tuple[Gained, list[Reader]]]:
    if isinstance(norm, Gained) and norm.w is not None:
        yield norm, readers


def _read_through(norm: Gained, reader: Reader) -> None:
    """W (gain x + bias) + b = (W gain) x + (W bias + b), and W less its mean for an x of mean zero."""
    weight, gain = _wide(reader.weight), norm.gain
    assert gain is not None
    if isinstance(norm, LayerNorm) and norm.b is not None:
        _add_bias(reader, weight @ norm.b.to(weight))
    weight.mul_(gain)
    if isinstance(norm, LayerNorm):
        weight.sub_(weight.mean(-1, keepdim=True))
    reader.weight.copy_(weight)  # of itself where it is wide already


def _centre(weight: Tensor, axis: int) -> None:
    wide = _wide(weight)
    weight.copy_(wide.sub_(wide.mean(axis, keepdim=True)))


def _add_bias(linear: Reader, bias: Float[Tensor, "out"]) -> None:
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.zeros_like(bias, dtype=linear.weight.dtype), linear.weight.requires_grad)
    linear.bias.copy_(linear.bias + bias)


def _wide(weight: Tensor) -> Tensor:
    """The weight itself, or a copy in float32 where its dtype is narrower."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _untie(model: GPT) -> None:
    if model.unembed.weight is model.embed.W_E:
        model.unembed.weight = nn.Parameter(model.embed.W_E.clone(), model.embed.W_E.requires_grad)
        _restate(model)


def _restate(model: GPT, normalization_type: str | None = None) -> None:
    """Make the config say what the model now is.

    Maps whose biases the config knows by one name all have one as soon as one of them has.
    """
    cfg, blocks = model.cfg, model.blocks
    inputs = _share_biases([linear for block in blocks for linear in (block.attn.q, block.attn.k, block.attn.v)])
    outputs = _share_biases([block.attn.o for block in blocks])
    mlps = [] if cfg.attn_only else [part for block in blocks for part in block.mlp.children()]
    linears = [part for part in mlps if isinstance(part, nn.Linear)]
    model._cfg = replace(
        cfg,
        attn_bias=inputs,
        attn_out_bias=outputs,
        mlp_bias=_share_biases(linears) or cfg.mlp_bias,
        unembed_bias=model.unembed.bias is not None,
        tie_embeddings=model.unembed.weight is model.embed.W_E,
        normalization_type=normalization_type or cfg.normalization_type,
    )
    for module in model.modules():
        if isinstance(vars(module).get("cfg"), TransformerConfig):
            module.cfg = model._cfg


def _share_biases(linears: list[nn.Linear]) -> bool:
    """Whether any of the maps has a bias; then all have, some of zeros."""
    found = any(linear.bias is not None for linear in linears)
    for linear in linears if found else ():
        _add_bias(linear, torch.zeros_like(linear.weight[:, 0]))
    return found
