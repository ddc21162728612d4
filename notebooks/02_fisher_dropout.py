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
# # FisherDropout, told honestly
#
# Clients train and send only some neurons. Which ones? And what does it buy under differential privacy? We let
# the server rank neurons by what it has already released, put random neurons beside it at every step, look at
# what happens when masks change, and at what a mask may cost in privacy.
#
# The digits come with fljax. Set `FLJAX_FAST=1` to run the notebook with few rounds.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import fljax

# %matplotlib inline
ROUNDS = 8 if os.environ.get("FLJAX_FAST") else 100
KEEP = 0.25
base = fljax.load("digits_fisher_dropout").replace(rounds=ROUNDS, eval_every=max(ROUNDS // 10, 1))


def run(**fields):
    """Runs the experiment with some fields changed, and says what it reached."""
    outcome = fljax.run(base.replace(**{"dropout.keep_rate": KEEP, "dropout.warmup_rounds": 5, **fields}), quiet=True)
    up = outcome.communication["uplink_bytes"] / 1e6
    print(f"accuracy {outcome.final['test_accuracy']:.3f}, uplink {up:5.1f} MB")
    return outcome


# %% [markdown]
# ## A quarter of the neurons, three ways to choose them
#
# `fisher` ranks neurons by the energy of the updates that were already released, less the known energy of the
# noise. That is post-processing: it costs no privacy and no upload of positions. `random` with the same keep rate
# is the control of every claim. And the simplest competitor is no dropout at all, but a model that is small from
# the start.

# %%
dense = run(**{"dropout.source": "none", "dropout.keep_rate": 1.0})
fisher = run(**{"dropout.source": "fisher"})
fixed = run(**{"dropout.source": "random"})
small = run(**{"dropout.source": "none", "dropout.keep_rate": 1.0, "model.hidden": 8})

# %%
print(fisher.statement.sentence())

# %% [markdown]
# On a network this small the informed choice and the random one are close together: with 32 hidden neurons a
# random quarter still spans most of what is needed, and under noise the ranking knows little more than chance.
# What both save is bytes (and, executed compactly, time). Whether the choice pays on larger networks is what
# `experiments/fashion_dropout.toml` measures, with these controls in the same figure.

# %%
runs = {"dense": dense, "Fisher": fisher, "fixed random": fixed, "small dense": small}
fig, ax = plt.subplots(figsize=(6, 3.2))
for name, outcome in runs.items():
    done = ~np.isnan(outcome.history["test_accuracy"])
    sent = np.cumsum(1024.0 * outcome.history["uplink_kib"] + outcome.history["uplink_rest"]) / 1e6
    ax.plot(sent[done], outcome.history["test_accuracy"][done], marker="o", markersize=3, label=name)
ax.set(xlabel="uplink of all clients, MB", ylabel="test accuracy", xscale="log")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Masks that change cost more than masks that are wrong
#
# A neuron that is dropped and comes back meets a network that has moved on. The same random masks, drawn anew
# every round, every ten rounds, or once:

# %%
churn = {every: run(**{"dropout.source": "random", "dropout.refresh_rounds": every}) for every in (1, 10, 0)}

# %%
names = {1: "every round", 10: "every 10 rounds", 0: "once"}
fig, ax = plt.subplots(figsize=(4.2, 2.8))
ax.bar([names[k] for k in churn], [o.final["test_accuracy"] for o in churn.values()], color="0.6")
ax.axhline(dense.final["test_accuracy"], color="black", linewidth=1, label="dense")
ax.set(ylabel="test accuracy", title="random masks, redrawn", ylim=(0, 1))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Averaging where clients keep different neurons
#
# Give every client a random sub-model of its own and let every client noise its own upload. Dividing each
# coordinate by the number of clients that hold it looks fair, and amplifies the noise: fewer values are averaged.
# Dividing by the cohort keeps the promise of less noise. Here is the noise alone, in units of the dense one, for
# ten clients:

# %%
rng = np.random.default_rng(0)
clients, size, draws = 10, 400, 300
held = rng.random((draws, clients, size)) < KEEP
noise = held * rng.normal(size=held.shape)
dense_noise = 1 / clients
fixed_noise = np.mean((noise.sum(1) / clients) ** 2)
count_noise = np.mean((noise.sum(1) / np.maximum(held.sum(1), 1)) ** 2)
inverse_noise = np.mean((noise.sum(1) / (clients * KEEP)) ** 2)
ratios = {"divide by cohort": fixed_noise, "by clients that came": count_noise, "by their expectation": inverse_noise}
fig, ax = plt.subplots(figsize=(5, 2.4))
ax.barh(list(ratios), [v / dense_noise for v in ratios.values()], color="0.6")
ax.axvline(1, color="black", linewidth=1)
ax.set(xlabel="noise energy, relative to dense uploads")
plt.show()

# %% [markdown]
# ## What a private mask costs
#
# Let every client rank its neurons by the Fisher information of its own data and send the positions along, as the
# paper describes that gave this method its name. The values are noised; the positions are not, and no finite ε
# covers them. fljax runs it and says what the number is worth:

# %%
exact = fljax.run(fljax.load("digits_fisher_exact").replace(rounds=min(ROUNDS, 20)), quiet=True)
print(exact.statement.status, "-", exact.statement.sentence())
