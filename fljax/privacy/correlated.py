"""Noise that is correlated over rounds, so that sums of releases (the model) carry less of it than independent noise.

| stage | noise on the sum of round t | reference |
|---|---|---|
| ``tree_noise`` | N(t) - N(t - 1), N(t) = sum of the nodes of a binary tree that add up to 1..t | DP-FTRL, tree |
| ``banded_noise`` | row t of C^-1 Z, C a banded Toeplitz matrix with columns of norm at most 1 | BandMF |

Both need to know when a client comes again, so that they work with cyclic orders alone. Here z means the same as for
independent noise, std / S of what is drawn for one round; what the correlation costs is in the accounting.

References: Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and private (deep) learning without sampling or
shuffling", ICML 2021 (arXiv 2103.00039); Choquette-Choo et al., "(Amplified) banded matrix factorization", NeurIPS 2023
(arXiv 2306.08153).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import answers
from fljax.core.check import FljaxError, positive
from fljax.core.transform import Claim, Noise, UpdateTransform, pass_encode
from fljax.core.types import Array, Ctx, Hparams, PyTree
from fljax.privacy import jaxprivacy
from fljax.privacy.noise import add_gaussian, noise_stds


def separation(sampler: Any) -> int:
    """Fewest rounds between two turns of one client in a cyclic order: ``floor(N / C)``.

    Any so many rounds in a row contain every client at most once, also where C does not divide N.

    Raises:
      FljaxError: the order is not cyclic.
    """
    if sampler.name != "cyclic":
        raise FljaxError(
            f"Expected sampler={sampler.name!r} to be 'cyclic' for correlated noise, which has to know when a client "
            "comes again. Set sampler.kind."
        )
    return sampler.population // sampler.capacity


# ---- tree ------------------------------------------------------------------------------------------------------------


def tree_noise(rounds: int, sampler: Any) -> UpdateTransform:
    """Tree aggregation: after round t of an epoch the releases add up to the sum plus one node for each 1 bit of t.

    Every node of a binary tree over the rounds of an epoch has its own N(0, (z S)^2); round t releases its sum plus
    the noise of the node that is complete with it, minus those of the k nodes that this one replaces (k = number of
    trailing zero bits of t). The prefix sum then carries at most log2(t) + 1 nodes, not t. A new tree begins with each
    epoch of ``floor(N / C)`` rounds, in which a client takes part at most once and is in at most
    ``floor(log2(epoch)) + 1`` nodes.

    The server keeps the keys of the nodes, [levels] of them, and draws a node again when it is subtracted; the bound S
    must be the same in all rounds.

    Args:
      rounds: T. sampler: cyclic.

    Raises:
      FljaxError: another sampler; on the first trace, a payload that holds more than the update.
    """
    positive(rounds=rounds)
    epoch = separation(sampler)
    levels = int(np.log2(min(epoch, rounds)))  # the last level is never subtracted
    width = jax.random.key_data(jax.random.key(0)).shape

    def init(params, hparams):
        del params, hparams
        return jnp.zeros((levels, *width), jnp.uint32), ()

    def replaced(ctx: Ctx) -> Array:
        """k, how many nodes the node of this round replaces."""
        t = ctx.round % epoch + 1
        return jax.lax.population_count(t ^ (t - 1)) - 1

    def decode(key, ctx, total, alive, keys):
        del alive
        key, std, count = jax.random.fold_in(key, 0), _std(ctx, total), replaced(ctx)
        nothing = jax.tree.map(jnp.zeros_like, total["update"])

        def subtract(level, update):
            node = add_gaussian(jax.random.wrap_key_data(keys[level]), nothing, std, ctx.support)
            return jax.tree.map(jnp.subtract, update, node)

        noisy = add_gaussian(key, total["update"], std, ctx.support)
        if levels:
            noisy = jax.lax.fori_loop(0, count, subtract, noisy)
            keys = keys.at[count].set(jax.random.key_data(key), mode="drop")
        return {"update": noisy}, keys, {"std": std * jnp.sqrt(1.0 + count)}

    def spread(ctx, keys, std):
        del keys
        return jnp.sqrt(std**2 + jnp.square(_std(ctx)) * (1.0 + replaced(ctx)))

    claim = _claim("tree", ("epoch", float(epoch)))
    return UpdateTransform("noise", init, pass_encode, decode, noise=spread, claim=claim)


# ---- banded ----------------------------------------------------------------------------------------------------------


def banded_noise(rounds: int, bands: int, sampler: Any) -> UpdateTransform:
    """Banded matrix factorisation: round t releases its sum plus row t of ``z S C^-1 Z``, Z independent normals.

    C is lower triangular, banded and Toeplitz, with columns of norm at most 1, chosen for the smallest mean squared
    error of the prefix sums. A client that comes again after at least b rounds meets disjoint rows of C, so that k
    turns have sensitivity ``S sqrt(k)``, as for independent noise. b = 1 is independent noise.

    Rows are streamed, ``y_t = (zeta_t - sum_{j=1}^{b-1} c_j y_{t-j}) / c_0``: the server keeps the last b - 1 of them,
    [b - 1, P] numbers.

    Args:
      rounds: T, for which C is chosen. bands: b. sampler: ``cyclic`` with floor(N / C) >= b, or ``cyclic_poisson`` with
        at least b groups.

    Raises:
      FljaxError: another sampler, or clients that come again after fewer than b rounds; jax_privacy is needed and not
        installed; on the first trace, a payload that holds more than the update.
    """
    positive(rounds=rounds, bands=bands)
    apart = sampler.law(Hparams()).groups if sampler.name == "cyclic_poisson" else separation(sampler)
    if apart < bands:
        raise FljaxError(
            f"Expected bands={bands} <= {apart}, the rounds until a client comes again. Use fewer bands, or smaller "
            "cohorts."
        )
    coefficients = banded_strategy(rounds, min(bands, rounds))
    first, rest = float(coefficients[0]), jnp.asarray(coefficients[1:], jnp.float32)
    sizes = jnp.asarray(row_norms(coefficients, rounds), jnp.float32)

    def init(params, hparams):
        del hparams
        return jax.tree.map(lambda p: jnp.zeros((len(rest), *p.shape), jnp.float32), params), ()

    def decode(key, ctx, total, alive, rows):
        del alive
        std = _std(ctx, total)
        drawn = add_gaussian(jax.random.fold_in(key, 0), jax.tree.map(jnp.zeros_like, total["update"]), std)
        row = jax.tree.map(lambda z, past: (z - jnp.tensordot(rest, past, axes=1)) / first, drawn, rows)
        rows = jax.tree.map(lambda y, past: jnp.concatenate([y[None], past])[: len(rest)], row, rows)
        seen = row if ctx.support is None else jax.tree.map(jnp.multiply, row, ctx.support)
        noisy = jax.tree.map(lambda x, y: x.astype(jnp.float32) + y, total["update"], seen)
        return {"update": noisy}, rows, {"std": std * sizes[ctx.round]}

    def spread(ctx, rows, std):
        del rows
        return jnp.sqrt(std**2 + jnp.square(_std(ctx) * sizes[ctx.round]))

    claim = _claim("banded", ("bands", float(bands)))
    return UpdateTransform("noise", init, pass_encode, decode, noise=spread, claim=claim)


def row_norms(coefficients: np.ndarray, rounds: int) -> np.ndarray:
    """[T] L2 norms of the rows of C^-1: the standard deviation of each round's noise, over z S."""
    inverse = np.zeros(rounds)
    for t in range(rounds):
        past = inverse[max(0, t - len(coefficients) + 1) : t][::-1]
        inverse[t] = ((t == 0) - coefficients[1 : 1 + len(past)] @ past) / coefficients[0]
    return np.sqrt(np.cumsum(inverse**2))


