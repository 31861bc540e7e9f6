"""Attribution by gradients, written as one writes for HookedTransformer. It imports nothing of the lab.

`lens` stands for what the script's import line names: `transformer_lens`, or `models.hooked_transformer`.
"""

import einops
import torch

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"


def attribute(model, lens):
    """The numbers that one would plot, by name."""
    clean, corrupted = model.to_tokens(CLEAN), model.to_tokens(CORRUPTED)
    right, wrong = model.to_single_token(" Mary"), model.to_single_token(" John")

    def metric(logits):
        return (logits[:, -1, right] - logits[:, -1, wrong]).mean()

    def wanted(name):
        return name.endswith(("hook_resid_pre", "hook_z", "hook_mlp_out", "hook_pattern"))

    clean_acts, _ = activations_and_gradients(model, clean, metric, wanted)
    acts, grads = activations_and_gradients(model, corrupted, metric, wanted)
    found = {"slope": slope(model, lens, corrupted, clean_acts, metric)}
    streams = [lens.utils.get_act_name("resid_pre", layer) for layer in range(model.cfg.n_layers)]
    moved = torch.stack([clean_acts[name] - acts[name] for name in streams])
    pull = torch.stack([grads[name] for name in streams])
    found["streams"] = einops.einsum(moved, pull, "layer batch pos model, layer batch pos model -> layer pos")
    outputs = [lens.utils.get_act_name("z", layer) for layer in range(model.cfg.n_layers)]
    moved = torch.stack([clean_acts[name] - acts[name] for name in outputs])
    pull = torch.stack([grads[name] for name in outputs])
    found["heads"] = einops.einsum(moved, pull, "layer batch pos head d, layer batch pos head d -> layer head")
    found["pattern gradient"] = grads["blocks.1.attn.hook_pattern"]
    found.update(edited_gradients(model, corrupted, metric))
    found.update(cached_gradients(model, lens, corrupted))
    return found


def activations_and_gradients(model, tokens, metric, wanted):
    """Both of them by hooks inside one `with`."""
    acts, grads = {}, {}

    def keep(act, hook):
        acts[hook.name] = act.detach().clone()

    def keep_gradient(grad, hook):
        grads[hook.name] = grad.detach().clone()

    with model.hooks(fwd_hooks=[(wanted, keep)], bwd_hooks=[(wanted, keep_gradient)]):
        value = metric(model(tokens))
        value.backward()
    assert acts.keys() == grads.keys()
    model.zero_grad()
    return acts, grads


def slope(model, lens, tokens, clean_acts, metric, step=1e-4):
    """What a small step towards the clean stream does to the metric, per unit of the step, by running it."""
    name = lens.utils.get_act_name("resid_pre", 1)

    def towards(share):
        def edit(resid, hook):
            return resid + share * (clean_acts[hook.name] - resid)

        return edit

    with torch.no_grad():
        up = metric(model.run_with_hooks(tokens, fwd_hooks=[(name, towards(step))]))
        down = metric(model.run_with_hooks(tokens, fwd_hooks=[(name, towards(-step))]))
    return (up - down) / (2 * step)


def edited_gradients(model, tokens, metric):
    """Gradients with what passes some points cut off or doubled, as a tensor and as a 1-tuple."""
    found = {}

    def cut(grad, hook):
        return torch.zeros_like(grad)

    def doubled(grad, hook):
        return (grad * 2,)

    def reach(name):
        seen = []
        model.add_hook("hook_embed", lambda grad, hook: seen.append(grad.clone()), dir="bwd")
        value = metric(model(tokens))
        value.backward()
        model.reset_hooks()
        model.zero_grad()
        found[name] = seen[0]

    reach("whole")
    model.add_hook(lambda name: name.endswith("hook_pattern"), cut, dir="bwd")
    reach("patterns held")
    model.add_hook("blocks.2.hook_mlp_out", doubled, dir="bwd")
    reach("an MLP doubled")
    return found


def cached_gradients(model, lens, tokens):
    """Gradients of the loss by `run_with_cache`, by caching hooks and by hooks that outlive the forward."""
    name = lens.utils.get_act_name("resid_mid", 2)
    loss, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True, names_filter=lambda n: "resid" in n)
    model.zero_grad()
    found = {"loss": loss.detach(), "cached": cache[f"{name}_grad"]}
    kept, forward, backward = model.get_caching_hooks(lambda n: n == name, incl_bwd=True)
    with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
        model(tokens, return_type="loss").backward()
    model.zero_grad()
    found["by caching hooks"] = kept[f"{name}_grad"]
    seen = []
    loss = model.run_with_hooks(
        tokens,
        return_type="loss",
        bwd_hooks=[(name, lambda grad, hook: seen.append(grad.clone()))],
        reset_hooks_end=False,
    )
    loss.backward()
    model.reset_hooks()
    model.zero_grad()
    found["outliving"] = seen[0]
    held = model.add_caching_hooks(lambda n: n == name)
    model(tokens)
    model.reset_hooks()
    found["activation"] = held[name].detach()
    return found
