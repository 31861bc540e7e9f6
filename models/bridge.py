"""TransformerLens's `TransformerBridge` under the lab's contract.

    model = load("gpt2", backend="transformer-lens")

`Bridge` puts the lab's own hook points before the bridge's. While a forward runs, each lab point with
something attached is joined to the bridge's point for the same activation. So hooks are called with the name
that was asked for, contexts remove what they added, edits in place touch nothing cached, and a name that the
model cannot serve is an error before the forward instead of a hook that never fires.

Weights are the checkpoint's own, neither folded nor centred: logits equal the Hugging Face model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import LabError
from interp.hook_point import HookPoint
from interp.hooks import HookedModule
from models.bridge_points import (
    EXCLUSIVE,
    SWITCHES,
    attached,
    firing_points,
    hand_over_sum_to,
    hand_over_to,
    layer_of,
    needed_switches,
    switched_on,
)
from models.bridge_views import BridgeNorm, config_of, departures, weights_of
from models.config import TransformerConfig
from models.loss import next_token_loss
from models.text import Input, TextMethods
from models.tokenizers import Tokenizer
from models.weights import StackedWeights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Bridge(StackedWeights, TextMethods, HookedModule):
    """A `TransformerBridge` as a `HookedModel`: HookedTransformer's names, shapes and values.

    Every forward runs from the embedding on: a bridge cannot resume. `hook_attn_in` exists where every head
    has its own keys and values, and is exclusive with `hook_q/k/v_input` in one run.

    inner: the wrapped bridge, without processed weights. tokenizer: for text input; without one the model
    takes ids. revision: of the weights, for provenance.

    Warns of an architecture in which components do not add up as the lab's attributions assume; what is not accounted
    for is in `unaccounted`, and attributions that rest on it refuse.

    Raises:
        LabError: the wrapped model is not one stack of blocks with attention and MLP.
    """

    def __init__(
        self, inner: TransformerBridge, tokenizer: Tokenizer | None = None, revision: str | None = None
    ) -> None:
        super().__init__()
        if not hasattr(inner, "blocks"):
            raise LabError(f"{inner.cfg.model_name!r} is not one stack of blocks; expected a decoder-only model.")
        self.inner = inner
        self.tokenizer = tokenizer
        self.revision = revision
        self._cfg = config_of(inner)
        self.blocks = [weights_of(block, self._cfg) for block in inner.blocks]
        self.ln_final = BridgeNorm(inner.ln_final)
        self._joined: set[str] = set()
        self.setup()
        self.eval()
        self.unaccounted = departures(self)
        if self.unaccounted:
            warnings.warn(
                f"{self._cfg.model_name!r} is no plain transformer: {'; '.join(self.unaccounted.values())}. "
                "Patching is not affected.",
                stacklevel=2,
            )

    def setup(self) -> None:
        """Give a hook point of the lab's to every activation that the wrapped model serves."""
        self._targets = firing_points(self.inner, self._cfg)
        on_demand = (*SWITCHES, "unembed.hook_in", "unembed.hook_out")
        self.hook_dict = {name: HookPoint(on_demand=name.endswith(on_demand)) for name in self._targets}
        for name, point in self.hook_dict.items():
            point.name = name
        self.mod_dict = dict(self.hook_dict)
        self.context_level = 0

    def forward(
        self,
        input: Input | Float[Tensor, "batch pos d_model"],
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str = "right",
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
    ) -> Any:
        """Logits Float[Tensor, "batch pos d_vocab"], the next-token loss, both, or None.

        As `models.GPT.forward`: positions count the real tokens of attention_mask, padding may be on either
        side, texts are padded and masked by themselves; stop_at_layer returns the stream entering that block.

        Raises:
            LabError: start_at_layer (the wrapped model would run the blocks before it all the same), ids out of range,
                more positions than n_ctx, a mask of another shape, or `hook_attn_in` hooked together with one of
                `hook_q/k/v_input`.
        """
        if start_at_layer is not None:
            raise LabError(
                f"start_at_layer={start_at_layer}: a TransformerBridge cannot run from a layer; edit its stream with a "
                "hook (interp.edits.write), or load with backend='native'."
            )
        mask = None if attention_mask is None else attention_mask.bool()
        if isinstance(input, str | list):
            tokens, real = self.to_tokens_and_mask(input, prepend_bos, padding_side, truncate=False)
            mask = real if mask is None else mask
        else:
            tokens = input[None] if input.ndim == 1 else input
        self._check(tokens, mask)
        stop = self._stop(stop_at_layer)
        with self._switched_on(), self._joined_before(stop), warnings.catch_warnings():
            # An edited norm is computed step by step; that its last digits may differ is no news here.
            warnings.filterwarnings("ignore", message=r".*hook_scale/hook_normalized")
            output = self._run(tokens, mask, stop)
        if stop is not None or return_type == "logits":
            return output
        if return_type is None:
            return None
        if return_type not in ("loss", "both"):
            raise LabError(f"return_type={return_type!r}; expected 'logits', 'loss', 'both' or None.")
        loss = next_token_loss(output, tokens, mask, loss_per_token)
        return loss if return_type == "loss" else (output, loss)

    def unembed(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        """Logits of a normalised stream.

        Raises:
            LabError: the wrapped model does more to its logits than unembed and cap them.
        """
        if unknown := self.unaccounted.get("logits"):
            raise LabError(f"in {self._cfg.model_name!r} {unknown}; activation_patching and ablation take any model.")
        return self.logits_of(x)

    def logits_of(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        """x W_U + b_U, capped where the config says so."""
        logits, cap = x @ self.W_U + self.b_U, self._cfg.output_logits_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def cfg(self) -> TransformerConfig:
        """The config, with the current device and dtype."""
        if (self._cfg.device, self._cfg.dtype) != (self.device, self.dtype):
            self._cfg = replace(self._cfg, device=self.device, dtype=self.dtype)
        return self._cfg

    @property
    def device(self) -> torch.device:
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_E.dtype

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.inner.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.inner.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.inner.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.inner.b_U

    def to(self, *args: Any, **kwargs: Any) -> Bridge:
        self.inner.to(*args, print_details=False, **kwargs)
        return self

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The Hugging Face model's parameters."""
        return self.inner.named_parameters(prefix, recurse, remove_duplicate)

    def _check(self, tokens: Tensor, mask: Tensor | None) -> None:
        cfg = self._cfg
        if mask is not None and mask.shape != tokens.shape:
            raise LabError(f"attention_mask has shape {tuple(mask.shape)}, expected the input's {tuple(tokens.shape)}.")
        if tokens.shape[1] > cfg.n_ctx:
            raise LabError(
                f"{tokens.shape[1]} positions do not fit the context window of {cfg.n_ctx} (n_ctx); "
                "shorten the prompt, or split it."
            )
        if tokens.numel() and not (tokens.min() >= 0 and tokens.max() < cfg.d_vocab):
            raise LabError(
                f"token ids run from {tokens.min()} to {tokens.max()}; "
                f"expected 0 to {cfg.d_vocab - 1} (d_vocab={cfg.d_vocab})."
            )

    def _stop(self, stop_at_layer: int | None) -> int | None:
        if stop_at_layer is None:
            return None
        stop = stop_at_layer + self._cfg.n_layers if stop_at_layer < 0 else stop_at_layer
        if not 0 <= stop <= self._cfg.n_layers:
            raise LabError(f"layer {stop_at_layer} is out of range; this model has {self._cfg.n_layers} layers.")
        return stop

    def _run(self, tokens: Tensor, mask: Tensor | None, stop: int | None) -> Tensor:
        masked = {} if mask is None else {"attention_mask": mask.long()}
        if stop != self._cfg.n_layers:
            return self.inner(tokens, stop_at_layer=stop, **masked)
        # The bridge has no block to stop before, and would return logits; the last residual is caught instead.
        caught: list[Tensor] = []
        with attached(self._targets[f"blocks.{stop - 1}.hook_resid_post"], lambda x, hook: caught.append(x)):
            self.inner(tokens, **masked)
        return caught[0]

    @contextmanager
    def _joined_before(self, stop: int | None) -> Iterator[None]:
        """While this lasts, the bridge's points call the lab's points that have hooks, as far as layer `stop`."""
        names = [name for name, point in self.hook_dict.items() if point.has_hooks() and name not in self._joined]
        if stop is not None:
            names = [name for name in names if (layer := layer_of(name)) is None or layer < stop]
        with ExitStack() as cleanup:
            for name in names:
                self._joined.add(name)
                cleanup.callback(self._joined.discard, name)
                for where, hook in self._hooks_that_join(name):
                    cleanup.enter_context(attached(self._targets[where], hook))
            yield

    def _hooks_that_join(self, name: str) -> list[tuple[str, Callable[..., Any]]]:
        """What to attach to the bridge's points, by the lab's names, so that the lab's point `name` is passed."""
        point = self.hook_dict[name]
        if not name.endswith("hook_resid_mid"):
            return [(name, hand_over_to(point))]
        block = name.removesuffix("hook_resid_mid")
        keep, hand_over = hand_over_sum_to(point)
        return [(block + "hook_resid_pre", keep), (block + "hook_attn_out", hand_over)]

    @contextmanager
    def _switched_on(self) -> Iterator[None]:
        """While this lasts, the bridge computes what is hooked and otherwise left out."""
        switches = needed_switches([name for name, point in self.hook_dict.items() if point.has_hooks()])
        if switches >= EXCLUSIVE:
            raise LabError(
                "hook_attn_in and hook_q/k/v_input cannot be hooked in one run of a TransformerBridge; "
                "hook hook_q_input, hook_k_input and hook_v_input, or load with backend='native'."
            )
        with switched_on(self.inner, switches):
            yield
