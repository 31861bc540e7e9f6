"""The README's table of errors: `python -m tests.parity.measured`.

For each family random tiny checkpoints that transformers saved (`tests.parity.family_models`: windows and rotary
contexts shorter than the prompts, attention far from flat) run in transformers and here, fused and with the explicit
softmax. float64 and float32: the largest difference of logits and of the stream after every layer, relative to the
largest value; in float64 transformers' float32 parts are widened (`tests.parity.wide`). bfloat16 and
float16: the mean distance of the logits from float64's, ours divided by transformers'.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging as transformers_logging

from interp.stream_points import stream_names
from models import load
from tests.parity import encoder_models
from tests.parity import test_encoder_decoder as translators
from tests.parity.family_models import MAKERS
from tests.parity.test_families import HALVES, SEEDS, half_errors, made, prompts, their_run
from tests.parity.test_huggingface import explicit, fused, loaded

TRANSLATORS = {"t5": translators.t5, "t5 v1.1": translators.t5_v1_1, "bart": translators.bart}


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def worst(family: str, dtype: torch.dtype) -> float:
    """The worst error of a family in a dtype over `SEEDS`, both ways of attention and every layer."""
    found = []
    for seed in SEEDS:
        theirs, tokens = made(family, seed, dtype), prompts(seed)
        ours = loaded(theirs)
        logits, stream = their_run(theirs, tokens)
        for run in (fused, explicit):
            our_logits, our_stream = run(ours, tokens)
            found += [error(a, b) for a, b in zip([our_logits, *our_stream], [logits, *stream], strict=True)]
    return max(found)


@torch.no_grad()
def distance(family: str, dtype: torch.dtype) -> float:
    """Our mean distance from float64 in a dtype of 16 bits, divided by transformers'."""
    ours, theirs = zip(*(half_errors(family, seed, dtype) for seed in SEEDS), strict=True)
    return float(torch.cat(ours).mean() / torch.cat(theirs).mean())


def row(family: str) -> str:
    """A family's row of the table."""
    errors = " | ".join(f"{worst(family, dtype):.1e}" for dtype in (torch.float64, torch.float32))
    return f"| {family} | {errors} | {' | '.join(f'{distance(family, dtype):.3f}' for dtype in HALVES)} |"


@torch.no_grad()
def encoder_row(family: str) -> str:
    """The same of a family of encoders (`tests.parity.encoder_models`), whose streams are those after their norms."""
    cells = []
    for dtype in (torch.float64, torch.float32):
        found = []
        for seed, attention in product(SEEDS, (fused_encoder, explicit_encoder)):
            tokens, (reference, model) = encoder_models.drawn(seed), encoder_pair(family, seed, dtype)
            theirs = reference(input_ids=tokens, output_hidden_states=True)
            found += map(error, attention(model, tokens), [theirs.logits, *theirs.hidden_states])
        cells.append(f"{max(found):.1e}")
    for dtype in HALVES:
        ours, theirs = zip(*(encoder_distances(family, seed, dtype) for seed in SEEDS), strict=True)
        cells.append(f"{sum(ours) / sum(theirs):.3f}")
    return f"| {family} | {' | '.join(cells)} |"


def encoder_pair(family: str, seed: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """transformers' model and ours, of the same folder."""
    with TemporaryDirectory() as folder:
        return encoder_models.saved(family, seed, Path(folder), dtype), load(folder)


def encoder_distances(family: str, seed: int, dtype: torch.dtype) -> tuple[float, float]:
    """The mean distance of our logits from those in float64, and of transformers'; weights are those of 16 bits."""
    tokens, (reference, model) = encoder_models.drawn(seed), encoder_pair(family, seed, dtype)
    ours, theirs = model(tokens).double(), reference(input_ids=tokens).logits.double()
    exact = model.double()(tokens)
    return float((ours - exact).abs().mean()), float((theirs - exact).abs().mean())


def fused_encoder(model: Any, tokens: Tensor) -> list[Tensor]:
    """Logits, and the stream before the first block and after each."""
    logits, cache = model.run_with_cache(tokens, names_filter=stream_names(model.cfg))
    return [logits, *(cache[name] for name in stream_names(model.cfg))]


def explicit_encoder(model: Any, tokens: Tensor) -> list[Tensor]:
    """The same by the softmax step by step."""
    with model.hooks([(f"blocks.{n}.attn.hook_pattern", lambda p, hook: None) for n in range(model.cfg.n_layers)]):
        return fused_encoder(model, tokens)


@torch.no_grad()
def translator_row(family: str) -> str:
    """The same of encoder-decoders, with the streams of both sides (`tests.parity.test_encoder_decoder`)."""
    cells = []
    for dtype in (torch.float64, torch.float32):
        found = []
        for seed in SEEDS:
            theirs, inputs = translators.made(TRANSLATORS[family](seed), seed, dtype), translators.prompts(seed)
            ours, values = translators.loaded(theirs), translators.their_run(theirs, *inputs)
            for attention in (translators.fused, translators.explicit):
                found += map(error, attention(ours, *inputs), values)
        cells.append(f"{max(found):.1e}")
    for dtype in HALVES:
        ours, theirs = zip(*(translator_distances(family, seed, dtype) for seed in SEEDS), strict=True)
        cells.append(f"{sum(ours) / sum(theirs):.3f}")
    return f"| {family} | {' | '.join(cells)} |"


def translator_distances(family: str, seed: int, dtype: torch.dtype) -> tuple[float, float]:
    """As `encoder_distances`, from transformers in float64."""
    exact, (source, target) = (
        translators.made(TRANSLATORS[family](seed), seed, torch.float64),
        translators.prompts(seed),
    )
    for parameter in exact.parameters():
        parameter.copy_(parameter.to(dtype))
    reference = translators.their_run(exact, source, target)[0]
    with TemporaryDirectory() as folder:
        exact.save_pretrained(folder)
        theirs = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()
        ours = load(folder, dtype=dtype)
    logits = ours(source, target), theirs(source, decoder_input_ids=target, use_cache=False).logits
    distances = [float((each.double() - reference).abs().mean()) for each in logits]
    return distances[0], distances[1]


def main() -> None:
    transformers_logging.disable_progress_bar()
    print("| family | float64 | float32 | bfloat16 | float16 |")
    print("|---|---|---|---|---|")
    for family in MAKERS:
        print(row(family), flush=True)
    for family in encoder_models.MAKERS:
        print(encoder_row(family), flush=True)
    for family in TRANSLATORS:
        print(translator_row(family), flush=True)


if __name__ == "__main__":
    main()
