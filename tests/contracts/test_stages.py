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

from fljax import recipes
from fljax.audit.canaries import canary_update, draw_canaries
from fljax.client.batches import plan_steps
from fljax.client.dpsgd import dpsgd_update
from fljax.client.prox import ditto_update, fedprox_update
from fljax.client.scaffold import scaffold_update
from fljax.client.sgd import difference_update, fedavg_update, fedsgd_update, share_all
from fljax.compress.feedback import error_feedback
from fljax.compress.quantise import quantise, sign_quantise
from fljax.compress.sparsify import rand_k, top_k
from fljax.core.transform import chain, summed
from fljax.core.types import Broadcast, Ctx
from fljax.data.federated import FederatedData
from fljax.dropout.baselines import magnitude_dropout, ordered_dropout, random_dropout, rolling_dropout
from fljax.dropout.fisher import fisher_dropout
from fljax.dropout.information import Learner
from fljax.dropout.ranked import ranked_submodel
from fljax.dropout.sources import (
    exact_dropout,
    paid_dropout,
    public_dropout,
    random_per_client,
    self_released_dropout,
)
from fljax.privacy.adaptive import adaptive_clip
from fljax.privacy.clip import clip
from fljax.privacy.correlated import banded_noise, tree_noise
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.local import local_duchi, local_gaussian, local_krr, local_laplace, local_privunit
from fljax.privacy.noise import central_gaussian
from fljax.privacy.record import private_gradient
from fljax.server.average import bounded_average, coordinate_average, expected_average, realised_average
from fljax.server.clients import Tiers
from fljax.server.optim import SERVER_OPTIMISERS
from fljax.server.sampler import cyclic, cyclic_poisson, fixed_size, full, make_sampler, poisson

T, N = tiny.training(), tiny.POPULATION
GROUPS = tiny.model().groups
TIERS = Tiers((1.0, 0.5), np.arange(N) % 2)
LEARNER = Learner(tiny.model().apply, T.loss, GROUPS)
P = sum(leaf.size for leaf in jax.tree.leaves(tiny.model().shapes()))
LEAVES = len(jax.tree.leaves(tiny.model().shapes()))

