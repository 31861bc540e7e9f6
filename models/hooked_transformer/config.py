"""`HookedTransformerConfig`: the config of a `HookedTransformer`, whose fields can be assigned.

Scripts set flags on `model.cfg` (`model.cfg.use_attn_result = True`) and read fields that HookedTransformer has and the
lab's config has not. Here a flag says which points an unfiltered cache keeps: every hook point fires whenever something
is attached to it, flag or no flag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from interp.errors import LabError, choose
from models.config import TransformerConfig
from models.devices import available, dtype_of
from models.hooked_transformer.fields import OFF, config_of_hooked

FLAGS: dict[str, tuple[str, ...]] = {
    "use_attn_result": ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_attn_in": ("hook_attn_in",),
    "use_hook_mlp_in": ("hook_mlp_in",),
    "ungroup_grouped_query_attention": (),
}
"""HookedTransformer's switches, and the hook points that each brings into an unfiltered cache."""

# Fields that change what a model does next, so that assigning them to a model that is built means something.
_FREE = ("default_prepend_bos", "init_range", "seed", "model_name", "device", "dtype")
_SPELLED = {"initializer_range": "init_range"}
# What scripts note on a config or read from it, and nothing here depends on.
_NOTES: dict[str, Any] = {
    "original_architecture": None,
    "tokenizer_name": None,
    "tokenizer_prepends_bos": False,
    "checkpoint_index": None,
    "checkpoint_label_type": None,
    "checkpoint_value": None,
    "from_checkpoint": False,
    "init_mode": "gpt2",
    "init_weights": True,
    "n_devices": 1,
    "trust_remote_code": False,
    "use_hook_tokens": False,
}
_OWN = tuple(field.name for field in fields(TransformerConfig))


class HookedTransformerConfig(TransformerConfig):
    """A `TransformerConfig` by the names of HookedTransformer's config, its defaults included.

    Before a model is built every field can be assigned; after it those that do not fix its shape. The lab's own names
    are understood too; a complete set of them, as `dataclasses.replace` gives, is taken as it is. The positions that
    HookedTransformer calls "standard" read as "learned".

    Raises:
        LabError: an unknown field (near misses named), sizes that contradict each other, or what the lab does not
            compute; assigning a shape to a model that is built.
    """

    on_assign: Callable[[str, Any], None] | None

    def __init__(self, **values: Any) -> None:
        flags = {name: bool(values.pop(name, False)) for name in FLAGS}
        super().__init__(**(values if values.keys() == set(_OWN) else _translated(values)))
        notes = {name: values.get(name, usual) for name, usual in _NOTES.items()}
        vars(self).update(OFF | flags | notes, on_assign=None)

    @classmethod
    def of(cls, cfg: TransformerConfig | Mapping[str, Any]) -> HookedTransformerConfig:
        """The config of a dictionary, of a `TransformerConfig`, or this very one."""
        if isinstance(cfg, cls):
            return cfg
        return cls(**(plain_fields(cfg) if isinstance(cfg, TransformerConfig) else cfg))

    unwrap = of

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HookedTransformerConfig:
        """The config of a dictionary, in HookedTransformer's words or as `to_dict` gives it."""
        own = set(_OWN) - {"device"} <= values.keys()
        return cls.of(TransformerConfig.from_dict(values) if own else values)

    def __setattr__(self, name: str, value: Any) -> None:
        name = _SPELLED.get(name, name)
        value = _read(name, value)
        choose("config field", name, [*FLAGS, *_OWN, *_NOTES])
        if self.on_assign is None or name in _NOTES or (name in _OWN and getattr(self, name) == value):
            self._put(name, value)
            return
        if name not in (*FLAGS, *_FREE):
            raise LabError(
                f"cfg.{name} = {value!r}: the model was built with {getattr(self, name)!r}; expected one of "
                f"{', '.join((*FLAGS, *_FREE))} to be assigned. Change the config before the model is built."
            )
        self.on_assign(name, value)
        self._put(name, value)

    def _put(self, name: str, value: Any) -> None:
        if name in FLAGS or name in _NOTES:
            vars(self)[name] = value
        else:
            vars(self).update(plain_fields(TransformerConfig(**(plain_fields(self) | {name: value}))))

    def tell(self, on_assign: Callable[[str, Any], None]) -> None:
        """From now on the config is that of a model, which is told of every assignment."""
        vars(self)["on_assign"] = on_assign

    def take(self, cfg: TransformerConfig) -> None:
        """Become equal to another config, keeping flags and notes."""
        vars(self).update(plain_fields(cfg))

    @property
    def initializer_range(self) -> float:
        return self.init_range

    @property
    def use_attn_scale(self) -> bool:
        return self.score_scale != 1

    @property
    def use_qk_norm(self) -> bool:
        return self.qk_norm is not None

    @property
    def use_local_attn(self) -> bool:
        return self.attn_types is not None and "local" in self.attn_types

    @property
    def use_normalization_before_and_after(self) -> bool:
        return self.norm_places == "both"

    @property
    def n_params(self) -> int:
        """Weights of attention and MLPs, without biases, norms and embeddings (Kaplan et al. 2020, §2.1)."""
        attention = self.d_model * self.head_size * self.n_heads * 4
        mlp = 0 if self.attn_only else self.d_model * self.mlp_size * (2 + self.gated_mlp)
        return self.n_layers * (attention + mlp)


def _read(name: str, value: Any) -> Any:
    """Devices and dtypes may be given by name."""
    if not isinstance(value, str):
        return value
    return available(value) if name == "device" else dtype_of(value) if name == "dtype" else value


def _translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The lab's fields from HookedTransformer's. Fresh weights are as wide as there: 0.8 / sqrt(d_model)."""
    own = plain_fields(config_of_hooked(values)) | {"device": _read("device", values.get("device"))}
    if values.get("initializer_range", -1.0) < 0:
        own["init_range"] = 0.8 / own["d_model"] ** 0.5
    return own


def plain_fields(cfg: TransformerConfig) -> dict[str, Any]:
    """The lab's own fields of a config, by name."""
    return {name: getattr(cfg, name) for name in _OWN}
