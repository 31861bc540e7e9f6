# %% [markdown]
# # Write a hook-based experiment
#
# A hook is a function on an activation: it is given the tensor and returns another, or nothing to leave it. Ten lines
# are an experiment.

# %%
import torch
from jaxtyping import Float
from torch import Tensor

from analyses import head_attribution
from interp import Site, edits, metrics, sweep, tasks
from models import load

model = load("town")
pairs = tasks.ioi(model, n=32, seed=0)


def score(logits):
    return metrics.logit_diff(logits, pairs).mean().item()


baseline = score(model(pairs.clean, attention_mask=pairs.mask))

# %% [markdown]
# ## Silence one head
#
# `model.hooks` attaches hooks for the length of a `with` block and takes exactly those off again, whatever happens
# inside.


# %%
def silence(head: int):
    def edit(z: Float[Tensor, "batch pos head d_head"], hook) -> Float[Tensor, "batch pos head d_head"]:
        return z.index_fill(2, torch.tensor([head], device=z.device), 0.0)

    return edit


layer, head = head_attribution(model, pairs).highest(1)[0].index
with model.hooks([(f"blocks.{layer}.attn.hook_z", silence(head))]):
    damaged = score(model(pairs.clean, attention_mask=pairs.mask))
print(f"logit difference {baseline:.2f}, without L{layer}H{head} {damaged:.2f}")
assert score(model(pairs.clean, attention_mask=pairs.mask)) == baseline

# %% [markdown]
# A name that does not exist is refused before anything runs, with what was probably meant.

# %%
try:
    model.run_with_hooks(pairs.clean, fwd_hooks=[("blocks.2.atn.hook_z", silence(0))])
except KeyError as error:
    print(error)

# %% [markdown]
# ## Look without touching
#
# `run_with_cache` keeps activations by name, glob or predicate.

# %%
_, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.mask, names_filter="blocks.*.attn.hook_pattern")
pattern = cache["pattern", layer][:, head]
print(
    f"L{layer}H{head} gives its strongest look from the last position a weight of",
    f"{pattern[:, -1].amax(-1).mean():.2f}",
)

# %% [markdown]
# ## Edits as values, many at once
#
# The same edits exist as values: they can be printed, batched and swept. Zero asks what the model does far from
# anything it has seen; the mean over other prompts, or another prompt's value, are gentler questions with other
# answers.

# %%
_, reference = model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter="blocks.*.attn.hook_z")
heads = [Site("z", each_layer, each) for each_layer in range(model.cfg.n_layers) for each in range(model.cfg.n_heads)]
for kind in (edits.zero, lambda site: edits.mean(site, reference), lambda site: edits.replace(site, reference)):
    rows = [[kind(site)] for site in heads]
    effect = sweep.run(model, pairs, rows).values.mean(1) - baseline
    worst = effect.argsort()[:3].tolist()
    print(f"{rows[0][0].name:8s}", [f"L{heads[i].layer}H{heads[i].head} {effect[i]:+.2f}" for i in worst])

# %% [markdown]
# ## Gradients
#
# A backward hook sees the gradient at its point. Here, to first order, what each position of the stream is worth.

# %%
gradients = {}


def keep(gradient, hook):
    gradients[hook.name] = gradient


name = "blocks.1.hook_resid_pre"
with model.hooks(bwd_hooks=[(name, keep)]):
    metrics.logit_diff(model(pairs.clean, attention_mask=pairs.mask), pairs).mean().backward()
_, clean = model.run_with_cache(pairs.clean, attention_mask=pairs.mask, names_filter=name)
_, other = model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter=name)
estimate = ((other[name] - clean[name]) * gradients[name]).sum((0, 2))
print("estimated effect by position:", [round(float(value), 2) for value in estimate])
model.zero_grad()
