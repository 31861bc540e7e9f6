"""Circuits read off the weights alone: what attends to what, what is copied where, what one part writes for another.

    QK circuit     W_Q W_K^T              [d_model d_model]    which streams attend to which
    OV circuit     W_V W_O                [d_model d_model]    what is written where attention looks
    full QK        W_E W_Q W_K^T W_E^T    [d_vocab d_vocab]    which tokens attend to which
    full OV        W_E W_V W_O W_U        [d_vocab d_vocab]    which tokens a token raises
    virtual        W_write W_read                              what one component writes for another

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". The norms in between are folded in
(`analyses.stream_weights`) and the model is left as it is. All are `FactoredMatrix`: of rank d_head at most, they are
never multiplied out; `full[tokens].AB` gives some rows.

Cost: no forward.
It does not show: what happens in a run. The scale of a norm, biases, rotations and norms of queries and keys (with
rotary positions W_Q W_K^T is that of two tokens at one place), 1/√d_head and the softmax are left out, and the
embedding is not all that heads behind the first layer read.
"""

from __future__ import annotations

from typing import Any

import torch

from analyses.stream_weights import per_query_head, read, written
from interp.contract import HookedModel
from interp.errors import LabError
from interp.factored_matrix import FactoredMatrix
from interp.sites import Site


def qk_circuit(model: HookedModel | Any) -> FactoredMatrix:
    """W_Q W_K^T of every head, [layer head d_model d_model]: rows are the query's stream, columns the key's."""
    return _of_all_layers([layer_qk(model, layer) for layer in range(model.cfg.n_layers)])


def ov_circuit(model: HookedModel | Any) -> FactoredMatrix:
    """W_V W_O of every head, [layer head d_model d_model]: rows are the stream that is read, columns what is written.

    Raises:
        LabError: a model in which the weights do not say what reaches the stream (`interp.shares`).
    """
    return _of_all_layers([layer_ov(model, layer) for layer in range(model.cfg.n_layers)])


def layer_qk(model: HookedModel | Any, layer: int) -> FactoredMatrix:
    """The QK circuits of one layer, [head d_model d_model].

    Raises:
        LabError: the model has no such layer.
    """
    return FactoredMatrix(read(model, Site("q", layer)), per_query_head(model, read(model, Site("k", layer))).mT)


def layer_ov(model: HookedModel | Any, layer: int) -> FactoredMatrix:
    """The OV circuits of one layer, [head d_model d_model].

    Raises:
        LabError: the model has no such layer, or as `ov_circuit`.
    """
    return FactoredMatrix(per_query_head(model, read(model, Site("v", layer))), written(model, Site("z", layer)))


def full_ov_circuit(model: HookedModel | Any, layer: int, head: int) -> FactoredMatrix:
    """W_E W_V W_O W_U of one head, [d_vocab d_vocab_out]: row t is what attending to token t does to the logits.

    Raises:
        LabError: the model has no such head, or as `ov_circuit`.
    """
    kv_head = _kv_head(model, layer, head)
    values = written(model, Site("embed")) @ read(model, Site("v", layer, head=kv_head))
    return FactoredMatrix(values, written(model, Site("z", layer, head=head)) @ read(model, Site("unembed.out")))


def full_qk_circuit(model: HookedModel | Any, layer: int, head: int) -> FactoredMatrix:
    """W_E W_Q W_K^T W_E^T of one head, [d_vocab d_vocab]: rows are the query's token, columns the key's.

    Raises:
        LabError: the model has no such head.
    """
    kv_head, embed = _kv_head(model, layer, head), written(model, Site("embed"))
    queries, keys = read(model, Site("q", layer, head=head)), read(model, Site("k", layer, head=kv_head))
    return FactoredMatrix(embed @ queries, (embed @ keys).mT)


def virtual_weights(model: HookedModel | Any, sender: Site, receiver: Site) -> FactoredMatrix:
    """What each unit of the sender writes for each unit of the receiver along the stream, [source target].

        virtual_weights(model, Site("z", 0, head=3), Site("k", 1, head=2))        # [d_head d_head]
        virtual_weights(model, Site("mlp_post", 2), Site("unembed.out"))          # [d_mlp d_vocab]

    sender: "embed", "pos_embed", "z" (one head) or "mlp_post". receiver: "q", "k", "v" (one head; for k and v a
    key/value head), "mlp_pre", "mlp_pre_linear" or "unembed.out". Neurons may be picked.

    Raises:
        LabError: sites of other kinds, all heads at once, a receiver that does not come after the sender, or sites that
            the model does not have.
    """
    for site in (sender, receiver):
        if site.head_axis is not None and site.head is None:
            raise LabError(f"virtual weights of {site}: expected one head, as in Site({site.kind!r}, 0, head=0).")
        if site.pos is not None:
            raise LabError(f"virtual weights of {site}: weights have no position; leave out pos.")
    weights = FactoredMatrix(written(model, sender), read(model, receiver))
    if not _comes_after(model, sender, receiver):
        raise LabError(f"{receiver} does not read what {sender} writes: expected a receiver that comes later.")
    return weights


def _of_all_layers(circuits: list[FactoredMatrix]) -> FactoredMatrix:
    return FactoredMatrix(torch.stack([each.A for each in circuits]), torch.stack([each.B for each in circuits]))


def _comes_after(model: HookedModel | Any, sender: Site, receiver: Site) -> bool:
    if sender.layer is None or receiver.layer is None:
        return True
    same_block = sender.kind == "z" and receiver.kind.startswith("mlp") and not model.cfg.parallel_attn_mlp
    return sender.layer < receiver.layer or (sender.layer == receiver.layer and same_block)


def _kv_head(model: HookedModel | Any, layer: int, head: int) -> int:
    """The key/value head of a query head.

    Raises:
        LabError: the model has no such head.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if not (0 <= layer < n_layers and 0 <= head < n_heads):
        raise LabError(
            f"there is no head ({layer}, {head}): {model.cfg.model_name!r} has layers 0 to {n_layers - 1} with heads 0 "
            f"to {n_heads - 1}."
        )
    return head // (n_heads // (getattr(model.cfg, "n_key_value_heads", None) or n_heads))
