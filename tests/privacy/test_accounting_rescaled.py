"""A small cohort that stands for a large one: the noise of the large one on the average, no more and no less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.transform import chain
from fljax.core.types import Ctx, Hparams
from fljax.privacy import epsilon, make_event
from fljax.privacy.clip import clip
from fljax.privacy.noise import central_gaussian
from fljax.server.average import expected_average
from fljax.server.sampler import poisson

S, Z, Q, SMALL, LARGE = 0.3, 1.7, 0.1, 200, 8000
SIZE = 40_000


@jax.jit
def released(scale, population):
    """The noise on the average of a zero total, and what the chain declares."""
    stages = chain(expected_average(), clip(), central_gaussian())
    h = Hparams(clip=S, noise_multiplier=Z, noise_scale=scale)
    nobody, total = jnp.int32(-1), {"update": {"w": jnp.zeros(SIZE)}}
    ctx = Ctx(jnp.int32(0), h, jax.random.key(3), nobody, nobody, Q * population, h.keep_rate)
    states, _ = stages.init({}, h)
    bounds = stages.bound(ctx, states, {"update": jnp.float32(np.inf), "weight": jnp.float32(np.inf)})
    ctx = ctx._replace(bounds=bounds)
    return stages.decode(jax.random.key(4), ctx, total, None, states)[0]["update"]["w"], stages.noise(ctx, states, 0.0)


def test_the_noise_on_the_average_is_that_of_the_large_cohort():
    """scale z S / (q N) over 40,000 coordinates within 5 standard errors (false alarm 6e-7); declared exactly."""
    noise, declared = released(SMALL / LARGE, SMALL)
    expected = (SMALL / LARGE) * Z * S / (Q * SMALL)
    assert expected == pytest.approx(Z * S / (Q * LARGE))
    np.testing.assert_allclose(declared, expected, rtol=1e-6)
    assert abs(np.std(np.asarray(noise, np.float64)) / expected - 1) < 5 / np.sqrt(2 * SIZE)
    full, std = released(1.0, LARGE)
    np.testing.assert_allclose(declared, std, rtol=1e-6)
    np.testing.assert_allclose(noise, full, rtol=1e-5, atol=1e-9)  # the same draw


def test_the_event_is_that_of_the_simulated_population():
    """The sampler has N = 200 clients in few slots; the large one is Poisson sampling of 8,000, without a cut."""
    h = Hparams(sampling_rate=Q, noise_multiplier=Z, noise_scale=SMALL / LARGE)
    law, noise = poisson(SMALL, Q).law(h), central_gaussian().claim(h).noise
    assert law.kind == "truncated_poisson" and dict(noise.detail)["noise_scale"] == pytest.approx(SMALL / LARGE)
    event, large = make_event(law, noise, 50), make_event(law._replace(kind="poisson", capacity=None), Z, 50)
    assert event.population == LARGE and event.truncation is None
    assert (event.key, event.relation) == (large.key, "add_or_remove_one")
    delta = LARGE**-1.1
    assert epsilon(law, noise, 50, delta) == epsilon(law._replace(kind="poisson", capacity=None), Z, 50, delta)
