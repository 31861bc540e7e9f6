"""The architectures that the lab builds, saves and trains, by the name that a config.json or a recipe gives them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from interp.errors import choose


@dataclass(frozen=True)
class Architecture:
    """A model's class and its config's, each as "module:name", imported when they are asked for."""

    model: str
    config: str

    @property
    def model_class(self) -> type:
        return _found(self.model)

    @property
    def config_class(self) -> Any:
        return _found(self.config)


ARCHITECTURES = {
    "gpt": Architecture("models.gpt:GPT", "models.config:TransformerConfig"),
    "rnn": Architecture("models.rnn:RNNEncoderDecoder", "models.rnn_config:RNNConfig"),
    "bert": Architecture("models.bert:BERT", "models.bert_config:BertConfig"),
    "encoder-decoder": Architecture(
        "models.encoder_decoder:EncoderDecoder", "models.encoder_decoder_config:EncoderDecoderConfig"
    ),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        LabError: an unknown one; near misses named.
    """
    return ARCHITECTURES[choose("architecture", name, ARCHITECTURES)]


def architecture_of(model: nn.Module) -> str:
    """The name of a model's architecture; a class derived from one has its name.

    Raises:
        TypeError: none of the lab's.
    """
    classes = {f"{kind.__module__}:{kind.__qualname__}" for kind in type(model).__mro__}
    for name, known in ARCHITECTURES.items():
        if known.model in classes:
            return name
    raise TypeError(f"{type(model).__name__} is none of the lab's architectures: {', '.join(ARCHITECTURES)}.")


def _found(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
