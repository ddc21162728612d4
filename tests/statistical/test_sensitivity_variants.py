"""Sensitivity of the other ways to clip and to weigh: leaving a client out moves the sum by exactly what it sent."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.core.transform import chain
from fljax.privacy.adaptive import BIT
from fljax.privacy.clip import clip
from fljax.privacy.noise import central_gaussian
from fljax.server.average import bounded_average, expected_average

SLACK = 1e-4
VARIANTS = {
    "adaptive": lambda: recipes.private_average("adaptive"),
    "per_layer": lambda: recipes.private_average("per_layer"),
    "weighted": lambda: recipes.private_average(average=bounded_average(4, 6.0, tiny.POPULATION), weighted=True),
}
HOSTILE = [
    lambda x: x,
    lambda x: x * 1e4,
    lambda x: np.where(np.arange(x.size).reshape(x.shape) == 1, np.nan, x),
    lambda x: np.full_like(x, np.inf),
    lambda x: x * 0,
]


@cache
def replay(variant):
    round_ = recipes.dp_fedavg(tiny.training(), tiny.sampler(), transform=VARIANTS[variant]())
    params = tiny.model().init(jax.random.key(2))
    return round_.init(jax.random.key(1), params, tiny.HPARAMS.arrays()), jax.jit(round_.transcript)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_client_moves_the_sum_by_more_than_the_bounds(variant):
    state, transcript = replay(variant)
    publics, loudest = [], 0.0
    for hostile in HOSTILE:
        pairs = [(hostile(x), y) if k % 2 else (x, y) for k, (x, y) in enumerate(tiny.clients())]
        h = tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 0.9, "clip_bit_noise": 2.0}).arrays()
        seen = jax.device_get(transcript(jnp.int32(3), jax.random.key(0), state, tiny.pack(pairs), h))
        publics.append(seen.public)
        update = np.concatenate([x.reshape(len(seen.alive), -1) for x in jax.tree.leaves(seen.payloads["update"])], 1)
        norms = np.linalg.norm(update.astype(np.float64), axis=1)
        assert np.all(norms <= tiny.HPARAMS.clip * (1 + SLACK))
        assert np.all(norms[~seen.alive] == 0)
        loudest = max(loudest, norms.max())
        if variant == "adaptive":
            assert set(np.unique(seen.payloads[BIT])) <= {-0.5, 0.0, 0.5}
            assert np.all(seen.payloads[BIT][~seen.alive] == 0)
        else:
            assert list(seen.payloads) == ["update"]
    assert loudest > 0.5 * tiny.HPARAMS.clip, "no client came near the bound: the test could not fail"
    assert all(tiny.same_bits(publics[0], other) for other in publics[1:])


@pytest.mark.parametrize("denominator", [expected_average, lambda: bounded_average(4, 6.0, tiny.POPULATION)])
def test_a_denominator_to_the_right_of_the_noise_is_refused(denominator):
    """It would be decoded first: the sum that the noise sees is divided, its bound is not."""
    wrong = chain(clip(), central_gaussian(), denominator())
    round_ = recipes.dp_fedavg(tiny.training(), tiny.sampler(), transform=wrong)
    reason = round_.claims(tiny.HPARAMS, tiny.model().init(jax.random.key(0))).reason
    assert reason is not None
    assert "denominator" in reason
