"""Run by an interpreter that has transformer-lens 3: what HookedEncoderDecoder computes from given weights.

    python hooked_encoder_decoder_oracle.py CONFIG.json WEIGHTS.safetensors VALUES.safetensors

CONFIG: the arguments of `HookedTransformerConfig`. WEIGHTS also holds the inputs: `source`, `target`, `mask`. VALUES
gets every activation that the run passes, by hook name, and the `logits`.
"""

import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedEncoderDecoder, HookedTransformerConfig

config_path, weights_path, values_path = sys.argv[1:]
with open(config_path) as file:
    config = HookedTransformerConfig(**json.load(file) | {"dtype": torch.float64})
weights = load_file(weights_path)
source, target, mask = (weights.pop(name) for name in ("source", "target", "mask"))
model = HookedEncoderDecoder(config, move_to_device=False).double()
missing, unexpected = model.load_state_dict(weights, strict=False)
assert not unexpected, unexpected
assert all(name.endswith(("attn.mask", "attn.IGNORE")) for name in missing), missing
with torch.no_grad():
    logits, cache = model.run_with_cache(source, decoder_input=target, one_zero_attention_mask=mask.double())
save_file({"logits": logits} | {name: cache[name].clone().contiguous() for name in cache}, values_path)
