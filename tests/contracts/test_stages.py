"""What every shipped part keeps, by a registry of all of them: stable types, composition, no cross-client influence.

Most is shown on shapes alone (``eval_shape``), which compiles nothing.
"""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest
from parts import (
    AGGREGATORS,
    DATA,
    GROUPS,
    HPARAMS,
    KEY,
    LOCAL_UPDATES,
    NOT_A_PART,
    PARAMS,
    REGISTRY,
    ROUNDS,
    SAMPLERS,
    SUBMODELS,
    TRANSFORMS,
    N,
    context,
    one_client,
)


def test_the_registry_is_complete():
    """Every public function of the house that returns a part is listed above, by name."""
    house, missing = Path(__file__).parents[2] / "fljax", []
    for path in house.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.returns is None:
                continue
            listed = REGISTRY.get(ast.unparse(node.returns))
            if listed is not None and node.name not in {key.split()[0] for key in listed} | NOT_A_PART:
                missing.append(f"{path.name}: {node.name}")
    assert missing == []


# ---- shapes ----------------------------------------------------------------------------------------------------------


def avals(tree):
    """Structure, and shape, dtype and weak type of every leaf: what decides whether a program is traced anew."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: tree) if not _abstract(tree) else tree)
    return structure, [(x.shape, x.dtype, x.weak_type) for x in leaves]


def _abstract(tree) -> bool:
    return all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))


INTEGERS = ("distributed_noise", "fixed_point", "suppress", "shared_key", "otp", "flashe", "pairwise", "double_mask")
"""Stages whose clients send integers."""


def payload():
    return {"update": PARAMS, "weight": jnp.float32(3.0)}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_types_through_a_transform(name):
    """States keep their type, the released update has the type of the parameters, bounds and noise are scalars."""
    stage = TRANSFORMS[name]()
    server, client = stage.init(PARAMS, HPARAMS)
    sent, new_client, info = jax.eval_shape(stage.encode, KEY, context(), payload(), server, client)
    assert avals(new_client) == avals(client)
    if not name.startswith(INTEGERS):
        assert avals(sent["update"]) == avals(PARAMS)
    got, new_server, seen = jax.eval_shape(stage.decode, KEY, context(), sent, jnp.ones(4, bool), server)
    assert avals(new_server) == avals(server)
    assert avals(got["update"]) == avals(PARAMS)
    assert all(x.shape == () for x in jax.tree.leaves((info, seen)))
    unbounded = dict.fromkeys(payload(), jnp.float32(np.inf))
    bounds = jax.eval_shape(stage.bound, context(), server, unbounded)
    std = jax.eval_shape(stage.noise, context(), server, jnp.float32(0.0))
    assert all(x.shape == () and x.dtype == jnp.float32 for x in [std, *bounds.values()])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_composes_with_jit_vmap_and_scan(name):
    stage = TRANSFORMS[name]()

    def run(key, h):
        """Three rounds of five clients."""
        ctx = context(hparams=h)
        server, client = stage.init(PARAMS, h)
        clients = jax.tree.map(lambda x: jnp.stack([x] * 5), client)

        def one(carry, key):
            server, clients = carry
            keys = jax.random.split(key, 5)
            encode = jax.vmap(stage.encode, (0, None, None, None, 0))
            sent, clients, _ = encode(keys, ctx, payload(), server, clients)
            total = jax.tree.map(lambda x: x.sum(0), sent)
            got, server, _ = stage.decode(key, ctx, total, jnp.ones(5, bool), server)
            return (server, clients), got["update"]

        return jax.lax.scan(one, (server, clients), jax.random.split(key, 3))

    sweep = jax.tree.map(lambda x: jnp.stack([x] * 2), HPARAMS)
    _, released = jax.eval_shape(jax.jit(jax.vmap(run)), jax.random.split(KEY, 2), sweep)
    assert jax.tree.map(lambda x: x.shape[2:], released) == jax.tree.map(lambda x: x.shape, PARAMS)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOCAL_UPDATES)
def test_types_through_a_local_update(name, masked):
    local = LOCAL_UPDATES[name]()
    run, shared, algorithm, own = one_client(local, None)
    if masked:
        run, *_ = one_client(local, jax.tree.map(jnp.ones_like, shared))
    sent, new_own, info = jax.eval_shape(run, KEY, jnp.int32(0), DATA)
    assert avals(new_own) == avals(own)
    assert tuple(sorted(sent)) == tuple(sorted(local.parts))
    assert avals(sent["update"]) == avals(shared)
    assert (sent["weight"].shape, sent["weight"].dtype) == ((), jnp.float32)
    assert all(x.shape == () for x in info.values())
    total = {n: p for n, p in sent.items() if n != "weight"}
    assert avals(jax.eval_shape(local.absorb, context(), algorithm, total)) == avals(algorithm)


@pytest.mark.parametrize("name", SUBMODELS)
def test_types_through_a_submodel(name):
    sub = SUBMODELS[name]()
    state = sub.init(PARAMS, HPARAMS)
    chosen = jax.eval_shape(sub.select, context(), state, PARAMS)
    masks = jax.eval_shape(sub.masks, context(), chosen)
    assert {g: (m.shape, m.dtype) for g, m in masks.items()} == {g: ((n,), jnp.float32) for g, n in GROUPS.sizes}
    released = {"update": PARAMS, "query": {g: jnp.zeros(n) for g, n in GROUPS.sizes}}
    new = jax.eval_shape(sub.observe, context(), state, chosen, released, jnp.float32(0.1))
    assert avals(new) == avals(state)


@pytest.mark.parametrize("name", SAMPLERS)
def test_types_through_a_sampler(name):
    """Static slots, int32 ids, pure in (key, round), traced round and rate under vmap and scan."""
    sampler = SAMPLERS[name]()
    cohort = jax.eval_shape(sampler.sample, KEY, jnp.int32(0), HPARAMS)
    assert [(x.shape, x.dtype) for x in cohort] == [((sampler.capacity,), jnp.int32), ((sampler.capacity,), bool)]
    assert jnp.shape(sampler.expected(HPARAMS)) == ()
    sweep = jax.tree.map(lambda x: jnp.stack([x] * 2), HPARAMS)

    def rounds(h):
        return jax.lax.scan(lambda key, t: (key, sampler.sample(key, t, h)), KEY, jnp.arange(3))[1]

    assert jax.eval_shape(jax.jit(jax.vmap(rounds)), sweep).ids.shape == (2, 3, sampler.capacity)
    assert sampler.law(tiny.HPARAMS).population == sampler.population == N


@pytest.mark.parametrize("name", ROUNDS)
def test_types_through_a_round(name):
    """A round returns its state in the very types it was given: it scans, and no later round is traced again."""
    round = ROUNDS[name]()
    state = round.init(KEY, PARAMS, HPARAMS)
    new, info = jax.eval_shape(round.step, jnp.int32(0), KEY, state, DATA, HPARAMS)
    for field in state._fields:
        assert avals(getattr(new, field)) == avals(getattr(state, field)), field
    assert all(x.shape == () for x in jax.tree.leaves(info))


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_composes_with_jit_vmap_and_scan(name):
    round = ROUNDS[name]()

    def run(key, h):
        def one(state, t):
            return round.step(t, key, state, DATA, h)

        return jax.lax.scan(one, round.init(key, PARAMS, h), jnp.arange(3))

    sweep = jax.tree.map(lambda x: jnp.stack([x] * 2), HPARAMS)
    state, info = jax.eval_shape(jax.jit(jax.vmap(run)), jax.random.split(KEY, 2), sweep)
    assert jax.tree.leaves(state.params)[0].shape[0] == 2 and info.participants.shape == (2, 3)


def test_new_numbers_are_not_traced_again():
    """Other rounds, keys, states, data and hyper-parameters run the program that is there."""
    traces = []

    def counted(*args):
        traces.append(1)
        return tiny.make("dp_fedavg").step(*args)

    step = jax.jit(counted)
    state = tiny.start("dp_fedavg")
    for t, numbers in enumerate([{}, {"clip": 2.0, "noise_multiplier": 0.0}, {"client_lr": 0.5, "sampling_rate": 0.1}]):
        h = tiny.Hparams(**{**vars(tiny.HPARAMS), **numbers}).arrays()
        state, _ = step(jnp.int32(t), jax.random.key(t), state, tiny.pack(tiny.clients(t)), h)
    assert len(traces) == 1


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name != "summed"])
def test_a_robust_rule_composes_with_jit_vmap_and_scan(name):
    """It returns one payload of the parameters' type, keeps the type of its state, and says what each client counts."""
    rule, slots = AGGREGATORS[name](), 5
    stacked = {"update": jax.tree.map(lambda x: jnp.stack([x] * slots), PARAMS)}
    given = stacked if rule.own is None else (stacked, {"update": PARAMS})

    def run(key, h):
        ctx = context(hparams=h, id=jnp.arange(slots))

        def one(state, key):
            total, state, info = rule.reduce(key, ctx, given, jnp.ones(slots, bool), state)
            return state, (total["update"], info.get("share", jnp.ones(slots)))

        return jax.lax.scan(one, rule.init(PARAMS, h), jax.random.split(key, 3))

    state, (released, share) = jax.eval_shape(run, KEY, HPARAMS)
    assert avals(state) == avals(jax.eval_shape(rule.init, PARAMS, HPARAMS))
    assert share.shape == (3, slots)
    sweep = jax.tree.map(lambda x: jnp.stack([x] * 2), HPARAMS)
    _, (released, _) = jax.eval_shape(jax.jit(jax.vmap(run)), jax.random.split(KEY, 2), sweep)
    assert jax.tree.map(lambda x: (x.shape[2:], x.dtype), released) == jax.tree.map(
        lambda x: (x.shape, x.dtype), PARAMS
    )
