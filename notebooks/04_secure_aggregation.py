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
# # Secure sums
#
# A server needs the sum of the clients' updates, and no single one of them. We write updates as words, hide them under
# pads that cancel, let clients drop out, and look at what the server sees. [docs/secure.md](../docs/secure.md) has the
# rest. The pads are those of a simulator: this shows how the protocols work, and protects nobody.
#
# Set `FLJAX_FAST=1` to run the notebook with few rounds.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fljax
from fljax.core.types import Ctx, Hparams
from fljax.secure.fixedpoint import decode, encode, smallest_bits, top_word
from fljax.secure.graph import choose_graph
from fljax.secure.masks import Lanes, double_mask, server_view, shared_key
from fljax.secure.watermark import bit_error_rate, detect_mark, embed_mark

# %matplotlib inline
FAST = bool(os.environ.get("FLJAX_FAST"))
CLIENTS, SIZE, VALUE_BITS = 8, 4096, 16
rng = np.random.default_rng(0)
updates = jnp.asarray(rng.normal(scale=0.1, size=(CLIENTS, SIZE)), jnp.float32)

# %% [markdown]
# ## Words
#
# A value becomes an integer, rounded at random without bias. Sums of words are words of the sum, if there are enough
# bits: the smallest number that proves it follows from the number of clients.

# %%
bits, unit = smallest_bits(VALUE_BITS, CLIENTS), jnp.float32(1.0 / top_word(VALUE_BITS))
words = jax.vmap(lambda key, x: encode(key, x, unit, top_word(VALUE_BITS)))(
    jax.random.split(jax.random.key(0), CLIENTS), updates
)
error = np.abs(decode(words.sum(0), unit, bits) - updates.sum(0)).max()
print(f"{bits} bits a word; the decoded sum is off by at most {error:.1e}")

# %% [markdown]
# ## One key for everybody is no encryption
#
# Every client adds the same pad. Who knows one update, its own for instance, knows the pad and reads all others.

# %%
presence = jnp.full(CLIENTS, 2)  # everybody answers


def upload(mask, presence, key):
    """What the clients send, and the context of the round."""
    one = jnp.float32(1)
    ctx = Ctx(jnp.int32(0), Hparams(), key, jnp.int32(-1), jnp.int32(-1), one, one, presence=presence)
    send = lambda slot, x: mask.encode(None, ctx._replace(slot=slot), {"update": x}, (), ())[0]  # noqa: E731
    sent = jax.vmap(send)(jnp.arange(CLIENTS), words)
    return ctx, {"update": jnp.where((presence == 2)[:, None], sent["update"], 0)}


lanes = Lanes(SIZE, bits, mode="masked")
_, sent = jax.jit(lambda: upload(shared_key(lanes), presence, jax.random.key(1)))()
key = sent["update"][0] - words[0]  # client 0 subtracts its own words
print("client 0 reads client 5 exactly:", bool((sent["update"][5] - key == words[5]).all()))

# %% [markdown]
# ## Pads of pairs and a self mask
#
# With SecAgg every pair of neighbours shares a pad, which one adds and the other subtracts, and everybody has a pad of
# its own. Client 3 drops out after keys were shared: its neighbours' pads with it are taken off with its key, the own
# pads of the others with theirs. For no client the server asks for both.

# %%
graph = choose_graph(CLIENTS, corrupt=0.2, dropout=0.2)
mask, presence = double_mask(lanes, graph), presence.at[3].set(1)


@jax.jit
def look(key):
    ctx, sent = upload(mask, presence, key)
    return server_view(mask, bits, ctx, sent)


view = look(jax.random.key(2))
print(f"{graph.degree} neighbours, threshold {graph.threshold}")
print("the sum of the others, exactly:", bool((view.total["update"] == words[presence == 2].sum(0) % 2**bits).all()))
print("both secrets of one client:", bool((view.asked.self_masks & view.asked.pair_keys).any()))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].hist(np.asarray(decode(words[0], unit, bits)), bins=60)
axes[0].set(title="what client 0 has", xlabel="value")
axes[1].hist(np.asarray(view.uploads["update"][0]), bins=60)
axes[1].set(title="what the server gets from it", xlabel="word")
plt.show()

# %% [markdown]
# ## A whole run
#
# `digits_secagg` trains under SecAgg+ while one client in five drops out. The same words without any mask give the same
# model to the last bit: a mask changes who can read an upload, and no result. So sweeps need not make the pads. The sum
# itself is open to the server, hence there is no ε: that takes noise.

# %%
experiment = fljax.load("digits_secagg").replace(rounds=4 if FAST else 100, eval_every=4 if FAST else 10)
masked, clear = fljax.run(experiment, quiet=True), fljax.run(experiment.control("clear"), quiet=True)
print("equal bits:", masked.secure["params_sha256"] == clear.secure["params_sha256"])
print(masked.statement.sentence())
masked.secure

# %% [markdown]
# ## A mark that survives averaging
#
# The lowest bits of floats do not survive an average. A mark that is spread over many values does: its error rate falls
# with its amplitude as `Q(alpha sqrt(L / n))`. Here one client in eight marks its update with 16 bits.

# %%
secret = jax.random.bernoulli(jax.random.key(5), 0.5, (16,)).astype(jnp.int32)
for alpha in (0.1, 0.3, 0.9):
    marked = updates.at[0].set(embed_mark(jax.random.key(6), updates[0], secret, alpha * 0.1))
    read, _ = detect_mark(jax.random.key(6), marked.mean(0), 16)
    law = bit_error_rate(alpha, SIZE // 16, CLIENTS)
    print(f"alpha = {alpha}: {int((read != secret).sum())} of 16 bits wrong, {16 * law:.1f} expected")
