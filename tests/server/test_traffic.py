"""Bytes of a round by classes of devices, against a loop over the clients."""

import jax.numpy as jnp
import numpy as np

from fljax.server.clients import Tiers
from fljax.server.traffic import Traffic

UP, DOWN, WHOLE = [1_000, 3_000_000, 70], [2_000, 5_000_000, 90], 7_000_000
OF = np.array([0, 1, 2, 2, 1, 0], np.int32)


def traffic(tiers: bool) -> Traffic:
    few = 3 if tiers else 1
    numbers = [jnp.array(v[:few], jnp.int32) for v in (UP, DOWN)]
    classes = Tiers((0.25, 1.0, 0.5), OF) if tiers else None
    zero = jnp.int32(0)
    return Traffic(classes, *numbers, jnp.int32(WHOLE), zero, zero, jnp.zeros(few, jnp.int32))


def total(sent) -> int:
    return 1024 * int(sent.kib) + int(sent.rest)


def test_each_client_sends_and_receives_what_its_class_does():
    ids, who = jnp.array([5, 2, 1, 3, 6, 6]), jnp.array([True, True, True, False, False, False])
    fresh = jnp.array([True, False, True, True, False, False])  # client 3 would choose anew, but was not contacted
    for tiers in (True, False):
        place = OF if tiers else np.zeros(6, np.int32)
        seen = traffic(tiers)
        living = [int(i) for i, w in zip(ids, who, strict=True) if w]
        assert total(seen.uplink(ids, who)) == sum(UP[place[i]] for i in living)
        down = {5: WHOLE, 2: DOWN[place[2]], 1: WHOLE}
        assert total(seen.downlink(ids, who, fresh)) == sum(down.values())
        assert total(seen.downlink(ids, who, jnp.bool_(False))) == sum(DOWN[place[i]] for i in living)
