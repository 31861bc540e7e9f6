"""The weights under the names of the field, stacked over layers."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.errors import LabError, choose
from interp.factored_matrix import FactoredMatrix, composition_scores
from interp.shares import check_stream_is_a_sum, norms_what_is_written


class StackedWeights:
    """`model.W_Q` [layer head d_model d_head] and its kin; per layer they are views, `model.blocks[i].attn.W_Q`."""

    blocks: Any  # each has attn and, but for attention-only models, mlp

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.W_E  # type: ignore[attr-defined]

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.pos_embed.W_pos.to(self.W_E)  # type: ignore[attr-defined]

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.unembed.W_U  # type: ignore[attr-defined]

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.unembed.b_U  # type: ignore[attr-defined]

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        return self._stacked("attn", "W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stacked("attn", "W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stacked("attn", "W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        return self._stacked("attn", "W_O")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        return self._stacked("attn", "b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stacked("attn", "b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stacked("attn", "b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        return self._stacked("attn", "b_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stacked("mlp", "W_in")

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stacked("mlp", "W_gate")

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        return self._stacked("mlp", "W_out")

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        return self._stacked("mlp", "b_in")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        return self._stacked("mlp", "b_out")

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q @ W_K^T of every head, [layer head d_model d_model]; shared keys are repeated."""
        return _of_all_layers([block.attn.QK for block in self.blocks])

    @property
    def OV(self) -> FactoredMatrix:
        """W_V @ W_O of every head, [layer head d_model d_model]; shared values are repeated."""
        return _of_all_layers([block.attn.OV for block in self.blocks])

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layer_1 head_1 layer_2 head_2"]:
        """How much of what each head writes reaches the queries ("Q"), keys ("K") or values ("V") of each later head.

        |W_OV · W| / (|W_OV| |W|) in Frobenius norms, with W the later head's W_QK, W_QK^T or W_OV (Elhage et al. 2021);
        0 where the second head is not in a later layer. Norms between the heads are not counted: fold them first.

        Raises:
            LabError: an unknown mode.
        """
        kinds = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}
        scores = composition_scores(self.OV, kinds[choose("mode", mode, kinds)]())
        layers = torch.arange(len(self.blocks), device=scores.device)
        later = rearrange(layers, "first -> first 1 1 1") < rearrange(layers, "second -> second 1")
        return torch.where(later, scores, 0.0)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """The sum of the output biases written before block `layer` (with mlp_input: before its MLP).

        Raises:
            LabError: norms after attention and MLPs, where what biases add differs from place to place, or
                on the stream.
        """
        check_stream_is_a_sum(self)
        attention = [block.attn.b_O for block in self.blocks[: layer + mlp_input]]
        mlps = [block.mlp.b_out for block in self.blocks[:layer] if include_mlp_biases and hasattr(block, "mlp")]
        total = sum([*attention, *mlps], torch.zeros_like(self.W_U[:, 0]))
        if norms_what_is_written(self) and (bool(total.any()) or _has_bias(self.blocks[0].ln1_post)):
            raise LabError(
                "norms come after attention and MLPs in this model, so what biases add differs from place to place.  "
                "Try cache.output_biases(layer)."
            )
        return total

    def _stacked(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])


def _has_bias(norm: Any) -> bool:
    return getattr(norm, "b", None) is not None


def _of_all_layers(matrices: list[FactoredMatrix]) -> FactoredMatrix:
    return FactoredMatrix(torch.stack([each.A for each in matrices]), torch.stack([each.B for each in matrices]))