TRANSFORMS = {
    "expected_average": expected_average,
    "realised_average": realised_average,
    "realised_average uniform": lambda: realised_average("uniform"),
    "bounded_average": lambda: bounded_average(4.0, 6.0, N),
    "coordinate_average": lambda: coordinate_average("inverse"),
    "coordinate_average count": lambda: coordinate_average("count"),
    "coordinate_average floored": lambda: coordinate_average("floored", 2.0),
    "clip": clip,
    "clip per_layer": lambda: clip(per_layer=True),
    "adaptive_clip": adaptive_clip,
    "central_gaussian": central_gaussian,
    "tree_noise": lambda: chain(expected_average(), clip(), tree_noise(9, cyclic(N, 2))),
    "banded_noise": lambda: chain(expected_average(), clip(), banded_noise(9, 3, cyclic(N, 2))),
    "local_gaussian": local_gaussian,
    "local_laplace": lambda: local_laplace(P),
    "local_duchi": lambda: local_duchi(P),
    "local_krr": lambda: local_krr(P, 5),
    "local_privunit": lambda: local_privunit(P),
    "distributed_noise": lambda: chain(expected_average(), distributed_noise("discrete_gaussian", P, full(N))),
    "distributed_noise skellam": lambda: chain(expected_average(), distributed_noise("skellam", P, fixed_size(N, 3))),
    "top_k": top_k,
    "rand_k": rand_k,
    "rand_k own": lambda: rand_k(shared=False, rescale=False),
    "quantise": lambda: quantise(4, LEAVES),
    "sign_quantise": lambda: sign_quantise(LEAVES),
    "error_feedback": lambda: error_feedback(chain(top_k(), sign_quantise(LEAVES, sparse=True))),
    "chain": lambda: chain(realised_average(), chain()),
    "private_average": recipes.private_average,
    "private_average per_layer": lambda: recipes.private_average("per_layer"),
    "private_average adaptive": lambda: recipes.private_average("adaptive"),
    "private_average weighted": lambda: recipes.private_average(average=bounded_average(4.0, 6.0, N), weighted=True),
}
LOCAL_UPDATES = {
    "fedavg_update": lambda: fedavg_update(T),
    "fedavg_update shared": lambda: fedavg_update(T, ["dense_0"]),
    "fedsgd_update": lambda: fedsgd_update(T),
    "fedprox_update": lambda: fedprox_update(T),
    "scaffold_update": lambda: scaffold_update(T, N),
    "ditto_update": lambda: ditto_update(T),
    "dpsgd_update": lambda: dpsgd_update(T._replace(epochs=None, steps=2), private_gradient),
    "difference_update": lambda: difference_update(T, share_all),
    "canary_update": lambda: canary_update(
        fedavg_update(T), N - 2, draw_canaries(jax.random.key(0), 2, -1.0), train=True
    ),
}
SUBMODELS = {
    "fisher_dropout": lambda: fisher_dropout(GROUPS),
    "fisher_dropout upload_only": lambda: fisher_dropout(GROUPS, "upload_only"),
    "random_dropout": lambda: random_dropout(GROUPS),
    "ordered_dropout": lambda: ordered_dropout(GROUPS),
    "rolling_dropout": lambda: rolling_dropout(GROUPS),
    "magnitude_dropout": lambda: magnitude_dropout(GROUPS),
    "random_per_client": lambda: random_per_client(GROUPS),
    "public_dropout": lambda: public_dropout(LEARNER, jnp.ones((3, tiny.FEATURES))),
    "paid_dropout": lambda: paid_dropout(LEARNER),
    "exact_dropout": lambda: exact_dropout(LEARNER),
    "self_released_dropout": lambda: self_released_dropout(GROUPS, std=lambda ctx: ctx.hparams.clip),
    "ranked_submodel": lambda: ranked_submodel(
        GROUPS,
        "submodel",
        start=lambda params: jnp.int32(0),
        score=lambda ctx, learnt, params: {g: jnp.zeros(n) + learnt for g, n in GROUPS.sizes},
        learn=lambda ctx, learnt, released, std: learnt + 1,
    ),
}
SAMPLERS = {
    "poisson": lambda: poisson(N, 0.5),
    "fixed_size": lambda: fixed_size(N, 3),
    "full": lambda: full(N),
    "cyclic": lambda: cyclic(N, 3),
    "cyclic_poisson": lambda: cyclic_poisson(N, 3, 0.5),
    "make_sampler": lambda: make_sampler("cyclic", N, cohort=5),
}
AGGREGATORS = {"summed": summed}
ROUNDS = {
    "fedsgd": lambda: recipes.fedsgd(T, tiny.sampler()),
    "fedavg": lambda: recipes.fedavg(T, tiny.sampler()),
    "fedavg shared": lambda: recipes.fedavg(T, tiny.sampler(), ["dense_1"]),
    **{f"fedopt {name}": lambda name=name: recipes.fedopt(T, tiny.sampler(), name) for name in SERVER_OPTIMISERS},
    "fedprox": lambda: recipes.fedprox(T, tiny.sampler()),
    "scaffold": lambda: recipes.scaffold(T, fixed_size(N, 3)),
    "ditto": lambda: recipes.ditto(T, full(N)),
    "dp_fedavg": lambda: tiny.make("dp_fedavg"),
    "dp_fedavg adaptive": lambda: recipes.dp_fedavg(T, tiny.sampler(), transform=recipes.private_average("adaptive")),
    "topk_fedavg": lambda: recipes.topk_fedavg(T, tiny.sampler()),
    "topk_fedavg forgetful": lambda: recipes.topk_fedavg(T, tiny.sampler(), feedback=False),
    "quantised_fedavg": lambda: recipes.quantised_fedavg(T, tiny.sampler()),
    "quantised_fedavg signs": lambda: recipes.quantised_fedavg(T, tiny.sampler(), bits=1),
    "fed_smp": lambda: recipes.fed_smp(T, tiny.sampler()),
    "fisher_dropout": lambda: tiny.make("fisher/submodel"),
    "fisher_dropout upload_only": lambda: tiny.make("fisher/upload_only"),
    "fisher_dropout random": lambda: tiny.make("random/submodel"),
    "dp_ftrl": lambda: recipes.dp_ftrl(T, cyclic(N, 2), 8),
    "local_dp_fedavg": lambda: recipes.local_dp_fedavg(T, tiny.sampler()),
    "distributed_dp_fedavg": lambda: recipes.distributed_dp_fedavg(T, fixed_size(N, 3), bits=24),
    "record_dp_fedavg": lambda: recipes.record_dp_fedavg(T._replace(epochs=None, steps=2), tiny.sampler()),
    "federated_dropout": lambda: recipes.federated_dropout(T, tiny.sampler()),
    "heterofl": lambda: recipes.heterofl(T, tiny.sampler(), TIERS),
    "fedrolex": lambda: recipes.fedrolex(T, tiny.sampler(), TIERS),
    "fisher_dropout scaffold": lambda: recipes.make_round(
        sampler=tiny.sampler(),
        local=scaffold_update(T, N),
        transform=recipes.private_average(),
        submodel=fisher_dropout(GROUPS),
    ),
}
REGISTRY = {
    "UpdateTransform": TRANSFORMS,
    "LocalUpdate": LOCAL_UPDATES,
    "SubModel": SUBMODELS,
    "Sampler": SAMPLERS,
    "Aggregator": AGGREGATORS,
    "Round": ROUNDS,
}
NOT_A_PART = {"make_round", "make_transform"}
"""Functions that bind given parts; the recipes are its instances."""


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


