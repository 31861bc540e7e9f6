"""`TransformerConfig`: everything that fixes a transformer's shape and arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from interp.errors import LabError, choose
from models.rotary_scaling import RotaryScaling

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "tanh", "identity")


@dataclass(frozen=True)
class TransformerConfig:
    """A frozen, validated description of a transformer; sizes left as None are derived.

    n_layers, n_heads, d_model, d_vocab, n_ctx: blocks, query heads, residual width, vocabulary, longest input.
    d_head: width of a head, by default d_model / n_heads. d_mlp: by default 4 d_model.
    n_key_value_heads: key/value heads shared by groups of query heads (arXiv:2305.13245); None: one each.
    act_fn: of the MLP. gated_mlp: act(gate(x)) * in(x), as in Llama. attn_only: no MLPs.
    parallel_attn_mlp: attention and MLP read the same stream (GPT-J). normalization_type: "LN", "RMS" or None;
    "LNPre" and "RMSPre" have no gains and biases before what reads the stream (see `models.processing`).
    norm_places: "pre" (what attention and MLP read), "post" (what they write, `ln1_post`, `ln2_post`), "both", or
    "stream" (the stream after each addition, as in 2017; then no norm follows the last block).
    norm_gain_offset: added to the gains. embed_scale: of the token vectors.
    positional_embedding_type: "learned", "sinusoidal", "rotary" (first rotary_dim of each head) or "none".
    rotary_adjacent_pairs: coordinates 2i and 2i + 1 turn together, not i and i + rotary_dim / 2. rotary_scaling: see
    `models.rotary_scaling`. attn_types: "global" or "local" for each layer; a query of a local layer sees the last
    window_size positions, itself included, turned with rotary_base_local if there is one and then unscaled.
    qk_norm: RMS norm of queries and keys over each "head" or the whole "width". attn_scale: what scores are divided by,
    sqrt(d_head) by default. attn_scores_soft_cap, output_logits_soft_cap: cap · tanh(x / cap).
    attn_out_bias: of W_O, by default as attn_bias.
    attention_dir: "causal" or "bidirectional". d_vocab_out: number of outputs, by default d_vocab.
    tie_embeddings: unembed with the embedding matrix. default_prepend_bos: put BOS before text.
    init_range: standard deviation of fresh weights. seed: of fresh weights.
    dtype, device: of the weights; `model.cfg` always tells the current ones. The device is not saved.

    Raises:
        LabError: sizes that contradict each other, naming both.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    n_ctx: int
    d_head: int | None = None
    d_mlp: int | None = None
    n_key_value_heads: int | None = None
    act_fn: str = "gelu_new"
    gated_mlp: bool = False
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    normalization_type: str | None = "LN"
    eps: float = 1e-5
    positional_embedding_type: str = "learned"
    rotary_base: float = 10000.0
    rotary_dim: int | None = None
    attention_dir: str = "causal"
    rotary_adjacent_pairs: bool = False
    rotary_scaling: RotaryScaling | None = None
    rotary_base_local: float | None = None
    attn_types: tuple | None = None
    window_size: int | None = None
    qk_norm: str | None = None
    attn_scale: float | None = None
    attn_scores_soft_cap: float | None = None
    output_logits_soft_cap: float | None = None
    norm_places: str = "pre"
    norm_gain_offset: float = 0.0
    embed_scale: float | None = None
    attn_bias: bool = True
    attn_out_bias: bool | None = None
    mlp_bias: bool = True
    unembed_bias: bool = False
    tie_embeddings: bool = False
    d_vocab_out: int | None = None
    default_prepend_bos: bool = True
    init_range: float = 0.02
    seed: int | None = None
    model_name: str = "gpt"
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx"):
            self._check_positive(name)
        for name in ("d_head", "d_mlp", "n_key_value_heads", "d_vocab_out", "rotary_dim", "window_size"):
            if getattr(self, name) is not None:
                self._check_positive(name)
        self._check_types()
        self._derive()
        choose("activation function", self.act_fn, ACTIVATIONS)
        choose("positional_embedding_type", self.positional_embedding_type, _POSITIONS)
        choose("attention_dir", self.attention_dir, ("causal", "bidirectional"))
        choose("norm_places", self.norm_places, ("pre", "post", "both", "stream"))
        if self.qk_norm is not None:
            choose("qk_norm", self.qk_norm, ("head", "width"))
        self._check_local()
        if self.normalization_type not in ("LN", "LNPre", "RMS", "RMSPre", None):
            raise LabError(
                f"normalization_type={self.normalization_type!r}; expected 'LN', 'LNPre', 'RMS', 'RMSPre' or None."
            )
        self._check_sizes()

    def _check_types(self) -> None:
        for field in fields(self):
            kind, _, optional = str(field.type).partition(" | ")
            value = getattr(self, field.name)
            types, name = _TYPES[kind]
            if not isinstance(value, types) and not (optional and value is None):
                raise LabError(f"{field.name}={value!r}; expected {name}{' or None' if optional else ''}.")

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or value < 1:
            raise LabError(f"{name}={value!r}; expected a positive integer.")

    def _derive(self) -> None:
        derive = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 the one write to a frozen config
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise LabError(
                    f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; "
                    "choose sizes that divide or give d_head."
                )
            derive("d_head", self.d_model // self.n_heads)
        if self.d_mlp is None:
            derive("d_mlp", 4 * self.d_model)
        if self.d_vocab_out is None:
            derive("d_vocab_out", self.d_vocab)
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            derive("rotary_dim", self.d_head)

    def _check_local(self) -> None:
        kinds = self.attn_types
        if kinds is not None and (len(kinds) != self.n_layers or not set(kinds) <= {"global", "local"}):
            raise LabError(f"attn_types={kinds!r}; expected 'global' or 'local' for each of {self.n_layers} layers.")
        if kinds is not None and "local" in kinds and (self.window_size is None or self.attention_dir != "causal"):
            raise LabError("local layers need a window_size and causal attention.")
        if self.norm_gain_offset and self.normalization_type not in ("RMS", "RMSPre"):
            raise LabError(f"norm_gain_offset goes with RMS norms; given {self.normalization_type!r}.")
        if self.qk_norm is not None and self.positional_embedding_type != "rotary":
            raise LabError(f"qk_norm goes with rotary positions; given {self.positional_embedding_type!r}.")

    def _check_sizes(self) -> None:
        if self.norm_places == "stream" and self.parallel_attn_mlp:
            raise LabError("norm_places='stream' norms between attention and MLP; parallel_attn_mlp has no between.")
        if self.n_heads % self.n_kv_heads:
            raise LabError(
                f"n_heads={self.n_heads} is not a multiple of n_key_value_heads={self.n_key_value_heads}; "
                "every key/value head serves the same number of query heads."
            )
        if self.tie_embeddings and self.d_vocab_out != self.d_vocab:
            raise LabError(f"tie_embeddings needs d_vocab_out == d_vocab, given {self.d_vocab_out} and {self.d_vocab}.")
        if self.rotary_dim is not None and (self.rotary_dim % 2 or self.rotary_dim > self.head_size):
            raise LabError(f"rotary_dim={self.rotary_dim}; expected an even number up to d_head={self.d_head}.")

    # The derived sizes as plain integers, for code that computes with them.

    @property
    def head_size(self) -> int:
        assert self.d_head is not None
        return self.d_head

    @property
    def mlp_size(self) -> int:
        assert self.d_mlp is not None
        return self.d_mlp

    @property
    def n_outputs(self) -> int:
        assert self.d_vocab_out is not None
        return self.d_vocab_out

    @property
    def n_kv_heads(self) -> int:
        return self.n_key_value_heads or self.n_heads

    @property
    def out_bias(self) -> bool:
        return self.attn_bias if self.attn_out_bias is None else self.attn_out_bias

    @property
    def score_scale(self) -> float:
        return self.head_size**0.5 if self.attn_scale is None else self.attn_scale

    def layer_type(self, layer: int) -> str:
        """ "global" or "local"."""
        return "global" if self.attn_types is None else self.attn_types[layer]

    @property
    def causal(self) -> bool:
        return self.attention_dir == "causal"

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, ready for JSON; without the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "device"}
        values["rotary_scaling"] = None if self.rotary_scaling is None else asdict(self.rotary_scaling)
        values["attn_types"] = None if self.attn_types is None else list(self.attn_types)
        return values | {"dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """The config of a dictionary.

        Raises:
            LabError: an unknown key (near misses named), a missing one, or contradictory sizes.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            choose("config entry", key, known)
        missing = [name for name in ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx") if name not in values]
        if missing:
            raise LabError(f"the config lacks {', '.join(missing)}; expected at least these sizes.")
        if isinstance(values.get("dtype"), str):
            values = values | {"dtype": dtype_named(values["dtype"])}
        if isinstance(values.get("attn_types"), list):
            values = values | {"attn_types": tuple(values["attn_types"])}
        if isinstance(values.get("rotary_scaling"), dict):
            values = values | {"rotary_scaling": _scaling(values["rotary_scaling"])}
        return cls(**values)


DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_named(name: str) -> torch.dtype:
    """The dtype called `name`.

    Raises:
        LabError: not one that a model runs in.
    """
    return DTYPES[choose("dtype", name, DTYPES)]


def _scaling(values: dict[str, Any]) -> RotaryScaling:
    try:
        return RotaryScaling(**values)
    except TypeError as error:
        raise LabError(f"rotary_scaling={values!r}: {error}.") from None


_TYPES: dict[str, tuple[Any, str]] = {
    "int": (int, "an integer"),
    "float": (int | float, "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a name"),
    "tuple": (tuple, "a tuple of names"),
    "RotaryScaling": (RotaryScaling, "a RotaryScaling"),
    "torch.dtype": (torch.dtype, "a dtype"),
    "torch.device": (torch.device | str, "a device"),
}
_POSITIONS = ("learned", "sinusoidal", "rotary", "none")
