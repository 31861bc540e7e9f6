"""The class `HookedTransformer` itself: what it adds to the lab's GPT, and where it loads from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import LabError
from interp.hook_point import Direction, HookFn, HookHandle, HookPoint
from models.config import TransformerConfig
from models.devices import available, dtype_of
from models.gpt import GPT
from models.hooked_transformer.cache import HookedCache
from models.hooked_transformer.config import FLAGS, HookedTransformerConfig, plain_fields
from models.hooked_transformer.state import HookedState
from models.hooked_transformer.text import HookedText
from models.processing import process_weights


class HookedTransformer(HookedState, HookedText):
    """A `GPT` that scripts written for HookedTransformer take for theirs.

    cfg: a `HookedTransformerConfig`, a dictionary of its fields, or a `TransformerConfig`. tokenizer: the lab's, or a
    fast one of transformers. move_to_device: to `cfg.device`, or without one to the first GPU if there is one.
    default_padding_side: "left" or "right"; it can be changed later as `model.tokenizer.padding_side`.
    """

    cache_class = HookedCache

    def __init__(
        self,
        cfg: TransformerConfig | Mapping[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: str | None = None,
    ) -> None:
        hooked = HookedTransformerConfig.of(cfg)
        best = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(hooked, None, available(hooked.device or best) if move_to_device else None)
        self.init_weights()
        if tokenizer is not None:
            self.set_tokenizer(tokenizer, default_padding_side)
        for flag in FLAGS:
            self._assigned(flag, getattr(hooked, flag))
        hooked.tell(self._assigned)

    @classmethod
    def of(cls, model: GPT, tokenizer: Any = None, default_padding_side: str | None = None) -> HookedTransformer:
        """A HookedTransformer of the same parameters as `model`, not copies of them."""
        with torch.device("meta"):
            hooked = cls(plain_fields(model.cfg) | {"device": None}, move_to_device=False)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            setattr(hooked.get_submodule(owner), leaf, parameter)
        hooked.revision = model.revision
        if tokenizer is not None or model.tokenizer is not None:
            hooked.set_tokenizer(tokenizer or model.tokenizer, default_padding_side)
        return hooked

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_value: int | None = None,
        hf_model: Any = None,
        device: torch.device | str | None = None,
        tokenizer: Any = None,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> HookedTransformer:
        """A trained model by name or path, its weights processed unless told otherwise (see `models.processing`).

        What `models.load` takes, and as hf_model a model of transformers, whose weights are taken then. device: by
        default the first GPU, if there is one. checkpoint_value: the step of an earlier checkpoint. first_n_layers,
        n_ctx: less of the model. A step of the processing that would change the predictions is left out and logged.

        Raises:
            LabError: as `models.load`, or an argument that is not known here.
        """
        from models.hooked_transformer.loading import fetched

        place = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        step = others.pop("checkpoint_label", None) if checkpoint_value is None else checkpoint_value
        version = revision if step is None else step
        precision = dtype_of(others.pop("torch_dtype", dtype))
        model = fetched(model_name, hf_model, available(place), precision, version, first_n_layers, n_ctx, others)
        steps = (fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices)
        left_out = process_weights(model, *steps)
        for step, reason in left_out.items():
            logging.getLogger(__name__).warning("%s was left out: %s", step, reason)
        hooked = cls.of(model, tokenizer, default_padding_side)
        if default_prepend_bos is not None:
            hooked.cfg.default_prepend_bos = default_prepend_bos
        return hooked

    @classmethod
    def from_pretrained_no_processing(cls, model_name: str, **options: Any) -> HookedTransformer:
        """`from_pretrained` with every step of the processing off by default."""
        steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
        return cls.from_pretrained(model_name, **(dict.fromkeys(steps, False) | options))

    # -- the config: one object for the model's life ---------------------------------------------------------

    @property
    def _cfg(self) -> Any:
        return vars(self)["hooked_cfg"]

    @_cfg.setter
    def _cfg(self, cfg: TransformerConfig) -> None:
        if "hooked_cfg" in vars(self):
            self._cfg.take(cfg)
        else:
            vars(self)["hooked_cfg"] = cfg

    @property
    def cfg(self) -> Any:
        """The `HookedTransformerConfig`, with the current device and dtype."""
        return super().cfg

    def _assigned(self, name: str, value: Any) -> None:
        """Do what assigning a field of the config asks for."""
        if name in ("device", "dtype"):
            self.to(value)
        if name not in FLAGS:
            return
        points = [point for each, point in self.hook_dict.items() if each.rpartition(".")[2] in FLAGS[name]]
        shared = self._cfg.n_kv_heads != self._cfg.n_heads
        if value and shared and not points and name in ("use_attn_in", "ungroup_grouped_query_attention"):
            raise LabError(
                f"{name}: the heads of this model share keys and values, which are kept once for each group; "
                "expected use_split_qkv_input, whose points have the axis that the model has."
            )
        for point in points:
            point.on_demand = not value

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention

    # -- hooks ----------------------------------------------------------------------------------------------------

    def select_hooks(self, names: Any) -> list[str]:
        return super().select_hooks(self._meant(names))

    def add_hook(
        self,
        name: Any,
        hook: HookFn,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> list[HookHandle]:
        meant = self._meant(name)
        for each in [meant] if meant in self.hook_dict else self.select_hooks(meant):
            self.check_hooks_to_add(self.hook_dict[each], each, hook, dir, is_permanent, prepend)
        return super().add_hook(meant, hook, dir, is_permanent, level, prepend)

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFn,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """Called before a hook is attached, for a subclass to refuse it; every hook is welcome here."""

    def list_hooks(self) -> dict[str, list[HookHandle]]:
        """The hooks that are attached, forward ones first, by the name of their point."""
        attached = {name: [*point.fwd_hooks, *point.bwd_hooks] for name, point in self.hook_dict.items()}
        return {name: handles for name, handles in attached.items() if handles}

    def _check_names(self, named_hooks: Sequence[tuple[Any, HookFn]]) -> None:
        super()._check_names([(self._meant(name), fn) for name, fn in named_hooks])

    def _meant(self, names: Any) -> Any:
        """What a name or a predicate stands for.

        A predicate means the points of an ordinary run, and others only if it accepts none of those: so
        `lambda name: "hook_q" in name` is not given `hook_q_input`, which has another shape. A block's point by
        TransformerLens 4's name for it, inside the block's attention, is the block's.
        """
        if isinstance(names, str) and names not in self.hook_dict:
            in_block = names.replace(".attn.hook_", ".hook_")
            return in_block if in_block in self.hook_dict else names
        if not callable(names):
            return names
        chosen = {name: point.on_demand for name, point in self.hook_dict.items() if names(name)}
        kept = [name for name, on_demand in chosen.items() if not on_demand] or list(chosen)
        return lambda name: name in kept

    def cache_all(self, cache: dict[str, Tensor] | None, incl_bwd: bool = False, **options: Any) -> None:
        """`add_caching_hooks` everywhere."""
        self.add_caching_hooks(None, incl_bwd, cache=cache, **options)

    def cache_some(self, cache: dict[str, Tensor] | None, names: Any, incl_bwd: bool = False, **options: Any) -> None:
        """`add_caching_hooks` where a predicate says."""
        self.add_caching_hooks(names, incl_bwd, cache=cache, **options)

    def to(self, *args: Any, print_details: bool = True, **kwargs: Any) -> HookedTransformer:
        return super().to(*args, **kwargs)

    def move_model_modules_to_device(self) -> None:
        """To `cfg.device`, where every assignment to it has put them already."""
        self.to(self.cfg.device)

    def mps(self) -> HookedTransformer:
        return self.to(available("mps"))

    @property
    def n_params_total(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def all_head_labels(self) -> list[str]:
        """ "L0H0", "L0H1", ... in the order of `cache.stack_head_results`."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]
