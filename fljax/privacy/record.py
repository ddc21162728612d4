"""Record level: every client noises its own training steps, and what is protected is one example of one client.

Clients differ in how much they hold, so that each has an epsilon of its own: with Poisson batches of B expected
examples out of n, ``(participations x steps) x PoissonSampled(min(1, B/n), Gaussian(z))``. Nothing after the steps can
weaken it, and nobody has to be trusted with the examples, not even the server; participations are therefore counted as
the server sees them, without amplification by the sampling of clients.

References: Abadi et al., CCS 2016; truncated batches: Ganesh et al., arXiv 2508.15089.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import Array, Key, Params, PyTree, SamplingLaw
from fljax.privacy.accounting import default_delta, epsilon
from fljax.privacy.events import participations
from fljax.privacy.jaxprivacy import clipped_sum
from fljax.privacy.mechanisms import make_event
from fljax.privacy.noise import add_gaussian
from fljax.privacy.statement import CAVEATS, PrivacyStatement, state_privacy

EVERY_TURN = SamplingLaw("full", 1.0)
"""The law of a client that takes part in every round that is counted."""

PUBLIC_SIZES = (
    "How many examples a client has is public: its sampling rate B/n is fixed by it and stays when an example is added "
    "or removed."
)
ONE_CLIENT = "Epsilon is that of the client with the least protection; an example stands for itself, not for its owner."
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


# ---- the step --------------------------------------------------------------------------------------------------------


def private_gradient(
    key: Key,
    loss: Callable[..., Array],
    params: Params,
    batch: Any,
    clip: Array,
    multiplier: Array,
    mask: PyTree = None,
) -> tuple[PyTree, Array]:
    """``sum_i clip_S(g_i) + N(0, (z S)^2)`` over the examples of a batch; one example moves the sum by at most S.

    Args:
      key: consumed. loss: (params, x [1, ...], y [1, ...], key) -> () loss of one example.
      params: where the gradients are taken. batch: x [B, ...], y [B, ...], mask [B].
      clip: () S. multiplier: () z; 0 adds nothing, whatever S is.
      mask: None or a public 0/1 tree like params: gradients are zero off the mask before they are clipped.

    Returns:
      (noised sum in float32, [B] losses of the single examples, not private).

    Guarantees:
      An example whose gradient, or its norm in float32, is not finite counts as exactly zero.

    Raises:
      FljaxError: jax_privacy is not installed.
    """

    def prepare(gradient: PyTree) -> PyTree:
        kept = gradient if mask is None else jax.tree.map(jnp.multiply, gradient, mask)
        return tree.zero_unless(jnp.isfinite(tree.norm(kept)), kept)

    ours, noises = jax.random.split(key)
    total, losses = clipped_sum(loss, params, batch, ours, clip, prepare)
    return add_gaussian(noises, total, jnp.where(multiplier > 0, multiplier * clip, 0.0), mask), losses


# ---- what it is worth ------------------------------------------------------------------------------------------------


def with_size(noise: Noise, size: int) -> Noise:
    """The noise of a client with n examples."""
    return noise._replace(detail=(*((k, v) for k, v in noise.detail if k != "size"), ("size", float(size))))


def smallest_client(
    law: SamplingLaw, noise: Noise, delta: float | None, sizes: Sequence[int] | np.ndarray
) -> tuple[SamplingLaw, Noise, float]:
    """(law, noise, delta) with which ``epsilon`` and ``calibrate`` answer for the client with the fewest examples.

    Its rate is the largest, and so is its epsilon. Clients without examples have nothing to protect and do not count.

    Args:
      law: how clients were sampled. noise: the claim. sizes: [N] examples of the clients.
      delta: of every client; None takes (number of all examples)^-1.1.

    Raises:
      FljaxError: nobody has an example, or delta >= 1 / (examples of the largest client): a mechanism that publishes
        one example in the clear would count as private.
    """
    held = np.asarray(sizes)[np.asarray(sizes) > 0]
    if held.size == 0:
        raise FljaxError("Expected sizes to hold a client with examples. Check the partition.")
    chosen = default_delta(int(held.sum())) if delta is None else delta
    if not 0 < chosen < 1 / held.max():
        raise FljaxError(
            f"Expected delta={chosen!r} in (0, 1/{held.max()}), one over the examples of the largest client. Use "
            f"{max(int(held.sum()), 2) ** -1.1:.3g} (all examples^-1.1) or smaller."
        )
    return law._replace(population=None, capacity=None), with_size(noise, int(held.min())), float(chosen)


def state_record_privacy(
    law: SamplingLaw,
    noise: Noise,
    rounds: int,
    delta: float | None,
    sizes: Sequence[int] | np.ndarray,
    reasons: Sequence[str] = (),
) -> PrivacyStatement:
    """States what the clients' own noise is worth, per example and for each client.

    Args:
      law: how clients were sampled: it bounds in how many rounds one takes part (all of them, or its turns).
      noise: the claim of the local algorithm. rounds: T that ran.
      delta: of every client; None takes (number of all examples)^-1.1, and a caveat says so.
      sizes: [N] examples of the clients; those without any do not count.
      reasons: why the run cannot claim an epsilon.

    Returns:
      ``valid`` with the largest epsilon of any client, and in ``distribution`` its quantiles over the clients (``min``,
      ``q25``, ``median``, ``q75``, ``q90``, ``max``), none below the truth; ``none`` without noise; ``refused`` with a
      reason. It does not raise.

    All by PLD, at the sizes that stand at the quantiles: epsilon falls with n. The cut of too large batches
    (probability below 2e-15 a step) is in every number, and no quantile is below that of a larger client.
    """
    common: dict[str, Any] = {
        "population": law.population,
        "noise_multiplier": noise.multiplier,
        "rounds": rounds,
        "trust": "record",
        "mechanism": noise.kind,
        "unit": "example",
    }
    if noise.multiplier == 0 or reasons:
        return replace(state_privacy(law, noise, rounds, delta, reasons), unit="example")
    try:
        turns = participations(law, rounds)
        _, worst, chosen = smallest_client(law, noise, delta, sizes)
        quantiles = _quantiles(noise, turns, chosen, np.asarray(sizes))
        event = make_event(EVERY_TURN, worst, turns)
    except FljaxError as error:
        return PrivacyStatement("refused", str(error), delta=delta, **common)
    if not math.isfinite(quantiles["max"]):
        reason = f"Expected noise_multiplier={noise.multiplier!r} to give epsilon <= 1e5. Use more noise."
        return PrivacyStatement("refused", reason, delta=chosen, **common)
    said = () if delta is not None else (f"No delta was given: (all examples)^-1.1 = {chosen:.3g} was taken.",)
    return PrivacyStatement(
        status="valid",
        epsilon=quantiles["max"],
        delta=chosen,
        relation=event.relation,
        sampler=f"smallest client: {event.sampler}; against the server and everybody else",
        accountant="PLD (dp_accounting)",
        distribution=quantiles,
        event=event,
        caveats=(*said, PUBLIC_SIZES, ONE_CLIENT, *CAVEATS),
        **common,
    )


def _quantiles(noise: Noise, turns: int, delta: float, sizes: np.ndarray) -> dict[str, float]:
    """Quantiles of epsilon over the clients with examples; each at a client that exists, the next one up."""
    falling = np.sort(sizes[sizes > 0])[::-1]  # epsilon rises from client to client
    found, least = {}, 0.0
    for name, share in QUANTILES.items():
        size = int(falling[math.ceil(share * (len(falling) - 1))])
        least = max(least, epsilon(EVERY_TURN, with_size(noise, size), turns, delta))
        found[name] = least
    return found
