"""What a family of Hugging Face checkpoints is to the lab: a mapping of configs and a table of names.

How to add one in an hour (StarCoder 2, StableLM and Gemma came in by these steps, in a quarter of an hour each):

1. Read the family's `modeling_*.py` in transformers from its decoder layer outwards, and say each difference from
   Llama or GPT-2 as an entry of `TransformerConfig`: norms (kind, places, epsilon), biases of each matrix, activation
   and gate, one stream or two in a block, shared keys, rotation (how much of a head, which pairs, scaling), windows,
   scales and caps, ties. Where there is no such entry, add a small part to the model, never a condition on the family.
2. Read `configuration_*.py` for the defaults: an entry that config.json leaves out has the default of its class, which
   is often not Llama's (`num_key_value_heads`, `tie_word_embeddings`, `hidden_act`), and old files keep rotary entries
   at the top (`rotary.rotary_entries` reads both).
3. Print the names and shapes in `AutoModelForCausalLM.from_config(config).state_dict()` of a tiny config: these are
   what is stored, with `prefix` (the class's `base_model_prefix` and a dot) before all names but the head's.
4. Write `models/pretrained/<family>.py`: `read_config` (refuse with `require` each entry that the lab does not
   compute), `entries` (one `Entry` for each stored tensor), and the `Family`. Families that keep Llama's names take
   `llama.shape` and `llama.table`: `stablelm.py` is an example; `starcoder2.py` has a table of its own, `neox.py` one
   with fused tensors.
5. Add it to `FAMILIES` in `huggingface.py`.
6. Add a maker of tiny configs to `tests/parity/family_models.py`, under a key of `MAKERS`, with everything that the
   family is about switched on for some seed and off for another, the window shorter than `N_CTX`, and no default left
   where another value would show. `pytest tests/parity/test_families.py -k <family>` compares logits and the stream
   with transformers; begin with float64, where a wrong epsilon shows. What `require` refuses goes into
   `tests/models/test_families.py`.
7. `python -m tests.parity.measured` prints its row of the README's table. Name the family in the README and in what
   `interp models` says (`analyses/command_line/views.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from interp.errors import LabError
from models.config import TransformerConfig
from models.pretrained.tensors import StoredTensors

TRY_THE_BRIDGE = 'try backend="transformer-lens", which runs the Hugging Face implementation.'


class UnsupportedError(LabError):
    """A checkpoint that the lab's own code does not compute, but Hugging Face's may."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}  {TRY_THE_BRIDGE}")
        self.what = what


# Hugging Face's names of the activation functions that the lab has, and back.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "identity",
}
ACTIVATIONS_BACK = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

# What a family does without unless its `fixed` says otherwise.
_FEATURES = (
    "rotary_adjacent_pairs", "rotary_scaling", "rotary_base_local", "attn_types", "qk_norm", "attn_scale",
    "attn_scores_soft_cap", "output_logits_soft_cap", "norm_places", "norm_gain_offset", "embed_scale",
    "attn_out_bias",
)  # fmt: skip
_PLAIN = {each.name: each.default for each in fields(TransformerConfig) if each.name in _FEATURES}


@dataclass(frozen=True)
class Entry:
    """One stored tensor and the parameters that it holds, one after the other along its output axis.

    transposed: stored as [in, out], where the lab's Linear layout is [out, in]. rows_from: the first row that is
    used. arrange: puts the rows of [out, ...] in the order of the parameters. leading_axis: stored as [1, ...].
    Two entries may name the same stored tensor.
    """

    stored: str
    parameters: tuple[str, ...]
    transposed: bool = False
    rows_from: int = 0
    arrange: Callable[[Tensor], Tensor] | None = None
    leading_axis: bool = False


@dataclass(frozen=True)
class Family:
    """Checkpoints of one architecture.

    model_types: the `model_type`s of config.json that it covers, its own first. architecture: the class in
    transformers.
    prefix: what a whole model puts before the names of the base model; a bare base model leaves it out.
    fixed: the part of our config that is the same for the whole family. ignored: a regular expression for
    stored tensors that hold no weights.
    read_config: config.json to our config. entries: the table, without prefix for tensors that start with `head`.
    write_config: our config to config.json, for families that models are exported to. head: the unembedding's name.
    outside: other tensors whose names have no prefix. kind: what is built, a name of `models.architectures`.
    with_tensors: the config with what the stored tensors alone say of it. older: endings of names, and what they were
    in earlier checkpoints.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str
    prefix: str
    ignored: str
    fixed: Mapping[str, Any]
    read_config: Callable[[Mapping[str, Any]], Any]
    entries: Callable[[Any], list[Entry]]
    write_config: Callable[[TransformerConfig], dict[str, Any]] | None = None
    head: str = "lm_head"
    outside: tuple[str, ...] = ()
    kind: str = "gpt"
    with_tensors: Callable[[Any, StoredTensors], Any] | None = None
    older: Mapping[str, str] = field(default_factory=dict)

    def obstacles(self, cfg: TransformerConfig) -> list[str]:
        """What in a config of ours this family cannot express."""
        differing = [
            f"{name}={getattr(cfg, name)!r} (must be {value!r})"
            for name, value in {**_PLAIN, **self.fixed}.items()
            if getattr(cfg, name) != value
        ]
        if cfg.n_outputs != cfg.d_vocab:
            differing.append(f"d_vocab_out={cfg.d_vocab_out} (must be d_vocab={cfg.d_vocab})")
        return differing

    def as_stored(self, entry: Entry, stored: StoredTensors) -> Entry:
        """The entry with the older name of its tensor, where the checkpoint has that."""
        for new, old in self.older.items():
            name = entry.stored.removesuffix(new) + old
            if entry.stored.endswith(new) and entry.stored not in stored and name in stored:
                return replace(entry, stored=name)
        return entry

    def prefixed(self, cfg: TransformerConfig, prefix: str) -> list[Entry]:
        """The table with the names as a checkpoint has them."""
        return [
            entry
            if entry.stored.startswith((self.head, *self.outside))
            else replace(entry, stored=prefix + entry.stored)
            for entry in self.entries(cfg)
        ]


def wanted(config: Mapping[str, Any], *names: str) -> Any:
    """The first of these entries of config.json that is there.

    Raises:
        LabError: none is.
    """
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise LabError(f"config.json lacks {' or '.join(map(repr, names))}; is it the config of a whole model?")


def require(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a config whose entries differ from the expected ones (an absent entry is as expected).

    Raises:
        UnsupportedError: naming the entry, its value and the only one that the lab computes.
    """
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise UnsupportedError(
                f"config.json has {name}={config[name]!r}; the lab's own code computes only {name}={value!r}."
            )


def check_shared_embedding(stored: StoredTensors) -> None:
    """Refuse an encoder-decoder whose two sides have embeddings of their own (a copy of the shared one is none).

    Raises:
        UnsupportedError: naming the tensor.
    """
    shared = next((name for name in stored if name.endswith("shared.weight")), None)
    for name in stored:
        if shared is not None and name.endswith("embed_tokens.weight") and not stored.same(shared, name):
            raise UnsupportedError(
                f"{name!r} differs from {shared!r} in {str(stored.label)!r}; expected one embedding."
            )


def activation(name: str) -> str:
    """Our name of an activation function.

    Raises:
        UnsupportedError: the lab has no such function.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedError(
            f"config.json asks for the activation function {name!r}; known: {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]
