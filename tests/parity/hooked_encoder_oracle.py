"""Run by an interpreter that has transformer-lens 3: what HookedEncoder computes from given weights.

    python hooked_encoder_oracle.py CONFIG.json INPUTS.safetensors VALUES.safetensors

INPUTS holds the weights under HookedEncoder's names, `tokens`, `segments` and `mask`; VALUES every hook point by name,
and `logits`.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedEncoder, HookedTransformerConfig

if __name__ == "__main__":
    config, inputs, values = map(Path, sys.argv[1:])
    given = load_file(inputs)
    tokens, segments, mask = (given.pop(name) for name in ("tokens", "segments", "mask"))
    cfg = HookedTransformerConfig(**json.loads(config.read_text()), dtype=torch.float64)
    model = HookedEncoder(cfg, move_to_device=False)
    missing, unexpected = model.load_state_dict(given, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(("pooler.", "nsp_head.")) or "IGNORE" in name or "mask" in name for name in missing), (
        missing
    )
    logits, cache = model.run_with_cache(tokens, token_type_ids=segments, one_zero_attention_mask=mask)
    kept = {name: cache[name].detach().clone().contiguous() for name in cache}
    save_file(kept | {"logits": logits.detach().clone().contiguous()}, values)