HPARAMS = tiny.HPARAMS.arrays()
KEY = jax.random.key(0)
PARAMS = jax.tree.map(lambda s: jnp.full(s.shape, 0.5, jnp.float32), tiny.model().shapes())
DATA = tiny.pack(tiny.clients())


def context(**changes) -> Ctx:
    nobody, one = jnp.int32(-1), jnp.float32(1.0)
    bounds = {"payload": jnp.float32(0.5)}
    ctx = Ctx(jnp.int32(0), HPARAMS, KEY, nobody, nobody, one, HPARAMS.keep_rate, None, bounds)
    return ctx._replace(**changes)


def payload():
    return {"update": PARAMS, "weight": jnp.float32(3.0)}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_types_through_a_transform(name):
    """States keep their type, the released update has the type of the parameters, bounds and noise are scalars."""
    stage = TRANSFORMS[name]()
    server, client = stage.init(PARAMS, HPARAMS)
    sent, new_client, info = jax.eval_shape(stage.encode, KEY, context(), payload(), server, client)
    assert avals(new_client) == avals(client)
    if "distributed_noise" not in name:  # whose clients send one vector of integers
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


def one_client(local, mask=None):
    """(function of (key, id, data) -> what one client returns, its state)."""
    shared, _ = local.split(PARAMS)
    algorithm, own = local.init(KEY, PARAMS, HPARAMS)

    def run(key, client_id, data):
        ctx = context(id=client_id)
        return local.run(key, ctx, Broadcast(shared, algorithm, mask), own, data.take(client_id, client_id))

    return run, shared, algorithm, own


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


# ---- no influence of one client on another ---------------------------------------------------------------------------

VICTIM, OTHERS = 1, [k for k in range(N) if k != 1]
NOTHING = (np.zeros((0, tiny.FEATURES)), np.zeros(0, int))


