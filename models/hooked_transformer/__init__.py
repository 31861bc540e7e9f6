"""`HookedTransformer`: the lab's GPT with the habits of TransformerLens 2 and 3's class of that name.

A script written for that class changes its import and its loading line:

    from models.hooked_transformer import FactoredMatrix, HookedTransformer, HookedTransformerConfig, HookPoint, utils

    model = HookedTransformer.from_pretrained("gpt2")       # weights processed, as there
    model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=64, n_ctx=32, d_head=16, d_vocab=97))

What most models need is on `GPT` itself. Here is what is habit: weights processed by default, a config that can be
assigned to, state dicts under HookedTransformer's names, its `generate`, its cache that changes in place.

Where the lab departs on purpose: every hook point fires, whatever the flags (they say what an unfiltered cache keeps);
masked scores are the lowest finite number; padding is masked, in the loss too; a text that does not fit the context
window is refused, not cut; learned positions are called "learned"; where heads share keys, `blocks[i].attn.W_K` holds
each once, while `model.W_K` repeats them.
"""

from __future__ import annotations

from interp.cache import ActivationCache
from interp.factored_matrix import FactoredMatrix
from interp.hook_point import HookPoint
from interp.kv_cache import KeyValueCache
from models.hooked_transformer import utils
from models.hooked_transformer.config import HookedTransformerConfig
from models.hooked_transformer.model import HookedTransformer

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedTransformer",
    "HookedTransformerConfig",
    "KeyValueCache",
    "utils",
]
