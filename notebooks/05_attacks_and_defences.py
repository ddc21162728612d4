# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attacks and defences
#
# A fifth of the clients is malicious. We watch what that does to a plain mean, put a robust rule in its place, ask
# whom the rule rejected, and plant a backdoor.
#
# The digits come with fljax. Set `FLJAX_FAST=1` to run the notebook with few rounds and seeds.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import fljax
from fljax.sim.build import build, resolve

# %matplotlib inline
FAST = bool(os.environ.get("FLJAX_FAST"))
ROUNDS, SEEDS = (8, 1) if FAST else (60, 3)
base = fljax.load("digits_byzantine").replace(rounds=ROUNDS, eval_every=ROUNDS // 4, sweep=None)
base

# %% [markdown]
# ## Strength and share of an attack are numbers
#
# Sign flips turn an update around and make it longer. How many clients do it, and how strongly, are inputs of the
# compiled program: the whole curve is one call. The same clients are malicious in every round, and a larger share
# adds to a smaller one.

# %%
shares = [0.0, 0.2, 0.4] if FAST else [0.0, 0.1, 0.2, 0.3, 0.4]
reached = {}
for rule in ("mean", "median"):
    cells = {"seeds": SEEDS, "grid": {"attack.fraction": shares}}
    sweep = base.replace(sweep=cells, **{"robust.rule": rule, "attack.strength": 3.0})
    outcome = fljax.run_sweep(sweep, quiet=True)
    asked = np.array([trial.values["attack.fraction"] for trial in outcome.trials])
    last = outcome.history["test_accuracy"][:, -1]
    reached[rule] = [last[asked == share].mean() for share in shares]

fig, ax = plt.subplots(figsize=(5, 3))
for rule, accuracy in reached.items():
    ax.plot(shares, accuracy, "o-", label=rule)
ax.set_xlabel("share of malicious clients")
ax.set_ylabel("test accuracy")
ax.legend()
plt.show()

# %% [markdown]
# ## Who is rejected
#
# A rule that weighs clients can be asked whom it rejected. Sign flips stand out; an attack that knows the honest
# updates hides among them ("a little is enough"). Precision is the share of malicious clients among the rejected,
# recall the share of rejected ones among the malicious. Multi-Krum always rejects f clients, whether anybody is
# malicious or not.

# %%
for kind in ("alie",) if FAST else ("sign_flip", "alie"):
    outcome = fljax.run(base.replace(**{"robust.rule": "multi_krum", "attack.kind": kind}), quiet=True)
    print(kind, {name: round(value, 3) for name, value in {**outcome.final, **outcome.detection}.items()})

# %% [markdown]
# ## A backdoor
#
# Malicious clients stamp a square on half of their images, call them "0", and send an update several times as long.
# The model stays good on clean images, which is all that accuracy sees. Attack success is the share of other digits
# that are taken for "0" once the square is on them. A bound on the norm takes the length away, and after sixty rounds
# the backdoor is there all the same: a fifth of the clients teaches it patiently. The median leaves it out.

# %%
planted = base.replace(**{"attack.kind": "backdoor", "attack.strength": 4.0, "attack.target": 0})
defences = {
    "mean": {},
    "mean of bounded updates": {"robust.before": ("norm_bound",), "robust.bound": 0.5},
    "median": {"robust.rule": "median"},
}
for name in ("mean", "median") if FAST else defences:
    outcome = fljax.run(planted.replace(**defences[name]), quiet=True)
    print(f"{name:25s}", {k: round(v, 3) for k, v in outcome.final.items()})

# %% [markdown]
# ## Robust and private
#
# How far one client can move a median has no bound that fljax states, so noise by the server gets no ε with it. Noise
# of the clients themselves is not concerned.

# %%
for mechanism in ("central_gaussian", "local_gaussian"):
    noise = {"privacy.mechanism": mechanism, "privacy.clip": 1.0, "privacy.noise_multiplier": 8.0}
    private = base.replace(**noise, **{"robust.rule": "median"})
    print(mechanism, "-", resolve(private, build(private))[1].sentence())

# %% [markdown]
# ## What this does not show
#
# A rule that survives the attacks tried here may fall to one made for it. `attack.optimised` lets the adversary try
# the rule itself; [robust.md](../docs/robust.md) says what each rule needs, and what no rule can do. Under secure
# aggregation the server sees sums of groups, and the larger they are the less a rule withstands.