def neighbours():
    """Data sets in which one client holds noise, NaN, or nothing."""
    pairs = tiny.clients()
    x, y = pairs[VICTIM]
    return [
        tiny.pack(tiny.swap(pairs, VICTIM, *d)) for d in ((1e4 * x[::-1], y), (np.full_like(x, np.nan), y), NOTHING)
    ]


def assert_only_the_victim_changed(a, b):
    """Trees with leaves [N, ...]: all rows but the victim's are equal bit by bit, and the victim's are not."""
    rows = lambda tree, which: jax.tree.map(lambda x: x[which], tree)  # noqa: E731
    assert tiny.same_bits(rows(a, OTHERS), rows(b, OTHERS))
    assert not tiny.same_bits(rows(a, VICTIM), rows(b, VICTIM))


@pytest.mark.parametrize("name", LOCAL_UPDATES)
def test_no_client_feels_the_data_of_another(name):
    """Payload, state and info of all others are equal bit by bit, whatever one client holds."""
    run, *_ = one_client(LOCAL_UPDATES[name]())
    ids = jnp.arange(N)
    keys = jax.random.split(KEY, N)
    everybody = jax.jit(lambda data: jax.vmap(run, (0, 0, None))(keys, ids, data))
    honest = jax.device_get(everybody(DATA))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(honest))
    for data in neighbours():
        other = jax.device_get(everybody(data))
        assert_only_the_victim_changed(honest, other)


@pytest.mark.parametrize("kind", ["dp_fedavg", "fisher/submodel"])
def test_no_client_feels_the_data_of_another_in_a_round(kind):
    """What the others send is equal bit by bit, found by id: slots are ordered by the amount of data."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0}).arrays()

    def sent(data):
        t = jax.device_get(tiny.replay(kind)(jnp.int32(3), KEY, tiny.later_state(kind), data, h))
        assert sorted(t.cohort.ids) == list(range(N)) and t.alive.all()
        return jax.tree.map(lambda x: x[np.argsort(t.cohort.ids)], t.payloads)

    honest = sent(DATA)
    for data in neighbours():
        other = sent(data)
        assert_only_the_victim_changed(honest, other)


def test_without_a_clip_too_a_client_that_is_not_finite_counts_as_nothing():
    """FedAvg on a client with NaN, and on the same client without data: the same sum, the same state of the others."""
    round = recipes.fedavg(T, tiny.sampler())
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0}).arrays()
    state, step = round.init(KEY, PARAMS, h), jax.jit(round.step)
    _, poisoned, removed = neighbours()
    (bad, seen), (good, _) = (step(jnp.int32(3), KEY, state, data, h) for data in (poisoned, removed))
    np.testing.assert_allclose(tiny.flat(bad.params), tiny.flat(good.params), rtol=1e-5)
    assert (int(seen.answered), int(seen.participants)) == (N, N - 1)
    assert all(np.isfinite(v) for v in seen.client.values())


def test_the_order_of_a_clients_examples_does_not_depend_on_the_sizes_of_others():
    """The largest and the smallest client are static shapes; what they are must not reshuffle anybody else."""
    pairs = tiny.clients()
    small = FederatedData.from_clients(pairs)
    large = FederatedData.from_clients([*pairs, (np.ones((40, tiny.FEATURES)), np.zeros(40, int)), NOTHING])
    assert (small.max_size, small.min_size) != (large.max_size, large.min_size)
    for steps in ({"epochs": 3, "steps": None}, {"epochs": None, "steps": 5}):
        for client, size in ((1, 6), (3, 4)):
            a, b = (plan_steps(KEY, d.take(client, client), batch_size=2, **steps) for d in (small, large))
            assert int(a.steps) == int(b.steps)
            for step in range(int(a.steps)):
                (p, valid), (q, also) = a.batch(jnp.int32(step)), b.batch(jnp.int32(step))
                np.testing.assert_array_equal(valid, also)
                np.testing.assert_array_equal(p[valid], q[valid])
                assert np.all(np.asarray(p)[np.asarray(valid)] < size)
