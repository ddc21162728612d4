"""How masks lie, against loops in NumPy, and what a round reports of its own masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny

from fljax.core.tree import named_leaves
from fljax.core.types import Ctx, Selection
from fljax.dropout.information import Learner
from fljax.dropout.measure import covered_share, jaccard, kept_energy, pair_overlap
from fljax.dropout.sources import exact_dropout
from fljax.models import mlp
from fljax.server.clients import Tiers
from fljax.server.execute import Slots
from fljax.server.observe import Devices, count_work
from fljax.server.traffic import Traffic

LEARNER = Learner(tiny.model().apply, tiny.training().loss, tiny.model().groups)
RNG = np.random.default_rng(0)
KEY, DATA = jax.random.key(0), tiny.pack(tiny.clients())


def overlap(a, b):
    """Jaccard overlap of two boolean vectors."""
    return np.sum(a & b) / np.sum(a | b)


def test_overlap_of_two_masks_counts_neurons_of_all_groups():
    a = {"g": jnp.array([1.0, 1, 0, 0]), "h": jnp.array([1.0, 0])}
    b = {"g": jnp.array([0.0, 1, 1, 0]), "h": jnp.array([1.0, 1])}
    assert float(jaccard(a, b)) == np.float32(2 / 5)
    assert float(jaccard(a, a)) == 1.0


def test_overlap_of_clients_is_the_mean_over_pairs():
    masks = {"g": RNG.random((6, 5)) < 0.5, "h": RNG.random((6, 7)) < 0.6}
    alive = np.array([True, False, True, True, False, True])
    whole = np.concatenate(list(masks.values()), axis=1)
    pairs = itertools.combinations(np.flatnonzero(alive), 2)
    expected = np.mean([overlap(whole[i], whole[j]) for i, j in pairs])
    assert abs(float(jax.jit(pair_overlap)(masks, alive)) - expected) < 1e-6
    assert float(pair_overlap(masks, np.arange(6) == 2)) == 1.0


def test_coverage_is_the_union_of_parameter_masks():
    """Three layers: kernels between two groups are covered by pairs of neurons, not by rows and columns."""
    model = mlp((4,), 3, (5, 6))
    neurons = {g: (RNG.random((4, n)) < 0.4).astype(np.float32) for g, n in model.groups.sizes}
    params = model.init(KEY)
    for alive in (np.ones(4, bool), np.array([True, False, True, False]), np.zeros(4, bool)):
        union = jax.tree.map(lambda p: np.zeros(p.shape, bool), params)
        for k in np.flatnonzero(alive):
            mask = model.groups.masks(params, {g: m[k] for g, m in neurons.items()})
            union = jax.tree.map(lambda u, m: u | (np.asarray(m) > 0), union, mask)
        expected = np.mean(np.concatenate([u.ravel() for u in named_leaves(union).values()]))
        found = jax.jit(lambda n, a: covered_share(model.groups, params, n, a))(neurons, alive)
        assert abs(float(found) - expected) < 1e-6


def test_kept_energy_is_a_share_of_squares():
    u, m = RNG.normal(size=(3, 4)).astype(np.float32), (RNG.random((3, 4)) < 0.5).astype(np.float32)
    expected = np.sum((m * u.astype(np.float64)) ** 2) / np.sum(u.astype(np.float64) ** 2)
    assert abs(float(kept_energy({"w": u}, {"w": m})) - expected) < 1e-6
    assert float(kept_energy({"w": 0 * u}, {"w": m})) == 1.0


def numbers(**changes):
    return tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0, "noise_multiplier": 0.0, **changes}).arrays()


def test_a_round_reports_the_energy_that_its_clients_keep():
    """The updates before the mask are those of the same round that keeps all; the mask is the public one."""
    kind, state, t = "fisher/upload_only", tiny.later_state("fisher/upload_only"), jnp.int32(3)
    replay = tiny.replay(kind)
    whole = jax.device_get(replay(t, KEY, state, DATA, numbers(clip=np.inf, keep_rate=1.0)).payloads["update"])
    mask = jax.device_get(replay(t, KEY, state, DATA, numbers(clip=np.inf)).public["support"])
    _, info = tiny.step(kind)(t, KEY, state, DATA, numbers(clip=np.inf))
    pairs = list(zip(jax.tree.leaves(whole), jax.tree.leaves(mask), strict=True))
    energy = [np.sum(np.square(u, dtype=np.float64), axis=tuple(range(1, u.ndim))) for u, _ in pairs]
    kept = [np.sum(np.square(u * m, dtype=np.float64), axis=tuple(range(1, u.ndim))) for u, m in pairs]
    expected = np.mean(sum(kept) / sum(energy))
    assert abs(float(info.client["kept_energy"]) - expected) < 1e-5
    assert abs(float(info.client["snr_gain"]) - expected * 51 / 27) < 1e-5  # 27 of 51 parameters are kept
    assert 0.2 < expected < 0.95


def test_a_round_reports_overlap_and_coverage_of_its_mask():
    """Half of six neurons: 27 of 51 parameters; overlap with the mask of the round before, 1 in round 0."""
    step, h, state = tiny.step("fisher/submodel"), numbers(explore=1.0), tiny.start("fisher/submodel")
    masks, infos = [], []
    for t in range(4):
        state, info = step(jnp.int32(t), KEY, state, DATA, h)
        masks.append(np.asarray(state.submodel.ranks["dense_0"]) < 3)
        infos.append(info.server)
    seen = [float(i["mask_overlap"]) for i in infos]
    expected = [1.0] + [overlap(a, b) for a, b in itertools.pairwise(masks)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert min(expected) < 1
    assert all(abs(float(i["coverage"]) - 27 / 51) < 1e-6 for i in infos)
    assert "kept_energy" not in info.client  # a sub-model's update lies on its mask


def test_dense_rounds_count_as_masks_of_all_neurons():
    step, h, state = (
        tiny.step("fisher/submodel"),
        numbers(warmup_rounds=2, keep_rate=4 / 6),
        tiny.start("fisher/submodel"),
    )
    seen = []
    for t in range(3):
        state, info = step(jnp.int32(t), KEY, state, DATA, h)
        seen.append((float(info.server["mask_overlap"]), float(info.server["coverage"])))
    np.testing.assert_allclose(seen, [(1.0, 1.0), (1.0, 1.0), (4 / 6, 35 / 51)], rtol=1e-6)


def test_work_is_counted_by_class():
    """Six slots, one empty, of two classes: who answered, examples, and the whole model for who looked at its data."""
    devices = Devices(np.array([0, 1, 0, 1, 1]), 2, lambda sizes: 2 * sizes)
    slots = Slots(KEY, jnp.array([4, 0, 3, 2, 1, 5]), jnp.arange(6), jnp.array([1, 1, 1, 1, 0, 0], bool))
    sizes = jnp.array([7, 2, 5, 4, 9, 0])
    of = np.array([0, 1, 0, 1, 1], np.int32)
    bytes_of = [jnp.array(v, jnp.int32) for v in ([40, 20], [44, 24], 100, 10, 11, [10, 5])]
    traffic = Traffic(Tiers((1.0, 0.5), of), *bytes_of)
    sub, h = exact_dropout(LEARNER), numbers(keep_rate=1.0)
    ctx = Ctx(jnp.int32(9), h, KEY, jnp.int32(-1), jnp.int32(-1), jnp.float32(1), h.keep_rate)
    chosen = Selection({"dense_0": jnp.arange(tiny.HIDDEN)})
    fresh = jnp.array([1, 0, 0, 0, 1, 0], bool)  # client 4, and client 1, which did not answer
    work = jax.tree.map(np.asarray, count_work(devices, traffic, ctx, sub, chosen, slots, sizes, fresh))
    expected = {
        "answered": [2, 2],  # clients 0, 2 and 4, 3
        "examples": [12, 24],
        "most_examples": [8, 14],
        "up": [40, 20],
        "down": [44, 100],
        "scored": [0, 1],
        "kept_dense_0": [6, 3],
    }
    assert {name: v.tolist() for name, v in work.items()} == expected
