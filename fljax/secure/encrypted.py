"""A sum under homomorphic encryption, as the round sees it: bytes of ciphertexts, and the error of CKKS on the sum.

The stage wraps the whole chain of transforms: what the chain would send is encrypted on its way, all of it or the most
informative coordinates alone. Nothing is encrypted inside of the compiled round; ``sim/encrypting.py`` compares real
rounds with the real scheme.

*Selective encryption.* Coordinates are ranked by what was released: a moving average of the squared released update
less the variance of its noise, an estimate of the diagonal Fisher information at user level. Server and clients compute
the same ranking, so that no positions travel and nothing private is told. The rest is sent in clear, or not at all.

Sources: Jin et al., FedML-HE, arXiv 2303.10837 (selective encryption); SelectiveShield, arXiv 2508.04265 (the most
informative coordinates by Fisher information encrypted, noise on the rest).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fljax.core import tree
from fljax.core.check import FljaxError, in_range, one_of, positive
from fljax.core.keys import per_stage
from fljax.core.transform import Claim, Noise, UpdateTransform, Wire, join_claims, total_bound
from fljax.core.types import Array, Ctx, Hparams, Key, Payload, PyTree
from fljax.secure.ckks import Ckks

LARGEST_MESSAGE = 2**31 // 8
"""Bytes of a message that can be counted: bits are int32."""


class Choice(NamedTuple):
    """Which coordinates are encrypted. mean, weight: moving average of the released energy, and how much has been
    averaged, trees like the parameters. mask: 1 where the next round encrypts."""

    mean: PyTree
    weight: PyTree
    mask: PyTree


class Selective(NamedTuple):
    """Which coordinates are encrypted, and what happens to the others.

    share: of the coordinates that are encrypted. rest: ``plain`` (sent in clear) or ``dropped`` (not sent: pruning).
    warmup: rounds at the beginning in which everything is encrypted. decay: of the moving average.
    """

    share: float = 1.0
    rest: str = "plain"
    warmup: int = 1
    decay: float = 0.9


def encrypted_sum(
    inner: UpdateTransform,
    scheme: Ckks,
    size: int,
    choose: Selective | None = None,
    least: int | None = None,
    exact: bool = False,
) -> UpdateTransform:
    """Sends what ``inner`` sends under CKKS: ``encrypted_sum(chain(expected_average(), clip()), Ckks(), P)``.

    Args:
      inner: the chain whose uploads are encrypted.
      scheme: parameters of CKKS.
      size: P, the number of parameters that clients send.
      choose: which coordinates are encrypted; default all of them. Parts beside the update always are.
      least: None, or n: clients add Gaussian noise themselves. With S the bound of the chain and
        z = ``hparams.noise_multiplier`` a coordinate in clear gets N(0, (z S)^2) from each client, an encrypted one
        N(0, (z S)^2 / n) from each, of which n at least arrive. Whoever sees the uploads in clear and the decrypted
        sums sees one Gaussian mechanism of multiplier z. With fewer than n the round releases zeros.
      exact: the sum comes from the real scheme, with its own error: none is added.

    Guarantees:
      The released sum is that of ``inner`` plus independent N(0, C error_std^2) on every encrypted number, for C
      clients that answered. Bounds pass: error and selection come after the clip, and dropping only shrinks.

    Info: ``encrypted_share`` of the coordinates; with noise ``noise_std`` of one upload in clear, ``noise_aborted``.

    Raises:
      FljaxError: a share out of range, a message too large to be counted; when it is traced, for noise beside a payload
        with further parts.
    """
    choose = choose or Selective()
    in_range(0, 1, closed="right", share=choose.share)
    one_of(("plain", "dropped"), rest=choose.rest)
    positive(size=size, least=1 if least is None else least)
    largest = scheme.check().blocks(size + 1) * scheme.ciphertext_bytes
    if largest >= LARGEST_MESSAGE:
        raise FljaxError(f"Expected {size} parameters to be at most {LARGEST_MESSAGE} bytes encrypted, {largest} are.")
    it = _Encrypted(inner, scheme, max(1, round(choose.share * size)), size, choose, least, exact)
    always = inner.always or least is not None
    return UpdateTransform(
        "encrypted", it.init, it.encode, it.decode, it.bound, it.noise, it.claim, it.wire, always, inner.proceeds
    )


class _Encrypted(NamedTuple):
    """The static parts of the stage; its methods are the stage's functions. count: coordinates that are encrypted."""

    inner: UpdateTransform
    scheme: Ckks
    count: int
    size: int
    choose: Selective
    least: int | None
    exact: bool

    @property
    def selects(self) -> bool:
        return self.count < self.size

    def init(self, params, hparams):
        server, client = self.inner.init(params, hparams)
        if not self.selects:
            return (server, ()), client
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return (server, Choice(zeros, zeros, self._best(zeros))), client

    def encode(self, key, ctx, payload: Payload, state, client_state):
        keys = per_stage(key, 2)
        payload, client_state, info = self.inner.encode(keys[0], ctx, payload, state[0], client_state)
        mask = self._mask(ctx, state[1])
        if self.least is not None:
            if set(payload) != {"update"}:
                raise FljaxError(f"Expected the update alone beside local noise, found {sorted(payload)}.")
            clear, hidden = self._stds(ctx)
            std = hidden if mask is None else jax.tree.map(lambda m: jnp.where(m > 0, hidden, clear), mask)
            payload = {"update": _add_normal(keys[1], payload["update"], std)}
            info = info | {"noise_std": clear}
        if mask is not None and self.choose.rest == "dropped":
            payload = payload | {"update": tree.keep(payload["update"], mask)}
        return payload, client_state, info

    def decode(self, key, ctx, total, alive, state):
        keys, mask = per_stage(key, 2), self._mask(ctx, state[1])
        if not self.exact:
            total = self._with_error(keys[1], ctx, total, mask, jnp.sum(alive))
        info = {"encrypted_share": jnp.float32(1.0) if mask is None else self._share(mask)}
        if self.least is not None:
            enough = jnp.sum(alive) >= self.least
            total = tree.zero_unless(enough, total)
            info["noise_aborted"] = 1.0 - enough.astype(jnp.float32)
        released, inner, seen = self.inner.decode(keys[0], ctx, total, alive, state[0])
        choice = self._observe(ctx, state, mask, released["update"])
        return released, (inner, choice), {**seen, **info}

    def bound(self, ctx, state, bounds):
        return self.inner.bound(ctx, state[0], bounds)

    def noise(self, ctx, state, std):
        if self.least is None:
            return self.inner.noise(ctx, state[0], std)
        clear, hidden = self._on_the_sum(ctx)
        return self.inner.noise(ctx, state[0], jnp.sqrt(std**2 + (clear if self.selects else hidden) ** 2))

    def claim(self, hparams: Hparams) -> Claim:
        claim = self.inner.claim(hparams)
        if self.least is None:
            return claim
        noise = Noise("gaussian", float(hparams.noise_multiplier), "local")
        return join_claims([claim._replace(divides=False), Claim(noise)])

    def wire(self, ctx, wires: dict[str, Wire]) -> dict[str, Wire]:
        wires = self.inner.wire(ctx, wires)
        update = wires["update"]
        hidden = update.values
        if self.selects:
            hidden = jnp.where(ctx.round < self.choose.warmup, self.size, self.count).astype(jnp.int32)
        others = sum((w.values for name, w in wires.items() if name != "update"), jnp.int32(0))
        blocks = -(-(hidden + others) // self.scheme.slots)
        sent = hidden if self.choose.rest == "dropped" else update.values
        # The ciphertexts stand beside the values in clear, whose bits do not count for those that they hold.
        extra = update.extra + 8 * self.scheme.ciphertext_bytes * blocks - hidden * update.bits
        nothing = jnp.int32(0)
        inside = {name: Wire(w.values, nothing, nothing) for name, w in wires.items()}
        return {**inside, "update": Wire(sent, update.bits, extra)}

    # --- its parts ---------------------------------------------------------------------------------------------

    def _mask(self, ctx: Ctx, choice: Choice | tuple) -> PyTree:
        """1 where a number is encrypted, or None where all are."""
        if not isinstance(choice, Choice):
            return None
        return jax.tree.map(lambda m: jnp.where(ctx.round < self.choose.warmup, jnp.ones_like(m), m), choice.mask)

    def _share(self, mask: PyTree) -> Array:
        return sum((jnp.sum(m) for m in jax.tree.leaves(mask)), jnp.float32(0.0)) / self.size

    def _best(self, scores: PyTree) -> PyTree:
        """1 at the ``count`` largest scores; of equal ones at the first, in the order of the arrays."""
        flat, unravel = ravel_pytree(scores)
        _, places = jax.lax.top_k(flat, self.count)
        return unravel(jnp.zeros_like(flat).at[places].set(1.0))

    def _stds(self, ctx: Ctx) -> tuple[Array, Array]:
        """Noise that one client adds to a number: (in clear, encrypted)."""
        z = ctx.hparams.noise_multiplier
        clear = jnp.where(z > 0, z * total_bound(ctx.bounds or {}), 0.0)
        return clear, clear / (self.least or 1) ** 0.5

    def _on_the_sum(self, ctx: Ctx) -> tuple[Array, Array]:
        """The same on the sum of the clients that are expected to answer."""
        if self.least is None:
            return jnp.float32(0.0), jnp.float32(0.0)
        answering = jnp.sqrt(ctx.expected * ctx.hparams.availability)
        clear, hidden = self._stds(ctx)
        return answering * clear, answering * hidden

    def _with_error(self, key: Key, ctx: Ctx, total: Payload, mask: PyTree, clients: Array) -> Payload:
        """The error of CKKS on every encrypted number of a sum over so many clients."""
        std = self.scheme.error_std * jnp.sqrt(clients.astype(jnp.float32))
        noisy = {}
        for i, name in enumerate(sorted(total)):
            where = mask if name == "update" else None
            if where is None and name == "update":
                where = ctx.support
            level = std if where is None else jax.tree.map(lambda m: jnp.where(m > 0, std, 0.0), where)
            noisy[name] = _add_normal(jax.random.fold_in(key, i), total[name], level)
        return noisy

    def _observe(self, ctx: Ctx, state, mask: PyTree, update: PyTree) -> Choice | tuple:
        """The moving average after one more release, and the coordinates that the next round encrypts."""
        inner, choice = state
        if not isinstance(choice, Choice):
            return ()
        clear, hidden = (self.inner.noise(ctx, inner, std) for std in self._on_the_sum(ctx))
        rate = 1.0 - self.choose.decay
        seen = mask if self.choose.rest == "dropped" else jax.tree.map(jnp.ones_like, mask)

        def energy(mean, u, m, s):
            return mean + rate * s * (u**2 - jnp.where(m > 0, hidden, clear) ** 2 - mean)

        mean = jax.tree.map(energy, choice.mean, update, mask, seen)
        weight = jax.tree.map(lambda w, s: w + rate * s * (1.0 - w), choice.weight, seen)
        scores = jax.tree.map(lambda m, w: m / jnp.maximum(w, 1e-6), mean, weight)
        return Choice(mean, weight, self._best(scores))


def _add_normal(key: Key, like: PyTree, std: Array | PyTree) -> PyTree:
    """The tree plus independent normals in float32. std: () or a tree like it."""
    leaves, structure = jax.tree.flatten(like)
    stds = jax.tree.leaves(std) if jax.tree.structure(std) == structure else [std] * len(leaves)
    noisy = [
        x.astype(jnp.float32) + s * jax.random.normal(jax.random.fold_in(key, i), x.shape, jnp.float32)
        for i, (x, s) in enumerate(zip(leaves, stds, strict=True))
    ]
    return jax.tree.unflatten(structure, noisy)
