"""The model that is evaluated and returned: the sub-model where masks are chosen once, all neurons otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

import fljax
from fljax.models import mlp

KEY = jax.random.key(3)


def deployed(kind, t, **numbers):
    """(deployed parameters, state) after round t of a run with a history."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), **numbers}).arrays()
    state = tiny.later_state(kind)
    return tiny.make(kind).deployed(jnp.int32(t), state, h), state


def kept_neurons(params) -> np.ndarray:
    """Which hidden neurons have any incoming weight left."""
    return np.any(np.asarray(params["dense_0"]["kernel"]) != 0, axis=0)


@pytest.mark.parametrize("source", ["fisher", "random"])
def test_masks_that_are_chosen_once_prune_the_model(source):
    params, state = deployed(f"{source}/submodel", 5, refresh_rounds=0, keep_rate=0.5, warmup_rounds=2)
    best = np.asarray(state.submodel.ranks["dense_0"]) < 3
    np.testing.assert_array_equal(kept_neurons(params), best)
    small = tiny.model().groups.extract(state.params, {"dense_0": best.astype(np.float32)})
    x = jax.random.normal(KEY, (7, tiny.FEATURES))
    alone = mlp((tiny.FEATURES,), tiny.CLASSES, (3,)).apply(small, x)
    np.testing.assert_allclose(tiny.model().apply(params, x), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("fisher/submodel", {"refresh_rounds": 0, "warmup_rounds": 9}),  # still dense
        ("fisher/submodel", {"refresh_rounds": 3}),  # every neuron may come back
        ("fisher/upload_only", {"refresh_rounds": 0}),  # clients train with all neurons
        ("fisher/submodel", {"refresh_rounds": 0, "keep_rate": 1.0}),
        ("dp_fedavg", {}),
    ],
)
def test_otherwise_the_whole_model_is_used(kind, numbers):
    params, state = deployed(kind, 5, **numbers)
    assert tiny.same_bits(params, state.params)


@pytest.mark.slow
def test_a_run_reports_the_accuracy_of_the_model_that_it_returns():
    fields = {"rounds": 4, "eval_every": 4, "dropout.warmup_rounds": 2, "privacy.epsilon": 1000.0}
    outcome = fljax.run(fljax.load("digits_fisher_dropout").replace(**fields), quiet=True)
    assert kept_neurons(outcome.params).sum() == 16
    test = outcome.program.dataset.test
    right = outcome.program.model.apply(outcome.params, test.x).argmax(-1) == test.y
    assert outcome.final["test_accuracy"] == pytest.approx(float(right.mean()), abs=1e-6)
