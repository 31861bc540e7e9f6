"""Three encoder-decoders of one size for one task: what the fixed-size state of a recurrent model costs.

A GRU that hands one vector from encoder to decoder, a GRU with additive attention, and a transformer; 60,000
parameters each, within 2 %. `train_all` trains them on the same batches with the same optimiser settings.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from models.encoder_decoder import EncoderDecoder
from models.encoder_decoder_config import EncoderDecoderConfig
from models.rnn import RNNEncoderDecoder
from models.rnn_config import RNNConfig
from models.training import TrainingConfig, train
from models.zoo.copies import END, START, Copies

PLAIN, ATTENTION, TRANSFORMER = "GRU", "GRU with attention", "transformer"


def models_of_one_size(data: Copies, seed: int) -> dict[str, nn.Module]:
    """The three models, freshly drawn."""
    ids: dict[str, Any] = {"d_vocab": data.d_vocab, "decoder_start_token_id": START, "eos_token_id": END, "seed": seed}
    transformer = EncoderDecoderConfig(
        n_layers=2, n_heads=4, d_model=32, d_mlp=128, n_ctx=data.max_length + 1, init_range=0.1, **ids
    )
    return {
        PLAIN: RNNEncoderDecoder(RNNConfig("GRU", d_model=32, d_hidden=83, **ids)),
        ATTENTION: RNNEncoderDecoder(RNNConfig("GRU", d_model=32, d_hidden=64, d_attn=64, **ids)),
        TRANSFORMER: EncoderDecoder(transformer),
    }


def training_config(steps: int, seed: int) -> TrainingConfig:
    """The same for all three."""
    return TrainingConfig(
        steps=steps, lr=3e-3, warmup_steps=100, betas=(0.9, 0.98), weight_decay=0.0, save_every=200, seed=seed
    )


def train_all(
    data: Copies, steps: int, seed: int, folder: str | os.PathLike[str] | None = None, progress: bool = True
) -> dict[str, nn.Module]:
    """The three models, trained. folder: for logs and checkpoints, from which a run that was stopped goes on.

    Raises:
        LabError: as `models.training.train`.
    """
    trained = models_of_one_size(data, seed)
    for name, model in trained.items():
        place = None if folder is None else Path(folder) / name.replace(" ", "-")
        train(model, data, training_config(steps, seed), place, identity=asdict(data), progress=progress)
    return trained
