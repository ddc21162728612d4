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
# # A first simulation
#
# Many clients, each with a handful of handwritten digits of its own, learn one model together. We look at who holds
# what, train without privacy, turn privacy on and read what may be claimed, and end with a sweep that is one compiled
# program.
#
# The digits come with fljax. Set `FLJAX_FAST=1` to run the notebook with few rounds.

# %%
import dataclasses
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fljax
from fljax.data import plot_partition
from fljax.privacy import state_privacy

# %matplotlib inline
ROUNDS = 6 if os.environ.get("FLJAX_FAST") else 60

# %% [markdown]
# ## Who holds what
#
# 1,430 training digits are dealt out to 143 clients. A Dirichlet partition makes the clients differ: the smaller
# `alpha`, the fewer labels a client has. The right panel shows one column per client.

# %%
data = fljax.load_dataset("digits", partition="dirichlet", alpha=0.3)
data

# %%
plot_partition(data.summary())

# %% [markdown]
# ## One round is a function
#
# A round is made of parts: a model, how a client trains, who takes part, and a recipe that binds them. All numbers
# (learning rates, sampling rate, later clip and noise) are in `Hparams`; they are inputs of the compiled round, so that
# a new value never compiles again.

# %%
model = fljax.make_model("mlp", data.input_shape, data.num_classes, hidden=(32,))
training = fljax.Training(model, fljax.make_loss(data.task), epochs=None, steps=5)
clients = fljax.poisson(data.train.population, max_rate=0.3)
fedavg = fljax.recipes.fedavg(training, clients)

print(model.describe())

# %% [markdown]
# `init` makes the state of round 0, `step` turns a state into the next one. What comes out beside the state, `info`, is
# the simulator's own view; nothing in it can reach a later round.


# %%
def accuracy(params):
    """Share of the test digits that are recognised."""
    return jnp.mean(jnp.argmax(model.apply(params, data.test.x), axis=-1) == data.test.y)


def train(round, hparams, seed=0):
    """Runs the rounds one by one: the final state, and per round (loss on the clients, test accuracy, clients)."""
    key = jax.random.key(seed)
    state, step, curves = round.init(key, model.init(key), hparams), jax.jit(round.step), []
    for t in range(ROUNDS):
        state, info = step(t, key, state, data.train, hparams)
        curves.append((info.client["loss"], accuracy(state.params), info.participants))
    return state, np.array(curves)


numbers = fljax.Hparams(client_lr=0.3, sampling_rate=0.3, server_momentum=0.9)
state, plain = train(fedavg, numbers.arrays())
print(f"test accuracy without privacy: {plain[-1, 1]:.3f}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
left.plot(plain[:, 0])
left.set(xlabel="round", ylabel="training loss")
middle.plot(plain[:, 1])
middle.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1))
right.plot(plain[:, 2], ".")
right.set(xlabel="round", ylabel="clients in the round", ylim=(0, None))
plt.show()

# %% [markdown]
# ## Turn privacy on
#
# Two things change. Every client's update is clipped to norm $S$, so that no client moves the sum by more than $S$,
# whatever its data are. The server adds Gaussian noise of standard deviation $z S$ to the sum. The average is then
# divided by the *expected* number of clients, a public constant: how many came is private too.
#
# $$\tilde u = \frac{1}{qN}\Big(\sum_{k \in \text{cohort}} u_k \min\big(1, S / \lVert u_k \rVert\big)
# + \mathcal N(0, z^2 S^2 I)\Big)$$

# %%
private = fljax.recipes.dp_fedavg(training, clients)
private_numbers = dataclasses.replace(numbers, clip=0.25, noise_multiplier=1.6, server_lr=0.2)
state, noisy = train(private, private_numbers.arrays())
print(f"test accuracy: {plain[-1, 1]:.3f} without privacy, {noisy[-1, 1]:.3f} with clip and noise")

# %% [markdown]
# What may be claimed follows from the objects that ran: the sampler states its law, the stages state what they promise,
# and the accountant turns both into $(\varepsilon, \delta)$. $\delta$ has to be below $1/N$.

# %%
claim = private.claims(private_numbers, state.params)
law = private.law(private_numbers)
statement = state_privacy(law, claim.noise, rounds=ROUNDS, delta=1e-3)
print(statement.sentence())

# %% [markdown]
# The same question to the first round has another answer, because nothing bounds what its clients send and its average
# depends on who came. There is no number to quote.

# %%
refused = fedavg.claims(numbers, state.params)
print(refused.reason)

# %% [markdown]
# ## A sweep is a `vmap`
#
# Noise is a traced number, so a whole sweep over it is one compiled program: a scan over rounds under a vmap over
# noise. Every trial uses the same cohorts and the same random directions of the noise, so that the differences are due
# to its size.

# %%
noises = jnp.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])


def final(noise):
    hparams, key = dataclasses.replace(private_numbers.arrays(), noise_multiplier=noise), jax.random.key(0)
    start = private.init(key, model.init(key), hparams)
    end, _ = jax.lax.scan(lambda s, t: private.step(t, key, s, data.train, hparams), start, jnp.arange(ROUNDS))
    return accuracy(end.params)


accuracies = jax.jit(jax.vmap(final))(noises)

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(noises, accuracies, "o-")
axes.set(xlabel="noise multiplier z", ylabel=f"test accuracy after {ROUNDS} rounds", ylim=(0, 1))
plt.show()

# %% [markdown]
# ## The same from a file
#
# Experiments are also data. The one-liner loads a shipped experiment, changes a field, and runs it with evaluation,
# timing and a privacy statement; `fljax run digits_fedavg --rounds 20` does the same on the command line.

# %%
fljax.run(fljax.load("digits_fedavg").replace(rounds=min(ROUNDS, 20)), quiet=True)

# %% [markdown]
# From here: notebook 03 turns the last figure into accuracy against ε, 06 brings your own data, model and stage, and 07
# reads results. `docs/design.md` tells how a round is built, `docs/privacy.md` what an epsilon of fljax claims and what
# it does not, and `experiments/` holds more to start from.