def banded_strategy(rounds: int, bands: int) -> np.ndarray:
    """Coefficients of the strategy for T rounds and b bands: [b] float64 of norm 1, kept on disk.

    The file holds what it was made for; a damaged one is a miss. Privacy holds for any coefficients of norm 1, to which
    they are scaled after reading; they decide on the error alone.
    """
    if bands == 1:
        return np.ones(1)
    question = json.dumps({"rounds": rounds, "bands": bands, "jax_privacy": jaxprivacy.installed()})
    found = _trusted(answers.lookup("strategies", question), bands)
    if found is None:
        found = jaxprivacy.banded_coefficients(rounds, bands)
        answers.store("strategies", question, found.tolist())
    return found / np.linalg.norm(found)


def _trusted(stored: Any, bands: int) -> np.ndarray | None:
    """Stored coefficients, or None where they cannot be those of a strategy."""
    try:
        found = np.array(stored, np.float64)
    except (ValueError, TypeError):
        return None
    return found if found.shape == (bands,) and np.isfinite(found).all() and found[0] > 0 else None


# ---- both ------------------------------------------------------------------------------------------------------------


def _std(ctx: Ctx, total: dict[str, PyTree] | None = None) -> Array:
    """z S of the one bound of the chain."""
    if total is not None and set(total) != {"update"}:
        raise FljaxError(
            f"Expected the payload {', '.join(sorted(total))} to be the update alone for correlated noise. "
            "Use fedavg with a fixed clip, or central_gaussian."
        )
    stds = noise_stds(ctx)
    return jnp.sqrt(sum(jnp.square(s) for s in stds.values()))


def _claim(kind: str, detail: tuple[str, float]) -> Callable[[Hparams], Claim]:
    def claim(hparams: Hparams) -> Claim:
        if float(hparams.noise_scale) != 1:
            return Claim(reason="noise_scale works with central_gaussian alone; set privacy.noise_scale = 1")
        return Claim(Noise(kind, float(hparams.noise_multiplier), "central", (detail,)))

    return claim
