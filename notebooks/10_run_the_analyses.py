# %% [markdown]
# # Run the analyses on a trained model
#
# `town` is a small language model that ships with the lab. When *Mary and John went to the store, John gave a drink
# to* must be finished, it says *Mary*. Which parts of it do that, and where is the answer decided?

# %%
from analyses import (
    activation_patching,
    attention_patterns,
    head_attribution,
    head_scores,
    logit_lens,
    source_attribution,
)
from interp import metrics, tasks
from models import load

model = load("town")
pairs = tasks.ioi(model, n=32, seed=0)
print(model.to_string(pairs.clean[0][pairs.mask[0]]))
print(model.to_string(pairs.corrupted[0][pairs.mask[0]]))

# %% [markdown]
# Each pair is two prompts of the same length with opposite answers. The model is sure of both: the logit difference
# between the right and the wrong name is

# %%
clean = metrics.logit_diff(model(pairs.clean, attention_mask=pairs.mask), pairs)
corrupted = metrics.logit_diff(model(pairs.corrupted, attention_mask=pairs.mask), pairs)
print(f"clean {clean.mean():.2f}, corrupted {corrupted.mean():.2f}, right on {(clean > 0).float().mean():.0%}")
assert clean.mean() > 3 > -3 > corrupted.mean()

# %% [markdown]
# ## Where is the answer decided?
#
# The logit lens reads the residual stream after every layer as if the model ended there.

# %%
prompt = model.to_string(pairs.clean[0][pairs.mask[0]])
lens = logit_lens(model, pairs.clean[0][pairs.mask[0]])
right = int(pairs.right[0, 0])
print("probability of the right name at the last position, layer by layer:")
print(lens.probability(right)[:, -1].round(3))
lens.plot()

# %% [markdown]
# Activation patching is causal: the corrupted run gets the clean run's residual stream at one layer and position.
# 0 means that nothing changed, 1 that the clean answer came back.

# %%
patched = activation_patching(model, pairs, site="resid_pre")
for found in patched.highest(5):
    print(found)
patched.plot()

# %% [markdown]
# The information starts at the second mention of the subject and ends at the last position. What moves it there?
#
# ## Which heads?

# %%
heads = activation_patching(model, pairs, site="z")
print("most sufficient heads:", [f"{found.place} {found.value:.2f}" for found in heads.top(4)])
heads.plot()

# %% [markdown]
# Direct logit attribution is not causal but exact: what each head itself wrote towards the right name. All parts,
# biases included, sum to the logit difference.

# %%
attribution = head_attribution(model, pairs)
print(f"sum of the parts {attribution.total():.4f}, logit difference {attribution.logit_diff.mean():.4f}")
assert abs(attribution.total() - attribution.logit_diff.mean()) < 1e-3
print([f"{found.place} {found.value:+.2f}" for found in attribution.top(5)])
attribution.plot()

# %% [markdown]
# Where does the head with the largest share look, and from where does it bring what it writes?

# %%
layer, head = attribution.highest(1)[0].index
by_source = source_attribution(model, pairs[:1])
shares = by_source.values[layer, head]
print(f"L{layer}H{head} brings its share from", repr(model.to_str_tokens(pairs.clean[0])[int(shares.argmax())]))
patterns = attention_patterns(model, pairs.clean[0], heads=[(layer, head)])
patterns.plot()

# %% [markdown]
# ## What else do the heads do?
#
# On random tokens repeated once: which heads look at the previous token, at an equal one, at the one after it?

# %%
scores = head_scores(model)
for role in ("previous", "duplicate", "induction"):
    table = getattr(scores, role)
    layer, head = divmod(int(table.argmax()), model.cfg.n_heads)
    print(f"{role:10s} L{layer}H{head} {table.max():.2f}")
scores.plot()

# %% [markdown]
# Every result can be kept, with where it came from: `result.save(path)`, `result.to_dataframe()`,
# `result.to_html(path)`.

# %%
origin = patched.provenance
print(origin.model, origin.weights[:12], origin.direction, origin.metric)
patched.to_dataframe().head()
