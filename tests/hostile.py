"""A model whose tokens would like to be markup."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from interp import PromptPairs
from models import GPT, TransformerConfig
from models.tokenizers import Tokenizer

SCRIPT = "</script><img src=x onerror=window.harmed=1>"
TOKENS = (
    "<bos>",
    SCRIPT,
    "<!--<script>",
    "&lt;b&gt;",
    '"onmouseover="window.harmed=1',
    "%{y}${x}",
    " the",
    " the ",
    "\n",
    "\u202e\u2028",
    "</style></title><svg onload=window.harmed=1>",
)


def hostile_model() -> GPT:
    """Random weights, two layers of two heads, one token for each of `TOKENS`."""
    core = Core(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token=TOKENS[0]))
    core.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    core.decoder = decoders.Fuse()
    torch.manual_seed(0)
    cfg = TransformerConfig(
        n_layers=2, n_heads=2, d_model=16, d_vocab=len(TOKENS), n_ctx=24, init_range=0.5, model_name=SCRIPT
    )
    return GPT(cfg, tokenizer=Tokenizer(core)).eval()


def hostile_pairs(model: GPT | None = None) -> PromptPairs:
    """Three pairs of which one is padded; the hostile token stands everywhere: in prompts and as the right answer."""
    clean = [[0, 1, 6, 2, 1, 10], [0, 1, 9, 8, 5, 3], [0, 1, 4, 1]]
    corrupted = [[0, 1, 6, 2, 3, 10], [0, 1, 9, 8, 5, 4], [0, 2, 4, 1]]
    return PromptPairs.from_tokens(clean, corrupted, [1, 6, 1], [7, 1, 2], model=model)
