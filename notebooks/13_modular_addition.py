# %% [markdown]
# # How a transformer adds: from memory to sines and cosines
#
# `addition-1l` learned `a + b mod 113` from 30 % of all pairs. It memorised them first, and generalised a thousand
# steps later (Nanda et al. 2023, arXiv:2301.05217). What it learned can be read in the Fourier basis: to answer `c`
# it adds up `cos 2πk(a + b - c)/113` for a handful of frequencies `k`, and where all of them agree is the sum.

# %%
import numpy as np
import torch

from analyses import modular_spectrum
from analyses.fourier import ModularSpectrum
from interp import pictures
from interp.pictures import Axis
from models import load
from models.zoo import recipes
from models.zoo.modular import ModularAddition

model = load("addition-1l")
with torch.no_grad():
    answer = model(model.to_tokens("100 + 50 ="))[0, -1].argmax()
print("100 + 50 =", model.to_string(answer[None]), "modulo 113")

# %% [markdown]
# ## Which frequencies
#
# The logits at the equals sign, for all 12,769 pairs, are projected on the waves of `a + b`. Four frequencies hold
# nearly everything, and the same four stand out in the embedding of the numbers.

# %%
found = modular_spectrum(model)
print(f"key frequencies {found.key} hold {found.values[[k - 1 for k in found.key]].sum():.1%} of the logits")
assert found.key == (15, 33, 38, 16)
found.plot()

# %% [markdown]
# ## Nothing else is needed, and nothing else is enough
#
# *Restricted*: the logits' parts of the key frequencies alone. *Excluded*: all the rest. Guessing costs ln 113 = 4.73.

# %%
print(f"loss {found.loss:.1e}   restricted {found.restricted:.1e}   excluded {found.excluded:.2f} nats")
assert found.restricted <= found.loss < 1e-4
assert found.excluded > found.chance

for k in found.key:
    print(f"without frequency {k:2d}: {found.without[k - 1]:.3f} nats")

# %% [markdown]
# ## Three phases of training
#
# The same four frequencies, measured on pairs that were never trained on, at the checkpoints that are kept. The model's
# own loss is worse than guessing for half of the training. The restricted loss falls all the while: the algorithm is
# there, below the memorised answers, long before it wins.

# %%
data = recipes.find("addition-1l").lesson().batches
assert isinstance(data, ModularAddition)
unseen = torch.ones(data.p**2, dtype=torch.bool)
unseen[data.order[: data.n_train]] = False
unseen = unseen.unflatten(0, (data.p, data.p))  # [a b]

steps = [500, 1000, 1500, 2000, 2500]
course: list[ModularSpectrum] = []
for step in steps:
    checkpoint = model if step == 2500 else load("addition-1l", revision=f"step-{step}")
    course.append(modular_spectrum(checkpoint, key=found.key, pairs=unseen))
    now = course[-1]
    print(f"step {step:4d}   loss {now.loss:9.2e}   restricted {now.restricted:9.2e}   excluded {now.excluded:6.2f}")

losses = {
    "loss": np.array([each.loss for each in course]),
    "restricted": np.array([each.restricted for each in course]),
    "excluded": np.array([each.excluded for each in course]),
}
pictures.lines(losses, Axis("step", len(steps), steps), title="On pairs that were never trained on", unit="nats")

# %%
assert course[2].restricted < found.chance / 2 < found.chance < course[2].loss
assert course[-1].restricted <= course[-1].loss
