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
# # Your own data, model and stage
#
# Nothing in fljax has to be registered before it can be used. In forty lines we bring data of our own, a model from two
# plain functions, and a new stage on the upload; the round, the sampling and the accountant stay as they are.
#
# Set `FLJAX_FAST=1` to run the notebook with few rounds.

# %%
import dataclasses
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fljax
from fljax.core.transform import UpdateTransform, chain, no_claim, pass_decode, stateless
from fljax.privacy import state_privacy
from fljax.privacy.clip import clip
from fljax.privacy.noise import central_gaussian
from fljax.server.average import expected_average

# %matplotlib inline
ROUNDS = 10 if os.environ.get("FLJAX_FAST") else 80

# %% [markdown]
# ## Data: a list of clients
#
# Two hundred shops with 5 to 40 customers each. Every customer is five numbers, and the question is whether they come
# back. Shops differ a little in what makes people come back. Any list of `(x, y)` pairs will do.

# %%
rng = np.random.default_rng(0)
taste = rng.normal(size=5)


def shop(customers, spread):
    x = rng.normal(size=(customers, 5)).astype(np.float32)
    chance = x @ (taste + spread * rng.normal(size=5)) + 1.5 * x[:, 0] * x[:, 1]
    return x, (chance > 0).astype(np.int32)


data = fljax.FederatedData.from_clients([shop(rng.integers(5, 41), 0.5) for _ in range(200)])
test_x, test_y = shop(2000, 0.0)
data

# %% [markdown]
# ## Model: two functions
#
# `init` makes the parameters from a key, `apply` maps parameters and a batch to logits. With `groups="derive"` fljax
# finds out by itself which parameters belong to which hidden neuron, so that dropout of neurons works as well.


# %%
def init(key):
    first, second = jax.random.split(key)
    hidden = {"kernel": 0.5 * jax.random.normal(first, (5, 24)), "bias": jnp.zeros(24)}
    out = {"kernel": 0.2 * jax.random.normal(second, (24, 2)), "bias": jnp.zeros(2)}
    return {"hidden": hidden, "out": out}


def apply(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


model = fljax.from_functions(init, apply, groups="derive", input_shape=(5,))
print(model.describe())

# %% [markdown]
# ## Stage: soft thresholding of what a client sends
#
# A stage is a pair of pure functions: `encode` runs on one client, `decode` once on the server. Ours pulls every value
# of a clipped update towards zero by `hparams.extra["threshold"]`, so that small values are not sent at all.


# %%
def shrink(key, ctx, payload, server_state, client_state):
    def soft(values):
        return jnp.sign(values) * jnp.maximum(jnp.abs(values) - ctx.hparams.extra["threshold"], 0.0)

    update = jax.tree.map(soft, payload["update"])
    zeros = jnp.concatenate([jnp.ravel(values == 0) for values in jax.tree.leaves(update)])
    return {**payload, "update": update}, client_state, {"zeros": jnp.mean(zeros)}


silent = UpdateTransform("shrink", stateless, shrink, pass_decode)
stage = UpdateTransform("shrink", stateless, shrink, pass_decode, claim=no_claim)

# %% [markdown]
# The two differ in one word, and that word is a promise. A stage that says nothing about privacy is refused: nobody
# knows how far one client can move the sum through it. `no_claim` says that its `bound` tells everything. The bound
# here is the one that stages have unless they say otherwise: the norm does not grow. That is true of soft thresholding.
# For a stage of which it is not true the ε would be wrong, and nobody could see it from the code of the round.

# %%
training = fljax.Training(model, fljax.make_loss("classification"), epochs=None, steps=4)
sampler = fljax.poisson(data.population, max_rate=0.2)
hparams = fljax.Hparams(
    client_lr=0.3, sampling_rate=0.2, clip=0.4, noise_multiplier=1.0, server_lr=1.0, extra={"threshold": 0.01}
)

for own in (silent, stage):
    upload = chain(expected_average(), clip(), own, central_gaussian())
    round = fljax.recipes.dp_fedavg(training, sampler, transform=upload)
    claim = round.claims(hparams, model.init(jax.random.key(0)))
    reasons = [claim.reason] if claim.reason else []
    statement = state_privacy(round.law(hparams), claim.noise, ROUNDS, delta=1e-3, reasons=reasons)
    print(statement.sentence())

# %% [markdown]
# ## Run it, for many thresholds at once
#
# The threshold is a number of the compiled program like any other. Thirteen runs are one `vmap`.


# %%
def final(threshold, seed):
    numbers = dataclasses.replace(hparams.arrays(), extra={"threshold": threshold})
    key = jax.random.key(seed)
    start = round.init(key, model.init(key), numbers)
    end, info = jax.lax.scan(lambda s, t: round.step(t, key, s, data, numbers), start, jnp.arange(ROUNDS))
    right = jnp.argmax(model.apply(end.params, test_x), axis=-1) == test_y
    return jnp.mean(right), jnp.mean(info.client["shrink_zeros"]), info.client["loss"]


thresholds = jnp.linspace(0.0, 0.12, 13)
accuracy, zeros, loss = jax.jit(jax.vmap(final, in_axes=(0, None)))(thresholds, 0)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(loss[0], label="no threshold")
left.plot(loss[-1], "--", label=f"threshold {thresholds[-1]:.2f}")
left.set(xlabel="round", ylabel="loss on the clients")
left.legend(frameon=False)
right.plot(zeros, accuracy, "o-")
right.set(xlabel="share of values that are not sent", ylabel=f"test accuracy after {ROUNDS} rounds", xlim=(0, 1))
plt.show()

# %% [markdown]
# One seed, so that small differences mean nothing. The noise of the server lands on all coordinates whether clients
# send them or not, and what soft thresholding takes away is signal: under central noise it saves bytes and no budget.
#
# `fljax/core/transform.py` has all that a stage may say (state, wire format, noise of its own), and
# `tests/contracts/test_stages.py` the checks that every stage of fljax passes; add yours there.
