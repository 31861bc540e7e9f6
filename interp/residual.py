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

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from interp.errors import LabError, choose
from interp.shares import check_logits_are_linear, check_parts_reach_the_stream, gain_of

PosSlice = int | slice | Sequence[int] | None
Labelled = Iterator[tuple[str, Tensor]]
MODES = {"all": ("attn_out", "mlp_out"), "attn": ("attn_out",), "mlp": ("mlp_out",)}


class ResidualArithmetic:
    """The residual-stream methods of `ActivationCache`; names and arguments are HookedTransformer's.

    Shapes are written with a batch axis; without one (`remove_batch_dim`) it is absent throughout. `layer`
    counts what comes before it: `layer=l` stops at the input of block l, and None or -1 takes everything.
    `mlp_input` goes on to the input of block l's MLP. `pos_slice` picks positions, an integer drops the axis.
    """

    if TYPE_CHECKING:
        model: Any
        has_batch_dim: bool

        def __getitem__(self, key: Any) -> Tensor: ...
        def __contains__(self, key: object) -> bool: ...

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
        stack = torch.stack([_take(tensor, pos_slice) for _, tensor in parts])
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
            parts.append(("remainder", self._remainder(parts, layer)))
        return self._stack(parts, layer, False, apply_ln, pos_slice, return_labels)

    def get_neuron_results(
        self, layer: int, neuron_slice: slice | Sequence[int] | None = None, pos_slice: PosSlice = None
    ) -> Float[Tensor, "*batch_pos d_mlp d_model"]:
        """What each neuron of one MLP wrote: its activation times its row of W_out."""
        check_parts_reach_the_stream(self.model)
        neurons = slice(None) if neuron_slice is None else neuron_slice
        post = _take(self["mlp_post", layer], pos_slice)[..., neurons]
        return einsum(post, self.model.blocks[layer].mlp.W_out[neurons], "... mlp, mlp model -> ... mlp model")

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
            parts.append(("remainder", self._remainder(parts, layer, pos_slice)))
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
        parts = [(label, _take(tensor, pos_slice)) for label, tensor in self._heads(stop, mlp_input)]
        if expand_neurons:
            parts += self._neurons(stop, None, pos_slice)
        else:
            outputs = self._layer_outputs(stop, mlp_input, MODES["mlp"])
            parts += [(label, _take(tensor, pos_slice)) for label, tensor in outputs]
        parts += [(label, _take(tensor, pos_slice)) for label, tensor in self._embeddings()]
        like = parts[-1][1]
        bias = self.model.accumulated_bias(stop, self._adds_attention(mlp_input), include_mlp_biases=expand_neurons)
        parts.append(("bias", bias.expand_as(like)))
        return self._stack(parts, layer, mlp_input, apply_ln, None, return_labels, scale_pos=pos_slice)

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
        """
        stop = self._layer(layer, mlp_input)
        if batch_slice is not None and has_batch_dim:
            residual_stack = residual_stack[:, batch_slice]
        norm = self._norm(None if stop == self.model.cfg.n_layers else stop, mlp_input)
        if self._reads_unnormalised(stop):
            return residual_stack
        if recompute_ln:
            return getattr(norm, "unhooked", norm)(residual_stack)  # past hooks, which expect the model's own stream
        if self.model.cfg.normalization_type.startswith("LN"):
            residual_stack = residual_stack - residual_stack.mean(-1, keepdim=True)
        scale = (
            self["ln_final.hook_scale"] if stop == self.model.cfg.n_layers else self[self._scale_name(stop, mlp_input)]
        )
        if batch_slice is not None and self.has_batch_dim:
            scale = scale[batch_slice]
        gain = gain_of(norm)
        scaled = residual_stack / _take(scale, pos_slice)
        return scaled if gain is None else scaled * gain

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

    # -- parts, each a (label, tensor) -------------------------------------------------------------------

    def _embeddings(self) -> Labelled:
        yield "embed", self["hook_embed"]
        if "hook_pos_embed" in self:
            yield "pos_embed", self["hook_pos_embed"]

    def _layer_outputs(self, stop: int, mlp_input: bool, kinds: tuple[str, ...]) -> Labelled:
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
            yield "final_post", self["resid_post", n_layers - 1]

    def _heads(self, stop: int, mlp_input: bool = False) -> Labelled:
        check_parts_reach_the_stream(self.model)
        for layer in range(stop + self._adds_attention(mlp_input)):
            if ("result", layer) in self:
                results = self["result", layer]
            else:
                W_O = self.model.blocks[layer].attn.W_O
                results = einsum(self["z", layer], W_O, "... head d_head, head d_head model -> ... head model")
            for head, result in enumerate(results.unbind(-2)):
                yield f"L{layer}H{head}", result

    def _neurons(self, stop: int, neurons: slice | Sequence[int] | None, pos_slice: PosSlice) -> Labelled:
        for layer in range(0 if self.model.cfg.attn_only else stop):
            results = self.get_neuron_results(layer, neurons, pos_slice)
            numbers = range(self.model.cfg.d_mlp)
            kept = numbers if neurons is None else numbers[neurons] if isinstance(neurons, slice) else neurons
            for neuron, result in zip(kept, results.unbind(-2), strict=True):
                yield f"L{layer}N{neuron}", result

    def _remainder(self, parts: list[tuple[str, Tensor]], layer: int | None, pos_slice: PosSlice = None) -> Tensor:
        stop = self._layer(layer)
        whole = self["resid_post", stop - 1] if stop else self["resid_pre", 0]
        return _take(whole, pos_slice) - sum(tensor for _, tensor in parts)

    # -- helpers -----------------------------------------------------------------------------------------

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
        stack = torch.stack([_take(tensor, pos_slice) for _, tensor in parts])
        if apply_ln:
            positions = pos_slice if scale_pos is None else scale_pos
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice=positions)
        return (stack, [label for label, _ in parts]) if return_labels else stack

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

    def _norm(self, layer: int | None, mlp_input: bool) -> Callable[[Tensor], Tensor]:
        if layer is None or layer == self.model.cfg.n_layers:
            return self.model.ln_final
        block = self.model.blocks[layer]
        return block.ln2 if mlp_input else block.ln1

    def _reads_unnormalised(self, stop: int) -> bool:
        """Whether what reads the stream there has no norm before it."""
        only_after = getattr(self.model.cfg, "norm_places", "pre") == "post" and stop < self.model.cfg.n_layers
        return self.model.cfg.normalization_type is None or only_after

    def _scale_name(self, layer: int, mlp_input: bool) -> str:
        return f"blocks.{layer}.{'ln2' if mlp_input else 'ln1'}.hook_scale"

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


def _take(tensor: Tensor, positions: PosSlice) -> Tensor:
    if positions is None:
        return tensor
    wanted = positions if isinstance(positions, int | slice) else torch.as_tensor(positions, device=tensor.device)
    return tensor[..., wanted, :]
