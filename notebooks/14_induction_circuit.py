# %% [markdown]
# # The induction circuit, from attention to weights
#
# `induction-2l` has two layers of attention and nothing else, and foresees a block of random letters when it comes
# again. Two kinds of heads do it together (Elhage et al. 2021; Olsson et al. 2022, arXiv:2209.11895): one writes, at
# every position, which letter came before; others find the place whose *previous* letter is the one just read, and copy
# what stands there.

# %%
import numpy as np
import torch

from analyses import (
    ablation,
    circuit_eigenvalues,
    full_ov_circuit,
    head_composition,
    head_roles,
    path_patching,
    virtual_weights,
)
from interp import PromptPairs, Site, pictures, tasks
from interp.pictures import Axis
from models import load

model = load("induction-2l")
pairs = tasks.induction(model, n=32, seed=0)  # ... A B ... A -> B; the corrupted prompts have another letter for B

# %% [markdown]
# ## Who looks where, and what for
#
# Every head that has a role in the task, with the role's evidence.

# %%
roles = head_roles(model, pairs)
for layer, head in np.ndindex(roles.roles.shape):
    if roles.roles[layer, head]:
        print(f"L{layer}H{head}  {roles.roles[layer, head]}")
        for name in ("previous token", "induction", "copying", "attribution"):
            print(f"      {name:15s} {roles.evidence(name)[layer, head]:.2f}")

previous = tuple(int(i) for i in np.unravel_index(roles.evidence("previous token").argmax(), roles.roles.shape))
assert previous == (0, 3)
assert {layer for layer, _ in roles.heads("induction")} == {1}

# %% [markdown]
# ## The weights already say so
#
# How much of what a head of the first layer writes do the queries, keys and values of the second layer read? Above
# random weights of the same shape, the previous-token head into the keys comes first: that is the composition which
# induction needs. No forward was run.

# %%
composition = head_composition(model)
for entry in composition.highest(4):
    print(entry.place, f"{entry.value:+.3f}  (spread of random weights {composition.spread:.3f})")
first = dict(composition.highest(1)[0].at)
assert (first["mode"][1], first["sender"][1]) == ("K", "L0H3")
composition.plot()

# %% [markdown]
# The other half is copying: what the induction heads attend to, they raise. Of the eigenvalues of `W_E W_V W_O W_U`
# nearly all are positive, and in the row of a letter that letter is the highest.

# %%
eigenvalues = circuit_eigenvalues(model)
print("copying, by layer and head:\n", eigenvalues.copying.round(2))
letters = torch.arange(64)
for _, head in roles.heads("induction"):
    rows = full_ov_circuit(model, 1, head)[letters].AB
    share = (rows[:, :64].argmax(-1) == letters).float().mean()
    print(f"L1H{head}: {float(share):.0%} of the letters raise themselves most")
    assert share > 0.9

# %% [markdown]
# Along the stream from the previous-token head to an induction head's keys, and on from the heads' values to the
# logits: `virtual_weights` gives any such product, never multiplied out.

# %%
print(virtual_weights(model, Site("z", 0, head=3), Site("k", 1, head=3)))
print(virtual_weights(model, Site("embed"), Site("unembed.out")))

# %% [markdown]
# ## And it is used
#
# Room for a signal is not a signal. So each head is taken out: without the previous-token head the copy is lost.

# %%
without = ablation(model, pairs, value="mean", reference=tasks.induction(model, n=32, seed=1).clean)
print(f"logit difference {without.base.mean():.2f}; its change when a head is replaced by its mean:")
print(without.values.round(2))
assert without.lowest(1)[0].index == previous

# %% [markdown]
# And its path is patched. In other prompts the letter before the one to copy is a new one, so that what the
# previous-token head writes at that place tells of the wrong letter. Only that, and only into the keys of one head
# after the other, changes between the runs. 1 would be the whole effect of the new letter.

# %%
rows, last = torch.arange(len(pairs)), pairs.clean[:, -1:]
before = (pairs.clean[:, :-1] == last).int().argmax(1)  # where the last letter stood the first time
corrupted = pairs.clean.clone()
corrupted[rows, before] = pairs.wrong[:, 0]  # a letter that is nowhere in the prompt
renamed = PromptPairs.from_tokens(pairs.clean, corrupted, pairs.right, pairs.wrong)
paths = path_patching(model, renamed, Site("k", 1))
for entry in paths.top(5):
    print(f"{entry.place:45s} {entry.value:+.3f}")
assert all(dict(entry.at)["sender"][1] == "L0H3" for entry in paths.top(3))
paths.plot()

# %% [markdown]
# ## How it came about
#
# The composition at the checkpoints through training.

# %%
steps = [0, 100, 200, 300, 400, 600, 800, 1000, 1500, 2000]
strength = []
for step in steps:
    then = model if step == 2000 else load("induction-2l", revision=f"step-{step}")
    strength.append(float(np.nanmax(head_composition(then).values[1])))
    print(f"step {step:4d}   strongest K-composition {strength[-1]:+.3f}")
assert strength[0] < 0.02 < 0.1 < strength[-1]
axis = Axis("step", len(steps), steps)
pictures.lines({"K": np.array(strength)}, axis, title="Strongest K-composition", unit="above random weights")
