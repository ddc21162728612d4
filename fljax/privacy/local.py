"""Local user-level differential privacy: every client randomises its own upload, and trusts nobody.

The guarantee is for one upload against whoever sees it, the server included; any upload of a client may become any
other (relation replace_one). Sampling amplifies nothing, because the server sees who sends.

| stage | bounds | sends | epsilon of one upload |
|---|---|---|---|
| ``local_gaussian`` | L2, by the stages before it | every value + N(0, (z S)^2) | of a Gaussian with z / 2 |
| ``local_laplace`` | L1 <= S | every value + Laplace(2 S / eps) | eps = 1 / noise_multiplier |
| ``local_duchi`` | every coordinate in [-S, S] | one coordinate, one bit | eps |
| ``local_krr`` | every coordinate in [-S, S] | one coordinate, one of k levels | eps |
| ``local_privunit`` | L2 <= S | a point of a sphere | eps |

The last four are chained without a clip stage: ``chain(expected_average(), local_duchi(P))``. Under a public mask of
neurons they randomise its coordinates alone. A client whose update is not finite sends a randomised zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, in_range, positive
from fljax.core.transform import Claim, Noise, UpdateTransform, Wire, pass_decode, stateless, total_bound
from fljax.core.types import Array, Bounds, Ctx, Hparams, Payload, PyTree
from fljax.privacy import randomise
from fljax.privacy.noise import add_gaussian


def _uploads(ctx: Ctx) -> Array:
    """Expected number of uploads in a round: of those that are sampled, those that answer."""
    return ctx.expected * ctx.hparams.availability


def local_gaussian() -> UpdateTransform:
    """Every client adds N(0, (z S)^2) to its own upload, z = ``hparams.noise_multiplier``.

    S is the bound of the whole chain, all parts of the payload together, so that all parts are one Gaussian mechanism.
    The accountant takes z / 2, because replacing an upload moves it by up to 2 S. With a public ``ctx.support`` the
    update is noised on the support alone. It needs a clip: ``chain(expected_average(), clip(), local_gaussian())``.

    Info: ``std``, of the noise on one upload.

    Source: Dwork and Roth, "The algorithmic foundations of differential privacy", 2014, on each record by itself.
    """

    def std_of(ctx: Ctx) -> Array:
        z = ctx.hparams.noise_multiplier
        return jnp.where(z > 0, z * total_bound(ctx.bounds or {}), 0.0)

    def encode(key, ctx, payload: Payload, server_state, client_state):
        del server_state
        parts, std = {}, std_of(ctx)
        for i, name in enumerate(sorted(payload)):
            support = ctx.support if name == "update" else None
            noisy = add_gaussian(jax.random.fold_in(key, i), payload[name], std, support)
            parts[name] = payload[name] if name == "count" else noisy  # the mask itself is public, or told anyway
        return parts, client_state, {"std": std}

    def spread(ctx, state, std):
        del state
        return jnp.sqrt(std**2 + _uploads(ctx) * std_of(ctx) ** 2)

    def claim(hparams: Hparams) -> Claim:
        return Claim(Noise("gaussian", float(hparams.noise_multiplier), "local"))

    return UpdateTransform("noise", stateless, encode, pass_decode, noise=spread, claim=claim, always=True)


# ---- randomisers with a pure epsilon ---------------------------------------------------------------------------------


def local_laplace(size: int) -> UpdateTransform:
    """Clips the update to an L1 norm of ``hparams.clip`` and adds Laplace noise; see ``randomise.laplace``.

    Args:
      size: P, the number of parameters of the update. (static)

    Every stage of this family: epsilon of one upload is ``1 / hparams.noise_multiplier``; with a multiplier of 0 the
    clipped update is sent as it is. Info: ``norm`` before clipping, ``fraction`` (1 if clipped), and ``std``, per
    coordinate, of what one upload adds at most.

    Raises:
      FljaxError: when it is traced, for an update of another size, or a payload with further parts to hide.
    """

    def spread(clip, epsilon, count):
        del count
        return 8.0**0.5 * clip / randomise.usable(epsilon)

    return _stage("local_laplace", size, _Pure(randomise.clip_l1, randomise.laplace, spread))


def local_duchi(size: int) -> UpdateTransform:
    """Cuts every coordinate to [-S, S] and sends one bit on one drawn coordinate; see ``randomise.duchi``.

    Args, info, raises: as ``local_laplace``. On the wire: the position, ceil(log2 P) bits, and the bit.
    """
    pure = _Pure(randomise.clip_linf, randomise.duchi, partial(_one_coordinate, 2), size**0.5, levels=2)
    return _stage("local_duchi", size, pure)


def local_krr(size: int, levels: int) -> UpdateTransform:
    """Cuts every coordinate to [-S, S] and sends one drawn coordinate on k levels; see ``randomise.krr``.

    Args:
      size: P. (static)
      levels: k >= 2, to which the coordinate is rounded. (static)

    Info, raises: as ``local_laplace``. On the wire: the position, ceil(log2 P) bits, and ceil(log2 k) bits.
    """
    in_range(2, 2**20, levels=levels)
    draw = partial(randomise.krr, levels=levels)
    pure = _Pure(randomise.clip_linf, draw, partial(_one_coordinate, levels), size**0.5, levels=levels)
    return _stage("local_krr", size, pure)


def local_privunit(size: int) -> UpdateTransform:
    """Clips the update to an L2 norm of S and sends a random point of a sphere; see ``randomise.privunit``.

    Args:
      size: P >= 2. (static)

    Info, raises: as ``local_laplace``.
    """
    positive("PrivUnit needs two coordinates; use local_duchi for one.", size=size - 1)

    def spread(clip, epsilon, count):
        return clip / (randomise.plan_cap(epsilon, count).mean * jnp.sqrt(count))

    return _stage("local_privunit", size, _Pure(randomise.clip_l2, randomise.privunit, spread))


class _Pure(NamedTuple):
    """One randomiser: its bound, its draw, and what others must know of it.

    clip: (values, S) -> (values, norm, clipped). draw: see ``randomise.Randomiser``.
    spread: (S, epsilon, count) -> std of one coordinate of one upload, at most.
    reach: largest L2 norm of what clip returns, in units of S. levels: of the one coordinate that is sent, or None.
    """

    clip: Callable
    draw: randomise.Randomiser
    spread: Callable
    reach: float = 1.0
    levels: int | None = None


def _one_coordinate(levels: int, clip: Array, epsilon: Array, count: Array) -> Array:
    """+-d B with probability 1 / d has a standard deviation of sqrt(d) B."""
    return jnp.sqrt(count) * clip * (1.0 + jnp.exp(-randomise.keep_logit(epsilon, levels)))


def _stage(name: str, size: int, pure: _Pure) -> UpdateTransform:
    """The stage of a randomiser: flattens the update, bounds and randomises it, and says so."""
    positive(size=size)

    def std_of(ctx: Ctx) -> Array:
        count = jnp.float32(size) if ctx.support is None else sum(jnp.sum(m > 0) for m in jax.tree.leaves(ctx.support))
        std = pure.spread(ctx.hparams.clip, _epsilon(ctx.hparams), jnp.asarray(count, jnp.float32))
        return jnp.where(ctx.hparams.noise_multiplier > 0, std, 0.0)

    def encode(key, ctx, payload: Payload, server_state, client_state):
        del server_state
        _update_alone(name, payload)
        values = _flat(payload["update"])
        if values.size != size:
            raise FljaxError(f"Expected size={size} to be the number of parameters, {values.size}. Use that.")
        support = None if ctx.support is None else _flat(ctx.support)
        clipped, norm, cut = pure.clip(values, ctx.hparams.clip)
        sent = pure.draw(key, values, ctx.hparams.clip, _epsilon(ctx.hparams), support)
        sent = jnp.where(ctx.hparams.noise_multiplier > 0, sent, clipped)
        info = {"norm": norm, "fraction": cut.astype(jnp.float32), "std": std_of(ctx)}
        return {**payload, "update": _shaped(sent, payload["update"])}, client_state, info

    def bound(ctx, state, bounds: Bounds) -> Bounds:
        del state
        _update_alone(name, bounds)
        weight = {part: b for part, b in bounds.items() if part == "weight"}
        before = total_bound({part: b for part, b in bounds.items() if part != "weight"})
        return {"update": jnp.minimum(before, pure.reach * ctx.hparams.clip), **weight}

    def noise(ctx, state, std):
        del state
        return jnp.sqrt(std**2 + _uploads(ctx) * std_of(ctx) ** 2)

    return UpdateTransform(
        "local",
        stateless,
        encode,
        pass_decode,
        bound,
        noise,
        partial(_claim, name),
        partial(_wire, pure.levels),
        always=True,
    )


def _epsilon(hparams: Hparams) -> Array:
    """Of one upload; 1 where none is asked for, so that what is not used is finite."""
    return 1.0 / jnp.where(hparams.noise_multiplier > 0, hparams.noise_multiplier, 1.0)


def _wire(levels: int | None, ctx: Ctx, wires: dict[str, Wire]) -> dict[str, Wire]:
    """One coordinate is sent as its position and its level."""
    if levels is None:
        return wires
    whole = wires["update"]
    one = Wire(jnp.ones_like(whole.values), bits_for(jnp.int32(levels)), bits_for(whole.values) + whole.extra)
    noisy = ctx.hparams.noise_multiplier > 0
    return {**wires, "update": jax.tree.map(lambda a, b: jnp.where(noisy, a, b), one, whole)}


def _claim(name: str, hparams: Hparams) -> Claim:
    multiplier = float(hparams.noise_multiplier)
    noise = Noise("pure", multiplier, "local")
    if multiplier * randomise.SMALLEST > 1:
        return Claim(
            noise, f"{name} spends at least {randomise.SMALLEST:g} an upload; use a larger epsilon or fewer rounds"
        )
    return Claim(noise)


def _update_alone(name: str, parts: dict) -> None:
    others = sorted(set(parts) - {"update", "payload", "weight"})
    if others:
        raise FljaxError(f"Expected mechanism={name!r} to hide 'update' alone, not {others[0]!r}. Use local_gaussian.")


def bits_for(count: Array) -> Array:
    """ceil(log2(count)) for a () int32 count >= 1, in integers."""
    return 32 - jax.lax.clz(count - 1)


def _flat(tree: PyTree) -> Array:
    return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(tree)])


def _shaped(values: Array, like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    ends = [0]
    for leaf in leaves:
        ends.append(ends[-1] + leaf.size)
    parts = [values[a:b].reshape(leaf.shape) for a, b, leaf in zip(ends, ends[1:], leaves, strict=False)]
    return jax.tree.unflatten(structure, parts)
