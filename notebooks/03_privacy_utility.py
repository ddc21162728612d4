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
# # Accuracy against epsilon
#
# How much accuracy does a privacy budget cost? We watch one private run, cross five budgets with several seeds in one
# compiled program, and read the curve with the care that it needs.
#
# The digits come with fljax. Set `FLJAX_FAST=1` to run the notebook with few rounds and seeds.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import fljax

# %matplotlib inline
FAST = bool(os.environ.get("FLJAX_FAST"))
ROUNDS, SEEDS = (12, 2) if FAST else (100, 5)
base = fljax.load("digits_dp_fedavg").replace(rounds=ROUNDS, eval_every=max(ROUNDS // 10, 1))
base

# %% [markdown]
# ## One run, watched
#
# A run is compiled once and then called for a few rounds at a time. Between two calls the view below is updated: rounds
# done, ε spent so far, accuracy and loss. Nothing is drawn inside of a call, so that watching costs nothing.

# %%
one = fljax.run(base)

# %%
one

# %%
print(one.statement.sentence())

# %% [markdown]
# ## Five budgets, one program
#
# Noise, clip and learning rates are inputs of the compiled program. Clip and server learning rate belong to the budget:
# less noise bears a larger step. They were chosen on clients that never train (`experiments/digits_tuning.toml`). The
# noise of every budget is calibrated from the sampler and the number of rounds before anything runs.

# %%
budgets = {
    "privacy.epsilon": [2.0, 4.0, 8.0, 16.0, float("inf")],
    "privacy.clip": [0.25, 0.25, 0.25, 0.125, float("inf")],
    "server.lr": [0.1, 0.2, 0.2, 0.8, 0.8],
}
if FAST:
    budgets = {name: [values[0], values[2], values[-1]] for name, values in budgets.items()}
sweep = base.replace(sweep={"seeds": SEEDS, "zip": budgets}, **{"privacy.epsilon": None})
outcome = fljax.run_sweep(sweep)
outcome

# %% [markdown]
# ## The curve, with its uncertainty
#
# Points are means over seeds, bars two standard errors. Seeds change cohorts, initial weights and noise; the partition
# and the test set stay. The run without noise stands apart: it has no ε at all.

# %%
asked = np.array([trial.values["privacy.epsilon"] for trial in outcome.trials])
reached = outcome.history["test_accuracy"][:, -1]
levels = np.unique(asked)
mean = np.array([reached[asked == level].mean() for level in levels])
error = np.array([2 * reached[asked == level].std(ddof=1) / np.sqrt(SEEDS) for level in levels])
finite = np.isfinite(levels)

fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
ax.errorbar(levels[finite], mean[finite], error[finite], marker="o", capsize=3, label="private")
ax.axhline(mean[~finite][0], color="black", linestyle="--", linewidth=1, label="no noise")
ax.set(xscale="log", xlabel="ε per user (δ = 0.001, log scale)", ylabel=f"test accuracy after {ROUNDS} rounds")
ax.set_xticks(levels[finite], [f"{level:g}" for level in levels[finite]])
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What a round costs
#
# ε grows with the rounds, and accuracy does too, until the noise of a step outweighs its signal. The same runs, drawn
# against the budget that was spent by then. Reading off the best point of such a curve is a choice by test data; the
# number of rounds has to be fixed before, as it was here.

# %%
fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
for k, level in enumerate(levels[finite]):
    rows = np.flatnonzero(asked == level)
    seen = ~np.isnan(outcome.history["test_accuracy"][rows[0]])
    spent = outcome.history["epsilon_spent"][rows[0], seen]
    accuracy = outcome.history["test_accuracy"][rows][:, seen].mean(axis=0)
    ax.plot(spent, accuracy, marker="osD^"[k], markersize=3, label=f"noise for ε = {level:g}")
ax.set(xscale="log", xlabel="ε spent so far (log scale)", ylabel="test accuracy")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What these numbers do not say
#
# Every ε holds for one trial by itself. To try many and publish the best costs more (`fljax privacy select` prices it).
# Test accuracy is the experimenter's own view and outside of any ε. And 143 clients are few: with more of them, the
# same ε costs less, because the noise is divided by more.
#
# On the command line the main job of the project is the same sweep with dropout of neurons: `make run`.
