"""Run by an interpreter that has transformer-lens 3: what HookedTransformer computes from given weights.

    python hooked_transformer_oracle.py JOB.json WEIGHTS.safetensors VALUES.safetensors

The job holds the arguments of `HookedTransformerConfig`, the tokens and two answers. The values are named
`run/hook name`, with "_grad" for gradients of the loss, and `method/...` for the residual arithmetic.
"""

import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig


def build(job, weights):
    model = HookedTransformer(HookedTransformerConfig(**job["config"]), move_to_device=False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    own = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
    assert not unexpected, unexpected
    assert all(name.endswith(own) for name in missing), missing
    return model


def run(model, tokens, label, values):
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    for name, tensor in cache.items():
        values[f"{label}/{name}"] = tensor.detach().clone()
    return cache


def arithmetic(cache, n_layers, values):
    methods = {
        "accumulated": cache.accumulated_resid(incl_mid=True),
        "accumulated_normed": cache.accumulated_resid(apply_ln=True),
        "accumulated_at_1": cache.accumulated_resid(1, apply_ln=True, incl_mid=True),
        "decomposed": cache.decompose_resid(),
        "decomposed_at_1": cache.decompose_resid(1, mlp_input=True, apply_ln=True),
        "decomposed_normed_last": cache.decompose_resid(apply_ln=True, pos_slice=-1),
        "heads": cache.stack_head_results(incl_remainder=True),
        "heads_at_1": cache.stack_head_results(1, pos_slice=[0, 2], apply_ln=True),
        "neurons": cache.stack_neuron_results(-1, incl_remainder=True, neuron_slice=(1, 4)),
        "full": cache.get_full_resid_decomposition(n_layers, pos_slice=(1, 3)),
        "full_mlps": cache.get_full_resid_decomposition(expand_neurons=False, apply_ln=True),
    }
    for name, stack in methods.items():
        values[f"method/{name}"] = stack.detach().clone()


def attributions(model, tokens, right, wrong, values):
    """With the gain of the final norm folded into the unembedding, without which they would not be exact."""
    kept = {"center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    model.load_and_process_state_dict(model.state_dict(), fold_ln=True, **kept)
    _, cache = model.run_with_cache(tokens)
    values["method/logit_attrs"] = cache.logit_attrs(cache.decompose_resid(), tokens).detach().clone()
    difference = cache.logit_attrs(cache.stack_head_results(pos_slice=-1), right, wrong, pos_slice=-1)
    values["method/logit_attrs_difference"] = difference.detach().clone()


def main(job_path, weights_path, values_path):
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    tokens = torch.tensor(job["tokens"])
    weights, values = load_file(weights_path), {}
    model = build(job, weights)
    values["logits"] = model(tokens).detach().clone()
    cache = run(model, tokens, "plain", values)
    arithmetic(cache, model.cfg.n_layers, values)
    for label, flags in job["runs"].items():
        model = build(job, weights)
        for flag in flags:
            setattr(model.cfg, flag, True)
        run(model, tokens, label, values)
    attributions(build(job, weights), tokens, torch.tensor(job["right"]), torch.tensor(job["wrong"]), values)
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, values_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
