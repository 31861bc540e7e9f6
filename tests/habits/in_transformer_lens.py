"""Run by an interpreter that has transformer-lens 3: the numbers that a script of this folder finds there.

    python in_transformer_lens.py JOB.json

The job names the script and its function, the arguments of `HookedTransformerConfig`, the weights, the tokenizer's
folder and the file for the numbers.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path

import torch
import transformer_lens.utils
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast


def main(job_path):
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    sys.path.insert(0, str(Path(__file__).parent))
    script = getattr(importlib.import_module(job["script"]), job["function"])
    cfg = transformer_lens.HookedTransformerConfig(**(job["config"] | {"dtype": torch.float64}))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["tokenizer"])
    model = transformer_lens.HookedTransformer(cfg, tokenizer=tokenizer)
    missing, unexpected = model.load_state_dict(load_file(job["weights"]), strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("attn.mask", "attn.IGNORE")) for name in missing), missing
    found = script(model, transformer_lens)
    save_file({name: value.detach().clone().contiguous() for name, value in found.items()}, job["numbers"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
