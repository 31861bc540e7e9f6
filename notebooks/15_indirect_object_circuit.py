# %% [markdown]
# # The circuit for the indirect object
#
# *While Andrew and Clara worked at the bridge, Andrew passed a gift to* ... `town` says *Clara*. Which edges of the
# model does it take to say so? Every edge between two components is scored exactly, and the strongest twentieth kept.
# All others carry what they carry in a prompt where the other person gives. Then the answer is read again, on prompts
# that the edges were not chosen by.

# %%
import itertools

import numpy as np
import torch

from analyses import completeness, edge_patching, evaluate_circuits, find_circuit, minimality
from analyses.circuit_picture import lines_of
from interp import PromptPairs, tasks
from interp.circuit import Circuit
from interp.graph import Graph
from models import load

torch.set_grad_enabled(False)
model = load("town")
pairs, others = tasks.ioi(model, n=16, seed=0), tasks.ioi(model, n=16, seed=1)
held_out = tasks.ioi(model, n=32, seed=100)
found = find_circuit(model, pairs, held_out=held_out)
print(found.summary)
print(found.stability)
assert len(found.circuit) <= 0.05 * len(found.circuit.graph)
assert found.evaluation.values[0] > 0.9

# %% [markdown]
# A claim about a circuit is a claim about six things, and about these alone.

# %%
for name, words in found.setting.items():
    print(f"{name:12s} {words}")

# %% [markdown]
# ## What it looks like
#
# Below is the input, above are the logits. Nearly all lines are green: what flows, flows through values. No edge into a
# query or a key matters much, so where heads look does not depend on who gave.

# %%
found.plot()

# %% [markdown]
# ## Other prompts, the same edges
#
# Found from other prompts, the circuit shares most of its edges; those of both are enough.

# %%
again = find_circuit(model, others, held_out=held_out)
core = (found.circuit & again.circuit).pruned()
alone = evaluate_circuits(model, held_out, [found.circuit, again.circuit, core], names=["first", "second", "both"])
print(f"edges of both over edges of either: {found.circuit.iou(again.circuit):.2f}")
for name, f, low, high, edges in zip(
    alone.labels["circuit"], alone.values, alone.low, alone.high, alone.edges, strict=True
):
    print(f"{name:7s} {edges} edges  faithfulness {f:.3f}  (95 % {low:.3f} to {high:.3f})")
assert found.circuit.iou(again.circuit) > 0.75
assert alone.values[2] > 0.9

# %% [markdown]
# ## Where it happens
#
# The same edges once more, at each position by itself. All prompts have the same form, so positions correspond.

# %%
tokens = model.to_str_tokens(pairs.clean[0])
apart = Graph.of(model, n_pos=len(tokens))
kept = np.repeat(core.kept[:, None], len(tokens), 1)
placed = edge_patching(model, pairs, graph=apart, among=Circuit(apart, kept))
for entry in placed.top(24):
    edge, pos = entry.index
    print(f"{entry.value:+.3f}  {apart.names[edge]:18s} at {pos:2d} {tokens[pos]!r}")

# %% [markdown]
# It is a relay in three steps.
#
# 1. **At the giver's second name** (10) head `a0.h2`, which looks mostly at that name itself, and `m0` write who gives.
# 2. **At the article** (12) the heads of layer 1 look back to that name, and bring along what stands there.
# 3. **At the end** (14) `a2.h1`, `a2.h4` and, weaker, heads of layer 3 look back to the article and write an answer;
#    `m3` makes it clearer.

# %%
strongest = {(apart.names[entry.index[0]], entry.index[1]) for entry in placed.top(24)}
assert {("input->a0.h2<v>", 10), ("a0.h2->m0", 10), ("a2.h1->logits", 14), ("a2.h4->logits", 14)} <= strongest
assert {("m0->a1.h4<v>", 10), ("a1.h4->a2.h1<v>", 12)} <= strongest
assert all(line.kind in ("v", "") for line in lines_of(found.circuit, found.scores.values)[:30])

# %% [markdown]
# ## What is written at the end
#
# Each head's own share of the logits of the two names, above that of the average name (the norm's scale held). Heads of
# layer 1 write **both** names, one as much as the other: at the end they look at the names themselves. Those of layer 2
# write **against the giver**. So the model says every name that was mentioned, but for the one whose turn it was.

# %%
_, cache = model.run_with_cache(held_out.clean)
names = torch.cat([held_out.right, held_out.wrong]).unique()
rows = torch.arange(len(held_out))
shares = {}
for layer, head in itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads)):
    written = cache["z", layer][rows, held_out.last, head] @ model.blocks[layer].attn.W_O[head]
    centred = (written - written.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"][rows, held_out.last]
    logits = (centred * model.ln_final.w) @ model.W_U
    logits = logits - logits[:, names].mean(-1, keepdim=True)
    shares[f"a{layer}.h{head}"] = [float(logits.gather(1, ids).mean()) for ids in (held_out.right, held_out.wrong)]
print("          right   wrong")
for name, (right, wrong) in sorted(shares.items(), key=lambda each: -max(map(abs, each[1])))[:11]:
    print(f"{name:8s} {right:+6.2f}  {wrong:+6.2f}")
assert shares["a2.h1"][1] < -2 < 0 < shares["a2.h1"][0]
assert all(min(shares[f"a1.h{head}"]) > 0.5 for head in (0, 1, 3, 4, 5, 6, 7))

# %% [markdown]
# That is why the circuit above is only half of the story: prompts that differ in who gives mention the same two names,
# so the edges that copy both carry no difference that counts. A circuit answers the question that its corrupted prompts
# ask. With another name in the place of the right one the other half shows: the name goes straight from where it
# stands.

# %%
other_name = torch.stack([next(name for name in names if name not in row) for row in pairs.clean])
renamed = torch.where(pairs.clean == pairs.right, other_name[:, None], pairs.clean)
asked = PromptPairs.from_tokens(pairs.clean, renamed, pairs.right, other_name, model=model)
for entry in edge_patching(model, asked).top(10):
    print(f"{entry.value:+.3f}  {entry.place}")

# %% [markdown]
# ## Does it need all of its parts, and does it break as the model does?

# %%
needed = minimality(model, held_out[:8], core, draws=4)
for entry in needed.highest(20):
    print(f"{entry.value:.3f}  {needed.labels['component'][entry.index[0]]}")
broken = completeness(model, held_out[:8], core, draws=8)
worst = int(broken.values.argmax())
print(
    f"largest difference when both lack the same: {broken.incompleteness:.2f}, without {broken.labels['set'][worst]}: "
    f"circuit {broken.circuit[worst]:.2f}, model {broken.model[worst]:.2f}"
)

# %% [markdown]
# ## Over sizes
#
# Circuits of the edges that help overshoot a little: they lack what argues for the other name.

# %%
print(f"CPR {found.curve.cpr:.3f}, CMD {found.curve.cmd:.3f}")
found.curve.plot()
