"""What the town's model can do, measured on combinations that its corpus lacks."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp import tasks
from interp.metrics import logit_diff, prob_diff, rank
from models.loss import next_token_loss

BLOCK = 30  # tokens that are repeated; twice that and the start token fit into the town's context


def measure(model: Any) -> dict[str, float]:
    """A quick look while training: `task_scores` on 200 prompts of each task."""
    return task_scores(model, n=200)


@torch.no_grad()
def task_scores(model: Any, n: int = 500, seed: int = 0) -> dict[str, float]:
    """Scores by name, on `n` prompts of each task.

    `ioi`, `facts`, `agreement`, `induction`: share of the prompts on which the right token has a higher logit than the
    wrong one; `..._top`: share on which it has the highest of all; `..._logit_diff`: mean logit difference.
    `greater_than`: mean probability of later years minus that of the others. `first_copy_loss`, `second_copy_loss`:
    mean loss in nats on a block of random tokens and on its repeat (its first token, which nothing announces, left
    out). `induction_head`: most attention that a head pays, on the repeat, to the token after the same token.
    """
    scores: dict[str, float] = {}
    for name in ("ioi", "facts", "agreement", "induction"):
        pairs = tasks.get(name)(model, n=n, seed=seed)
        logits = model(pairs.clean, attention_mask=pairs.mask)
        difference = logit_diff(logits, pairs)
        scores[name] = float((difference > 0).float().mean())
        scores[f"{name}_top"] = float((rank(logits, pairs) == 0).float().mean())
        scores[f"{name}_logit_diff"] = float(difference.mean())
    pairs = tasks.greater_than(model, n=n, seed=seed)
    scores["greater_than"] = float(prob_diff(model(pairs.clean, attention_mask=pairs.mask), pairs).mean())
    return {key: round(value, 4) for key, value in (scores | _repeats(model, n, seed)).items()}


def _repeats(model: Any, n: int, seed: int) -> dict[str, float]:
    rows = tasks.repeated_tokens(model, n, BLOCK, seed)
    logits, cache = model.run_with_cache(rows, names_filter=lambda name: name.endswith("hook_pattern"))
    losses = next_token_loss(logits, rows, per_token=True)
    patterns = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)])
    return {
        "first_copy_loss": float(losses[:, -2 * BLOCK : -BLOCK].mean()),
        "second_copy_loss": float(losses[:, -BLOCK + 1 :].mean()),
        "induction_head": float(_attention_back(patterns, BLOCK - 1).max()),
    }


def _attention_back(patterns: Float[Tensor, "layer batch head q_pos k_pos"], distance: int) -> Float[Tensor, "..."]:
    """Each head's mean attention from the second copy to the position `distance` before."""
    diagonal = patterns.diagonal(-distance, dim1=-2, dim2=-1)[..., -BLOCK:]
    return rearrange(diagonal, "layer batch head pos -> layer head batch pos").mean((-2, -1))
