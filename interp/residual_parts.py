"""The parts that make up the residual stream of a cached run, each a (label, tensor).

Embeddings, what attention and MLPs wrote, and within that each head's and each neuron's part and the output biases'.
Where a norm comes after attention or MLP (`ln1_post`, `ln2_post`), parts go through it with its scale held as it was
in the run, and its own bias counts among the output biases; so they sum to the stream there too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from interp.collector import as_range
from interp.errors import LabError
from interp.held_norms import HeldNorm, hold
from interp.shares import check_parts_reach_the_stream, check_stream_is_a_sum, norms_what_is_written
from interp.stream_points import after_layers

PosSlice = int | slice | Sequence[int] | None
Labelled = Iterator[tuple[str, Tensor]]
MODES = {"all": ("attn_out", "mlp_out"), "attn": ("attn_out",), "mlp": ("mlp_out",)}


class ResidualParts:
    """What `ResidualArithmetic` stacks and sums. `stop` and `mlp_input`: as `layer` there, from 0 to n_layers."""

    if TYPE_CHECKING:
        model: Any
        has_batch_dim: bool

        def __getitem__(self, key: Any) -> Tensor: ...
        def __contains__(self, key: object) -> bool: ...

    def post_norm(self, layer: int, part: str, pos_slice: PosSlice = None) -> HeldNorm | None:
        """The norm after a block's "attn" or "mlp", its scale held; None where what they compute is what they write."""
        if not norms_what_is_written(self.model):
            return None
        name = {"attn": "ln1_post", "mlp": "ln2_post"}[part]
        norm = getattr(self.model.blocks[layer], name)
        return hold(self.model, norm, take(self[f"{name}.scale", layer], pos_slice))

    def _embeddings(self) -> Labelled:
        yield "embed", self["hook_embed"]
        if "hook_pos_embed" in self:
            yield "pos_embed", self["hook_pos_embed"]

    def _layer_outputs(self, stop: int, mlp_input: bool, kinds: tuple[str, ...]) -> Labelled:
        check_stream_is_a_sum(self.model)
        for layer in range(stop + self._adds_attention(mlp_input)):
            if "attn_out" in kinds:
                yield f"{layer}_attn_out", self["attn_out", layer]
            if "mlp_out" in kinds and layer < stop and not self.model.cfg.attn_only:
                yield f"{layer}_mlp_out", self["mlp_out", layer]

    def _streams(self, stop: int, incl_mid: bool, mlp_input: bool) -> Labelled:
        n_layers = self.model.cfg.n_layers
        has_mid = not self.model.cfg.attn_only and not self._is_parallel()
        for layer in range(min(stop + 1, n_layers)):
            yield f"{layer}_pre", self["resid_pre", layer]
            if has_mid and ((incl_mid and layer < stop) or (mlp_input and layer == stop)):
                yield f"{layer}_mid", self["resid_mid", layer]
        if stop == n_layers:
            yield "final_post", self[after_layers(self.model.cfg), n_layers - 1]

    def _heads(self, stop: int, mlp_input: bool = False) -> Labelled:
        check_parts_reach_the_stream(self.model)
        for layer in range(stop + self._adds_attention(mlp_input)):
            norm = self.post_norm(layer, "attn")
            for head, result in enumerate(self._results(layer).unbind(-2)):
                yield f"L{layer}H{head}", result if norm is None else norm.part(result).to(result.dtype)

    def _results(self, layer: int) -> Float[Tensor, "*batch_pos head d_model"]:
        if ("result", layer) in self:
            return self["result", layer]
        W_O = self.model.blocks[layer].attn.W_O
        return einsum(self["z", layer], W_O, "... head d_head, head d_head model -> ... head model")

    def _neuron_parts(
        self, layer: int, neurons: slice | Sequence[int] | None, pos_slice: PosSlice
    ) -> Float[Tensor, "*batch_pos neuron d_model"]:
        check_parts_reach_the_stream(self.model)
        some = slice(None) if neurons is None else as_range(neurons)
        post = take(self["mlp_post", layer], pos_slice)[..., some]
        parts = einsum(post, self.model.blocks[layer].mlp.W_out[some], "... mlp, mlp model -> ... mlp model")
        norm = self.post_norm(layer, "mlp", pos_slice)
        if norm is None:
            return parts
        return norm.at(rearrange(norm.scale, "... one -> ... 1 one")).part(parts).to(parts.dtype)

    def _neurons(self, stop: int, neurons: slice | Sequence[int] | None, pos_slice: PosSlice) -> Labelled:
        for layer in range(0 if self.model.cfg.attn_only else stop):
            results = self._neuron_parts(layer, neurons, pos_slice)
            numbers = range(self.model.cfg.d_mlp)
            some = slice(None) if neurons is None else as_range(neurons)
            kept = numbers[some] if isinstance(some, slice) else some
            for neuron, result in zip(kept, results.unbind(-2), strict=True):
                yield f"L{layer}N{neuron}", result

    def _normed_biases(self, stop: int, mlp_input: bool, mlps: bool, pos_slice: PosSlice) -> Iterator[Tensor]:
        """The output biases through the norms that come after them, and those norms' own biases."""
        for layer in range(stop + self._adds_attention(mlp_input)):
            block = self.model.blocks[layer]
            parts = [("attn", block.attn.b_O)]
            if mlps and layer < stop and not self.model.cfg.attn_only:
                parts.append(("mlp", block.mlp.b_out))
            for part, bias in parts:
                norm = self.post_norm(layer, part, pos_slice)
                assert norm is not None
                yield norm.part(bias)
                if norm.bias is not None:
                    yield norm.bias

    def _remainder(self, parts: list[tuple[str, Tensor]], stop: int, pos_slice: PosSlice = None) -> Tensor:
        whole = self["resid_post", stop - 1] if stop else self["resid_pre", 0]
        return take(whole, pos_slice) - sum(tensor for _, tensor in parts)

    def _layer(self, layer: int | None, mlp_input: bool = False) -> int:
        n_layers = self.model.cfg.n_layers
        stop = n_layers if layer is None or layer == -1 else layer
        if mlp_input and (self.model.cfg.attn_only or not 0 <= stop < n_layers):
            raise LabError(f"mlp_input needs a layer that has an MLP, given layer={layer} of {n_layers}.")
        if not 0 <= stop <= n_layers:
            raise LabError(f"layer {layer} is out of range; expected 0 to {n_layers}, or -1 for everything.")
        return stop

    def _is_parallel(self) -> bool:
        return bool(getattr(self.model.cfg, "parallel_attn_mlp", False))

    def _adds_attention(self, mlp_input: bool) -> bool:
        """Whether the MLP that `mlp_input` asks for reads its own layer's attention output."""
        return mlp_input and not self._is_parallel()


def take(tensor: Float[Tensor, "*batch_pos width"], positions: PosSlice) -> Float[Tensor, "*kept width"]:
    """Some positions of an activation; all with None, an integer drops the axis, and a tuple bounds a slice."""
    if positions is None:
        return tensor
    positions = as_range(positions)
    wanted = positions if isinstance(positions, int | slice) else torch.as_tensor(positions, device=tensor.device)
    return tensor[..., wanted, :]
