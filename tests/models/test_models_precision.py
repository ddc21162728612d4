"""Local training in bfloat16: what is computed in which format, and that it stays close to float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from fljax.models import make_loss, make_model
from fljax.models.precision import compute_in
from fljax.sim.build import build
from tests.sim import small_run

CASES = {
    "mlp": ((9,), {"hidden": (16,)}),
    "cnn": ((8, 8, 1), {"channels": (4,), "hidden": 16}),
    "resnet": ((8, 8, 1), {"channels": (8,), "blocks": 1, "group_size": 8}),
    "char_lstm": ((6,), {"hidden": 8}),
    "char_gru": ((6,), {"hidden": 8}),
    "transformer": ((6,), {"width": 8, "heads": 2, "layers": 1, "hidden": 16}),
}


def case(name):
    shape, options = CASES[name]
    model = make_model(name, shape, 5, **options)
    text = len(shape) == 1 and name != "mlp"
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(1, 5, (4, *shape)) if text else rng.normal(size=(4, *shape)).astype(np.float32))
    y = jnp.asarray(rng.integers(1, 5, (4, *shape) if text else (4,)))
    loss = make_loss("next_char" if text else "classification")
    return model, lambda m: lambda p: jnp.mean(loss.per_example(m.apply(p, x), y)), model.init(jax.random.key(1))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def products(jaxpr):
    """The dtypes of the operands of every matrix product, in loops and calls too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield {str(v.aval.dtype) for v in eqn.invars}
        for inner in jaxprs_in_params(eqn.params):
            yield from products(inner)


@pytest.mark.parametrize("name", CASES)
def test_products_are_bfloat16_and_gradients_float32_and_close(name):
    model, mean_loss, params = case(name)
    half = compute_in(model, "bfloat16")
    traced = jax.make_jaxpr(jax.grad(mean_loss(half)))(params)
    found = list(products(traced.jaxpr))
    assert found and all(dtypes == {"bfloat16"} for dtypes in found)
    ours, theirs = (jax.jit(jax.value_and_grad(mean_loss(m)))(params) for m in (half, model))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(ours))
    assert abs(ours[0] - theirs[0]) < 0.02 * abs(theirs[0])
    a, b = flat(ours[1]), flat(theirs[1])
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)
    assert np.linalg.norm(a - b) > 0  # it does compute in another format


def test_float32_is_the_model_itself():
    model, _, _ = case("mlp")
    assert compute_in(model, "float32") is model


def test_a_private_run_keeps_its_noise_and_states_in_float32():
    """A learning rate of almost 0 leaves the noise alone: the released update is bit for bit that of float32."""
    fields = {"dropout.source": "none", "dropout.keep_rate": 1.0, "client.lr": 1e-30}
    released = {}
    for precision in ("float32", "bfloat16"):
        experiment = small_run.experiment(**fields, **{"client.precision": precision})
        program = build(experiment)
        hparams, key = experiment.hparams().arrays(), jax.random.key(0)
        state = program.round.init(key, program.params(0), hparams)
        state, _ = jax.jit(program.round.step)(0, key, state, program.dataset.train, hparams)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        released[precision] = flat(state.params)
    np.testing.assert_array_equal(released["float32"], released["bfloat16"])
