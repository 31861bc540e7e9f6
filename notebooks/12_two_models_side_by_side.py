# %% [markdown]
# # A from-scratch and a pretrained model side by side
#
# The same code runs on a model that was just initialised, on one that was trained, and on one that another library
# loaded. So they can be compared activation by activation.

# %%
import tempfile
from pathlib import Path

import torch

from analyses import compare, head_scores, logit_lens
from interp import metrics, tasks
from models import GPT, load

pretrained = load("town")
scratch = GPT(pretrained.cfg, tokenizer=pretrained.tokenizer)
prompt = "When Mary and John went to the store, John gave a drink to"

# %% [markdown]
# ## What training changed
#
# Same shape, other weights: the two agree on nothing after the embedding.

# %%
apart = compare(pretrained, scratch, prompt)
print("first hook point that differs:", apart.first_difference())
print(f"same prediction at {apart.agreement:.0%} of the positions, KL {apart.kl.mean():.2f} nats")

for name, model in (("pretrained", pretrained), ("from scratch", scratch)):
    pairs = tasks.ioi(model, n=32, seed=0)
    with torch.no_grad():
        difference = metrics.logit_diff(model(pairs.clean, attention_mask=pairs.mask), pairs).mean()
    scores = head_scores(model)
    print(
        f"{name:12s}  logit difference {difference:+.2f}  previous-token head {scores.previous.max():.2f}"
        f"  induction head {scores.induction.max():.2f}"
    )

# %% [markdown]
# The lens shows the depth at which the pretrained model makes up its mind; the untrained one never does.

# %%
for name, model in (("pretrained", pretrained), ("from scratch", scratch)):
    lens = logit_lens(model, prompt)
    print(f"{name:12s}  entropy at the last position, by layer:", lens.entropy[:, -1].round(2))

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
print("first difference now:", compare(pretrained, back, prompt).first_difference())
assert compare(pretrained, back, prompt).first_difference() == "blocks.1.attn.hook_v"
