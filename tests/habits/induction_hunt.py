"""A hunt for induction heads, written as one writes for HookedTransformer. It imports nothing of the lab.

`lens` stands for what the script's import line names: `transformer_lens`, or `models.hooked_transformer`.
"""

import einops
import torch

PERIOD, LETTERS, START = 20, 64, 64


def repeats(seed=5, batch=8):
    """A start token and the same random letters twice."""
    block = torch.randint(0, LETTERS, (batch, PERIOD), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.full((batch, 1), START), block, block], dim=1)


def loss_on_the_second(model, tokens):
    return model(tokens, return_type="loss", loss_per_token=True)[:, PERIOD + 1 :].mean()


def hunt(model, lens):
    """The numbers that one would print, by name."""
    torch.set_grad_enabled(False)
    tokens = repeats().to(model.cfg.device)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    found = {"loss": loss_on_the_second(model, tokens)}

    induction, previous = torch.zeros(n_layers, n_heads), torch.zeros(n_layers, n_heads)

    def score(pattern, hook):
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - PERIOD)
        induction[hook.layer()] = einops.reduce(stripe[..., 2:], "batch head pos -> head", "mean").float()
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=-1)
        previous[hook.layer()] = einops.reduce(stripe, "batch head pos -> head", "mean").float()

    patterns = lambda name: name.endswith("hook_pattern")  # noqa: E731 as scripts have it
    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(patterns, score)])
    found["induction"], found["previous"] = induction, previous
    calls = [model.hook_dict[f"blocks.{layer}.attn.hook_pattern"].ctx["calls"] for layer in range(n_layers)]
    model.reset_hooks()
    assert model.hook_dict["blocks.0.attn.hook_pattern"].ctx == {}
    found["calls"] = torch.tensor(calls)

    head = int(previous[0].argmax())

    def silence(z, hook):
        z[:, :, head, :] = 0.0
        return z

    found.update(lifecycle(model, tokens, silence))
    found.update(circuits(model, induction))
    found.update(caches(model, lens, tokens))
    torch.set_grad_enabled(True)
    return found


def lifecycle(model, tokens, silence):
    """The loss while hooks come and go: added, permanent, in contexts inside each other, reset."""
    point, losses = "blocks.0.attn.hook_z", []

    def note():
        losses.append(loss_on_the_second(model, tokens))

    model.add_hook(point, silence)
    note()
    model.reset_hooks()
    note()
    model.add_hook(lambda name: name == point, silence, is_permanent=True)
    model.reset_hooks()
    note()
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", silence)]) as hooked:
        assert hooked is model
        with model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", lambda out, hook: 0 * out)]):
            assert model.context_level == 2
            note()
        note()
    note()
    model.reset_hooks(including_permanent=True)
    note()
    model.hook_dict[point].add_hook(silence, level=3)
    model.reset_hooks(level=2)
    note()
    model.reset_hooks(level=3)
    note()
    model.blocks[0].attn.hook_z.add_perma_hook(silence)
    model.remove_all_hook_fns(including_permanent=True)
    note()
    try:
        with model.hooks(fwd_hooks=[(point, silence)]):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        note()
    assert not model.hook_dict[point].has_hooks()
    return {"losses": torch.stack(losses)}


def circuits(model, induction):
    """What the best head copies, and whose output its keys read."""
    layer, head = divmod(int(induction.argmax()), model.cfg.n_heads)
    whole = model.W_E @ model.OV[layer, head] @ model.W_U
    values = whole.eigenvalues
    found = {"copying": values.sum().real / values.abs().sum(), "norm": whole.norm()}
    found["keys read"] = model.all_composition_scores("K")[0, :, layer, head]
    found["queries read"] = model.all_composition_scores("Q")[0, :, layer, head]
    found["singular values"] = model.blocks[layer].attn.QK[head].svd()[1]
    found["corner"] = model.QK[layer, head].get_corner(4)
    return found


def caches(model, lens, tokens):
    """Some of the activations, of some of the positions, and the heads' results behind their flag."""
    get = lens.utils.get_act_name
    _, cache = model.run_with_cache(tokens, names_filter=[get("k", 0), get("resid_post", 1)], pos_slice=(3, 6))
    found = {"keys": cache["k", 0], "stream": cache["resid_post", -1]}
    _, cache = model.run_with_cache(tokens, names_filter=get("pattern", 1), pos_slice=-1, device="cpu")
    found["last queries"] = cache["pattern", 1, "attn"]
    _, cache = model.run_with_cache(tokens[:1], stop_at_layer=1, remove_batch_dim=True)
    assert "blocks.1.hook_resid_pre" not in cache
    found["one row"] = cache["attn_out", 0]
    resid = model(tokens, stop_at_layer=1)
    found["resumed"] = model(resid, start_at_layer=1)[:, -1]
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(tokens)
    found["results"] = cache["result", 1].sum(dim=-2)[:, -1]
    model.cfg.use_attn_result = False
    _, cache = model.run_with_cache(tokens)
    assert "blocks.1.attn.hook_result" not in cache
    cache.compute_head_results()
    found["computed results"] = cache.stack_activation("result")[1].sum(dim=-2)[:, -1]
    return found
