"""Run by an interpreter that has transformer-lens 3: what HookedTransformer computes from given weights.

    python hooked_transformer_oracle.py JOBS.json WEIGHTS.safetensors VALUES.safetensors

JOBS maps the name of a model to its job: the arguments of `HookedTransformerConfig`, the tokens, two answers, the flags
of each further run, and the methods of the cache with their arguments. Every weight is named `model/name`; every value
`model/weights or folded/run/hook name`, with "_grad" for the gradient of the loss, or `.../method/...`. Labels of
methods are JSON in the metadata of VALUES. Beside it lie `model-plain/` and `model-folded/`, as one saves such a model.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")


def build(config, weights):
    config = HookedTransformerConfig(**config | {"dtype": getattr(torch, config["dtype"])})
    model = HookedTransformer(config, move_to_device=False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(BUFFERS) for name in missing), missing
    return model


def folded(model, config):
    """The model after the steps of `load_and_process_state_dict`, one by one, as it would round everything to float32.

    `center_writing_weights` belongs to layer norms, as there.
    """
    layer_norms = config["normalization_type"] == "LN"
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(BUFFERS)}
    state = model.fold_layer_norm(state, fold_biases=layer_norms, center_weights=layer_norms)
    if layer_norms:
        state = model.center_writing_weights(state)
    state = model.fold_value_biases(model.center_unembed(state))
    norms = (".ln1.w", ".ln1.b", ".ln2.w", ".ln2.b")
    state = {n: t for n, t in state.items() if not n.endswith(norms) and not n.startswith("ln_final.")}
    config = config | {"normalization_type": config["normalization_type"] + "Pre"}
    return build(config, state), config, state


def run(model, tokens, at, values):
    """Every hook point and its gradient."""
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    for name, tensor in cache.items():
        values[f"{at}/{name}"] = tensor.detach().clone()
    return cache


def sum_gradients_of_ln1(model, tokens, at, values):
    """ln1 runs once for queries, keys and values each, and the cache kept the last one's share of the gradient."""
    sums = {}

    def add(grad, hook):
        sums[hook.name] = sums.get(hook.name, 0) + grad

    with model.hooks(bwd_hooks=[(lambda name: ".ln1." in name, add)]):
        model(tokens, return_type="loss").backward()
    for name, total in sums.items():
        values[f"{at}/{name}_grad"] = total


def methods(cache, job, at, values, labels):
    for label, (method, arguments) in job["methods"].items():
        bounds = {name: tuple(value["bounds"]) for name, value in arguments.items() if isinstance(value, dict)}
        found = getattr(cache, method)(**arguments | bounds)  # JSON has no tuples
        stack, labels[f"{at}/{label}"] = found if isinstance(found, tuple) else (found, None)
        values[f"{at}/method/{label}"] = stack.detach().clone()
    attributions(cache, job, f"{at}/method", values)


def attributions(cache, job, at, values):
    tokens, right, wrong = (torch.tensor(job[name]) for name in ("tokens", "right", "wrong"))
    layers = cache.decompose_resid(layer=-1)
    values[f"{at}/logit_attrs"] = cache.logit_attrs(layers, tokens).detach().clone()
    values[f"{at}/applied"] = cache.apply_ln_to_stack(layers, layer=-1, batch_slice=1).detach().clone()
    heads = cache.stack_head_results(layer=-1, pos_slice=-1)
    values[f"{at}/logit_attrs_difference"] = cache.logit_attrs(heads, right, wrong, pos_slice=-1).detach().clone()


def processed_by_loading(job, weights):
    """The weights after `load_and_process_state_dict`, which works in float32 whatever the dtype."""
    model = build(job["config"], weights)
    model.load_and_process_state_dict(model.state_dict())
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(BUFFERS)}


def save(model, directory):
    directory.mkdir()
    torch.save(model.state_dict(), directory / "model.pth")
    (directory / "config.json").write_text(json.dumps(model.cfg.to_dict(), default=str), encoding="utf-8")


def answer(name, job, weights, values, labels, folder):
    tokens = torch.tensor(job["tokens"])
    plain = build(job["config"], weights)
    after, config, state = folded(plain, job["config"])
    for way, processed in (("processed", state), ("loaded", processed_by_loading(job, weights))):
        for label, tensor in processed.items():
            values[f"{name}/{way}/{label}"] = tensor.detach().clone()
    for stage, model, cfg, own in (("plain", plain, job["config"], weights), ("folded", after, config, state)):
        at = f"{name}/{stage}"
        save(model, folder / f"{name}-{stage}")
        values[f"{at}/logits"] = model(tokens).detach().clone()
        methods(run(model, tokens, f"{at}/run", values), job, at, values, labels)
        sum_gradients_of_ln1(model, tokens, f"{at}/run", values)
        for label, flags in job["runs"].items():
            model = build(cfg, own)
            for flag in flags:
                setattr(model.cfg, flag, True)
            run(model, tokens, f"{at}/{label}", values)


def main(jobs_path, weights_path, values_path):
    torch.set_default_dtype(torch.float64)  # `accumulated_bias` sums in the default dtype, whatever the model's
    with open(jobs_path, encoding="utf-8") as file:
        jobs = json.load(file)
    weights, values, labels = load_file(weights_path), {}, {}
    for name, job in jobs.items():
        own = {key.removeprefix(f"{name}/"): tensor for key, tensor in weights.items() if key.startswith(f"{name}/")}
        answer(name, job, own, values, labels, Path(values_path).parent)
    values = {name: tensor.contiguous() for name, tensor in values.items()}
    save_file(values, values_path, metadata={"labels": json.dumps(labels)})


if __name__ == "__main__":
    main(*sys.argv[1:])
