# %% [markdown]
# # Two models side by side
#
# Is this port right? What did training change? Do these two models do it the same way? `compare` answers all three on
# the same text: hook point by hook point where two models share an architecture, and in what does not depend on the
# basis where they do not.

# %%
import tempfile
from pathlib import Path

import torch

from analyses import compare, training_course
from interp import tasks
from models import GPT, load

pretrained = load("town")
scratch = GPT(pretrained.cfg, tokenizer=pretrained.tokenizer)
pairs = tasks.ioi(pretrained, n=32, seed=0)

# %% [markdown]
# ## What training changed
#
# Same shape, other weights: the two agree on nothing, from the embedding on.

# %%
apart = compare(pretrained, scratch, pairs.clean, pairs.mask)
print("first hook point that differs:", apart.first_difference())
for measure, (mean, error) in apart.predictions.summary().items():
    print(f"{measure:26s} {mean:.3f} ± {error:.3f}")
apart.losses.by_class().to_dataframe().head(6)

# %% [markdown]
# The lens shows the depth at which the pretrained model makes up its mind; the untrained one never does.

# %%
apart.lens.plot()

# %% [markdown]
# ## Is a port right?
#
# The model leaves as a Hugging Face checkpoint and comes back through our loader and through TransformerLens. Every
# activation is the same up to rounding.

# %%
with tempfile.TemporaryDirectory() as folder:
    pretrained.export(Path(folder) / "town")
    back = load(Path(folder) / "town")
    bridge = load(Path(folder) / "town", backend="transformer-lens")

prompt = "When Mary and John went to the store, John gave a drink to"
for other in (back, bridge):
    result = compare(pretrained, other, prompt)
    print(
        f"{type(other).__name__:8s} {len(result.relative)} hook points,"
        f" largest relative difference {result.relative.max():.1e}"
    )
    assert result.first_difference() is None

# %% [markdown]
# A planted error shows at the hook point where it is made.

# %%
with torch.no_grad():
    back.blocks[1].attn.v.weight[: back.cfg.d_head] *= 1.5
wrong = compare(pretrained, back, prompt)
print("first difference now:", wrong.first_difference())
assert wrong.first_difference() == "blocks.1.attn.hook_v"
wrong.plot()

# %% [markdown]
# ## Do two models do it the same way?
#
# A model of another depth has no hook points that correspond. Its layers and heads can still be matched: streams by
# CKA, which is blind to bases, and heads by where they look.

# %%
early, late = load("induction-2l", revision="step-300"), load("induction-2l")
rows = tasks.repeated_tokens(late, 16, 32)
same = compare(early, late, rows)
print("most alike layers:", *same.layers.best())
for match in same.heads.matches():
    print(f"{match.a} is most like {match.b} ({match.similarity:.2f}){' and the other way round' * match.mutual}")

# %% [markdown]
# ## How did it come about?
#
# Fourteen checkpoints of the model were kept through its phase change. The loss on a repeat falls as the heads that it
# needs appear.

# %%
steps = (0, 100, 200, 300, 400, 500, 800, 1000, 1200, 1500)
earlier = ((f"step-{step}", load("induction-2l", revision=f"step-{step}")) for step in steps)
course = training_course(late, earlier)
for row in course.rows():
    print(f"{row[0]:10s}  repeat loss {row[2]:.3f}  previous {row[3]:.2f}  induction {row[5]:.2f}")
assert course.values[0, 1] > 4 > 0.1 > course.values[-1, 1]
course.plot()
