"""Arithmetic on the residual stream: what each component wrote, and what that does to the logits.

The residual stream before the unembedding is a sum: embedding, positions, every head's output, every MLP's
output, the output biases. The final norm centres it (layer norm only), divides by one scale per position,
multiplies by a gain and adds a bias. With the scale frozen at its value for the whole stream the norm is
linear, so every component has an exact share of every logit (Wang et al. 2022, arXiv:2211.00593, §3.1):

    logit[a] - logit[b] = Σ_c (centre(c) · gain / scale) · (W_U[a] - W_U[b])
                        + norm bias · (W_U[a] - W_U[b]) + b_U[a] - b_U[b]

The gain is applied here, so the shares are exact whether or not it was folded into W_U.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from interp.collector import as_range
from interp.errors import LabError, choose
from interp.held_norms import hold
from interp.residual_parts import MODES, PosSlice, ResidualParts, take
from interp.shares import check_logits_are_linear, check_stream_is_a_sum, norms_the_stream, norms_what_is_written


class ResidualArithmetic(ResidualParts):
    """The residual-stream methods of `ActivationCache`; names and arguments are HookedTransformer's.

    Shapes are written with a batch axis; without one (`remove_batch_dim`) it is absent throughout. `layer`
    counts what comes before it: `layer=l` stops at the input of block l, and None or -1 takes everything.
    `mlp_input` goes on to the input of block l's MLP. `pos_slice` picks positions: an integer drops the axis, a
    tuple bounds a slice, a list names them.
    """

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """The residual stream after each layer: Float[Tensor, "component batch pos d_model"].

        apply_ln: apply the norm before `layer`; the final one with each stream's own statistics, as the
        logit lens does.
        Labels: "0_pre", "0_mid", ..., "final_post".
        """
        stop = self._layer(layer, mlp_input)
        parts = list(self._streams(stop, incl_mid, mlp_input))
        labels = [label for label, _ in parts]
        stack = torch.stack([take(tensor, pos_slice) for _, tensor in parts])
        if apply_ln:
            final = stop == self.model.cfg.n_layers
            stack = self.apply_ln_to_stack(stack, stop, mlp_input, pos_slice, recompute_ln=final)
        return (stack, labels) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """What each layer wrote: embeddings, attention and MLP outputs, Float[Tensor, "component batch pos d_model"].

        mode: "all", "attn" or "mlp". Sums to the residual stream when everything is included.

        Raises:
            LabError: norms stand on the stream, which is no sum then.
        """
        kinds = MODES[choose("mode", mode, MODES)]
        embeds = self._embeddings() if incl_embeds else ()
        parts = [*embeds, *self._layer_outputs(self._layer(layer, mlp_input), mlp_input, kinds)]
        return self._stack(parts, layer, mlp_input, apply_ln, pos_slice, return_labels)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each head wrote, Float[Tensor, "component batch pos d_model"], labelled "L0H0", "L0H1", ...

        Needs `z` (or `result`) of the layers before `layer`. incl_remainder: a last component with the rest of
        the stream, so that the sum is the stream.
        """
        parts = list(self._heads(self._layer(layer)))
        if incl_remainder:
            parts.append(("remainder", self._remainder(parts, self._layer(layer))))
        return self._stack(parts, layer, False, apply_ln, pos_slice, return_labels)

    def get_neuron_results(
        self, layer: int, neuron_slice: slice | Sequence[int] | None = None, pos_slice: PosSlice = None
    ) -> Float[Tensor, "*batch_pos d_mlp d_model"]:
        """What each neuron of one MLP wrote: its activation times its row of W_out, through the norm after, if any."""
        return self._neuron_parts(layer, neuron_slice, pos_slice)

    def stack_neuron_results(
        self,
        layer: int | None = -1,
        pos_slice: PosSlice = None,
        neuron_slice: slice | Sequence[int] | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
    ) -> Any:
        """What each neuron wrote, Float[Tensor, "component batch pos d_model"], labelled "L0N0", ...

        Large: layers x d_mlp x batch x pos x d_model numbers; slice the neurons or the positions.
        """
        parts = list(self._neurons(self._layer(layer), neuron_slice, pos_slice))
        if incl_remainder:
            parts.append(("remainder", self._remainder(parts, self._layer(layer), pos_slice)))
        return self._stack(parts, layer, False, apply_ln, None, return_labels, scale_pos=pos_slice)

    def get_full_resid_decomposition(
        self,
        layer: int | None = -1,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        return_labels: bool = False,
    ) -> Any:
        """Heads, neurons (or MLP outputs), embeddings and the sum of the biases: the whole stream, exactly.

        Float[Tensor, "component batch pos d_model"]; the last label is "bias".
        """
        stop = self._layer(layer, mlp_input)
        parts = [(label, take(tensor, pos_slice)) for label, tensor in self._heads(stop, mlp_input)]
        if expand_neurons:
            parts += self._neurons(stop, None, pos_slice)
        else:
            outputs = self._layer_outputs(stop, mlp_input, MODES["mlp"])
            parts += [(label, take(tensor, pos_slice)) for label, tensor in outputs]
        parts += [(label, take(tensor, pos_slice)) for label, tensor in self._embeddings()]
        bias = self.output_biases(layer, mlp_input, expand_neurons, pos_slice)
        like = parts[-1][1]
        parts.append(("bias", bias.to(like.dtype).expand_as(like)))
        return self._stack(parts, layer, mlp_input, apply_ln, None, return_labels, scale_pos=pos_slice)

    def output_biases(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        include_mlp_biases: bool = True,
        pos_slice: PosSlice = None,
    ) -> Float[Tensor, "*#batch_pos d_model"]:
        """What the output biases added to the stream before `layer`.

        One vector for all places, but where a norm comes after attention and MLPs one for each.
        """
        stop = self._layer(layer, mlp_input)
        if not norms_what_is_written(self.model):
            return self.model.accumulated_bias(stop, self._adds_attention(mlp_input), include_mlp_biases)
        biases = self._normed_biases(stop, mlp_input, include_mlp_biases, pos_slice)
        return sum(biases, torch.zeros_like(self.model.W_U[:, 0]))

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *batch_pos d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
        batch_slice: int | slice | Sequence[int] | None = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Float[Tensor, "component *kept d_model"]:
        """The norm before `layer` (None: the final norm) as the linear map that it was for the whole stream.

        Centres (layer norm only), divides by the cached scale and multiplies by the gain. The norm's bias is
        not added: it belongs to no component (see `unembed_bias_attrs`). pos_slice: the positions that the stack
        holds. batch_slice: the prompts to take, of the stack too if it has a batch axis (`has_batch_dim`).
        recompute_ln: the whole norm, bias included, with each component's own statistics instead.

        Raises:
            LabError: the final norm without recompute_ln where norms stand on the stream, which has no components.
        """
        stop = self._layer(layer, mlp_input)
        if batch_slice is not None and has_batch_dim:
            residual_stack = residual_stack[:, as_range(batch_slice)]
        norm = self._norm(None if stop == self.model.cfg.n_layers else stop, mlp_input)
        if self._reads_unnormalised(stop, mlp_input):
            return residual_stack
        if recompute_ln:
            return getattr(norm, "unhooked", norm)(residual_stack)  # past hooks, which expect the model's own stream
        if stop == self.model.cfg.n_layers:
            check_stream_is_a_sum(self.model)
        scale = self[self._scale_name(stop, mlp_input)]
        if batch_slice is not None and self.has_batch_dim:
            scale = scale[as_range(batch_slice)]
        return hold(self.model, norm, take(scale, pos_slice)).part(residual_stack)

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *batch_pos d_model"],
        tokens: Any,
        incorrect_tokens: Any = None,
        pos_slice: PosSlice = None,
        batch_slice: int | slice | Sequence[int] | None = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component *kept"]:
        """Each component's share of a logit, or of the difference from `incorrect_tokens`' logit.

        tokens: a token string, an id, or ids of shape [batch] or [batch pos]. With a full decomposition,
        the sum over components plus `unembed_bias_attrs(tokens, incorrect_tokens)` is the logit exactly.
        """
        check_logits_are_linear(self.model)
        scaled = self.apply_ln_to_stack(
            residual_stack, pos_slice=pos_slice, batch_slice=batch_slice, has_batch_dim=has_batch_dim
        )
        directions = self._directions(tokens, incorrect_tokens)
        directions = directions.to(scaled.dtype)  # a norm runs in float32 at least
        if directions.ndim == 2 and scaled.ndim == 4:  # one answer per prompt, every position
            directions = rearrange(directions, "batch model -> batch 1 model")
        return einsum(scaled, directions, "component ... model, ... model -> component ...")

    def unembed_bias_attrs(self, tokens: Any, incorrect_tokens: Any = None) -> Float[Tensor, "*batch"]:
        """What the final norm's bias and b_U add to a logit (or logit difference), whatever the prompt."""
        constant = self._directions(tokens, incorrect_tokens) @ self._final_norm_bias()
        b_U = self.model.b_U
        constant = constant + b_U[self._ids(tokens)]
        return constant if incorrect_tokens is None else constant - b_U[self._ids(incorrect_tokens)]

    def _stack(
        self,
        parts: list[tuple[str, Tensor]],
        layer: int | None,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: PosSlice,
        return_labels: bool,
        scale_pos: PosSlice = None,
    ) -> Any:
        if not parts:
            raise LabError(
                f"layer={layer} leaves no components to stack; expected 1 to {self.model.cfg.n_layers} or -1."
            )
        stack = torch.stack([take(tensor, pos_slice) for _, tensor in parts])
        if apply_ln:
            positions = pos_slice if scale_pos is None else scale_pos
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice=positions)
        return (stack, [label for label, _ in parts]) if return_labels else stack

    def _norm(self, layer: int | None, mlp_input: bool) -> Callable[[Tensor], Tensor]:
        if layer is None or layer == self.model.cfg.n_layers:
            return self.model.ln_final
        block = self.model.blocks[layer]
        return block.ln2 if self._second(mlp_input) else block.ln1

    def _second(self, mlp_input: bool) -> bool:
        """Whether a block's second norm comes before the input. With norms on the stream the MLP reads the first."""
        return mlp_input and not norms_the_stream(self.model.cfg)

    def _reads_unnormalised(self, stop: int, mlp_input: bool) -> bool:
        """Whether what reads the stream there has no norm before it."""
        if norms_the_stream(self.model.cfg):
            return not mlp_input and stop < self.model.cfg.n_layers
        only_after = getattr(self.model.cfg, "norm_places", "pre") == "post" and stop < self.model.cfg.n_layers
        return self.model.cfg.normalization_type is None or only_after

    def _scale_name(self, layer: int, mlp_input: bool) -> str:
        if layer == self.model.cfg.n_layers:
            return "ln_final.hook_scale"
        return f"blocks.{layer}.{'ln2' if self._second(mlp_input) else 'ln1'}.hook_scale"

    def _final_norm_bias(self) -> Tensor:
        bias = getattr(self.model.ln_final, "b", None)
        return torch.zeros_like(self.model.W_U[:, 0]) if bias is None else bias

    def _directions(self, tokens: Any, incorrect_tokens: Any) -> Float[Tensor, "*batch d_model"]:
        directions = self.model.W_U.T[self._ids(tokens)]
        if incorrect_tokens is not None:
            directions = directions - self.model.W_U.T[self._ids(incorrect_tokens)]
        return directions

    def _ids(self, tokens: Any) -> Tensor:
        if isinstance(tokens, str):
            tokens = self.model.to_single_token(tokens)
        return torch.as_tensor(tokens, device=self.model.W_U.device)
