"""Small models on disk that the tests of the command line share, and a way to call it."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from click.testing import CliRunner, Result

from analyses.cli import main
from interp.tasks import indirect_object as words
from models import GPT, TransformerConfig
from models.tokenizers import Tokenizer, train_bpe

ROOT = Path(__file__).resolve().parents[2]


def interp(*arguments: object) -> Result:
    """Run `interp` with these arguments in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@cache
def tokenizer() -> Tokenizer:
    """Keeps the words of the ioi task whole."""
    rng = random.Random(0)

    def text() -> str:
        one, other = rng.sample(words.NAMES, 2)
        place, thing = rng.choice(words.PLACES), rng.choice(words.OBJECTS)
        return rng.choice(words.TEMPLATES).format(a=one, b=other, giver=one, place=place, object=thing) + f" {other}"

    return train_bpe((text() for _ in range(2000)), 1000)


def save_town(directory: Path) -> Path:
    """A random model with text."""
    sizes = TransformerConfig(
        n_layers=2, n_heads=4, d_model=16, d_vocab=len(tokenizer()), n_ctx=32, seed=0, init_range=0.2,
        model_name="tiny-town",
    )  # fmt: skip
    return GPT(sizes, tokenizer()).save(directory)


def save_bare(directory: Path) -> Path:
    """A random model without tokenizer."""
    sizes = TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=16, seed=0, model_name="bare")
    return GPT(sizes).save(directory)


RECIPE = """
name = "small"
[data]
kind = "modular"
p = 7
fraction = 0.5
[model]
n_layers = 1
n_heads = 2
d_model = 8
d_vocab_out = 7
n_ctx = 3
[training]
steps = 100000
lr = 1e-3
log_every = 1
eval_every = 0
save_every = 10
"""
