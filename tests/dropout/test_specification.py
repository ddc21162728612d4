"""What dropout under differential privacy has to keep, in eleven points; where each of them is shown, and the rest here.

| point | shown by |
|---|---|
| 1 keep = 1 without exploration is DP-FedAvg, bit for bit, for any source | tests/dropout/test_compact.py: test_masks_of_ones_change_no_bit; tests/dropout/test_specification.py: test_every_source_keeps_all_neurons_at_keep_one |
| 2 a masked model equals the extracted one | tests/models/test_models_submodels.py: test_a_masked_model_equals_the_extracted_one; tests/dropout/test_masked_rounds.py: test_a_masked_client_trains_the_extracted_model |
| 3 exactly k ones for traced keep rates | tests/dropout/test_select.py: test_masks_have_exactly_k_ones_and_are_nested; tests/dropout/test_specification.py: test_exactly_k_ones_where_all_scores_are_equal |
| 4 nothing moves off the mask | tests/dropout/test_masked_rounds.py: test_what_clients_send_is_exactly_zero_off_the_mask, test_local_training_moves_nothing_off_the_mask, test_gradients_off_the_mask_do_not_reach_the_optimiser; tests/dropout/test_compact.py: test_what_nobody_trained_rests |
| 5 energy of the noise, and what denominators make of it | tests/dropout/test_specification.py: test_noise_lives_on_the_support_with_its_energy, test_ratios_of_the_denominators; tests/dropout/test_sources.py: test_the_trap_of_dividing_by_the_clients_that_came |
| 6 sensitivity of scores | tests/dropout/test_specification.py: test_scores_of_one_record_are_bounded; tests/dropout/test_information.py: test_unit_scores_have_norm_one_whatever_the_data |
| 7 the score of released updates is unbiased, with the spread of theory | tests/dropout/test_scores.py: test_the_corrected_energy_is_unbiased, test_the_spread_of_a_silent_neuron |
| 8 private masks tell, public ones do not | tests/dropout/test_sources.py: test_an_exact_mask_tells_its_clients_data_and_nobody_elses, test_public_masks_are_blind_to_the_data, test_what_every_source_may_claim; tests/dropout/test_scores.py: test_masks_are_functions_of_public_values_alone |
| 9 the accountant's joint multipliers and epsilons | tests/golden/test_golden_privacy.py: test_multipliers_of_an_update_and_a_score, test_multipliers_of_the_score, test_paying_for_a_mask_in_some_rounds, test_paying_by_zero_concentrated_privacy |
| 10 random, rolling and prefix masks are those of the baselines | tests/dropout/test_scores.py: test_the_random_baseline_is_uniform, test_ordered_masks_are_prefixes_and_rolling_ones_move_on; tests/dropout/test_specification.py: test_windows_and_prefixes_are_those_of_the_baselines |
| 11 noise alone gives uniform masks | tests/dropout/test_scores.py: test_on_noise_alone_the_masks_are_uniform |
"""  # noqa: E501

import re
from math import comb
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.client.sgd import fedavg_update
from fljax.core.transform import summed
from fljax.core.types import Ctx
from fljax.dropout.baselines import magnitude_dropout, ordered_dropout, random_dropout, rolling_dropout
from fljax.dropout.fisher import fisher_dropout
from fljax.dropout.information import Learner
from fljax.dropout.select import best, rank
from fljax.dropout.sources import (
    exact_dropout,
    paid_dropout,
    public_dropout,
    random_per_client,
    self_released_dropout,
)
from fljax.dropout.votes import gumbel_dropout
from fljax.models import mlp
from fljax.privacy.clip import clip_tree
from fljax.privacy.noise import add_gaussian
from fljax.server.average import coordinate_average, expected_average
from fljax.server.clients import Parts
from fljax.server.execute import PerfFlags
from fljax.server.round import make_round
from fljax.server.traffic import count_traffic

KEY, ROOT = jax.random.key(0), Path(__file__).parents[2]
MODEL = tiny.model()
LEARNER = Learner(MODEL.apply, tiny.training().loss, MODEL.groups)


def context(t=0, expected=8.0, **numbers) -> Ctx:
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "explore": 0.0, **numbers}).arrays()
    nobody = jnp.int32(-1)
    return Ctx(jnp.int32(t), h, jax.random.fold_in(KEY, t), nobody, nobody, jnp.float32(expected), h.keep_rate)


def test_every_point_of_the_table_names_tests_that_exist():
    rows = re.findall(r"^\| (\d+) .*\| (.*) \|$", __doc__, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 12))
    for _, places in rows:
        for place in places.split("; "):
            path, names = place.split(": ")
            text = (ROOT / path).read_text()
            assert all(f"def {name}(" in text for name in names.split(", ")), place


SOURCES = {
    "fisher": lambda: fisher_dropout(MODEL.groups),
    "random": lambda: random_dropout(MODEL.groups),
    "random_per_client": lambda: random_per_client(MODEL.groups),
    "ordered": lambda: ordered_dropout(MODEL.groups),
    "rolling": lambda: rolling_dropout(MODEL.groups),
    "magnitude": lambda: magnitude_dropout(MODEL.groups),
    "public": lambda: public_dropout(LEARNER, jnp.ones((2, tiny.FEATURES))),
    "paid": lambda: paid_dropout(LEARNER),
    "gumbel": lambda: gumbel_dropout(LEARNER),
    "self_released": lambda: self_released_dropout(MODEL.groups, std=lambda c: c.hparams.clip),
    "exact": lambda: exact_dropout(LEARNER),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_all_neurons_at_keep_one(name):
    """And a selection by ones changes no bit, as a round of DP-FedAvg shows."""
    sub, params = SOURCES[name](), MODEL.init(KEY)
    ctx = context(3, keep_rate=1.0)
    masks = sub.masks(ctx, sub.select(ctx, sub.init(params, ctx.hparams), params))
    assert all(np.all(np.asarray(m) == 1.0) for m in masks.values())


def test_exactly_k_ones_where_all_scores_are_equal():
    """For every number of neurons up to 40 and traced rates, under jit and vmap: k by NumPy's rounding in float32."""
    rates = jnp.asarray([0.05, 0.25, 1 / 3, 0.5, 0.75, 1.0], jnp.float32)
    for n in (1, 2, 7, 40):
        masks = jax.jit(jax.vmap(lambda r, n=n: best(rank(jnp.zeros(n), KEY), r, 1, n)))(rates)
        expected = np.clip(np.round(np.asarray(rates) * np.float32(n)), 1, n)
        np.testing.assert_array_equal(np.asarray(masks).sum(1), expected)


def test_noise_lives_on_the_support_with_its_energy():
    """k sigma^2 C^2 on k coordinates and exactly nothing elsewhere; 2,000 draws, six standard errors."""
    mask = MODEL.groups.masks(MODEL.shapes(), {"dense_0": jnp.array([1.0, 0, 0, 1, 0, 1])})
    zeros, std, draws = jax.tree.map(jnp.zeros_like, mask), 0.7, 2000
    noise = jax.jit(jax.vmap(lambda k: add_gaussian(k, zeros, std, mask)))(jax.random.split(KEY, draws))
    pairs = list(zip(jax.tree.leaves(noise), jax.tree.leaves(mask), strict=True))
    assert not any(np.any(np.asarray(z)[:, np.asarray(m) == 0]) for z, m in pairs)
    kept = sum(int(m.sum()) for _, m in pairs)
    assert kept == 27
    energy = sum(float(np.sum(np.square(z, dtype=np.float64))) for z, _ in pairs) / draws
    assert abs(energy - kept * std**2) < 6 * std**2 * np.sqrt(2 * kept / draws)


def test_ratios_of_the_denominators():
    """Noise of the clients' own, relative to dense uploads: 0.25, 4.63 and 4.0 at r = 10, p = 0.25; floors 3.2, 2.2.

    A coordinate that n of r clients hold is released as c sum_k z_k, so that its noise is n c^2 tau^2, dense ones have
    tau^2 / r; n is Binomial(r, p). The stages' own decodes give c, so that the sum over n is exact.
    """
    r, p = 10, 0.25
    chance = [comb(r, n) * p**n * (1 - p) ** (r - n) for n in range(r + 1)]
    share = {"w": jnp.full((1,), p)}
    ctx = context(expected=float(r))._replace(inclusion=share, support=share)

    def ratio(stage):
        total = 0.0
        for n, q in enumerate(chance):
            got, *_ = stage.decode(KEY, ctx, {"update": {"w": jnp.ones(1)}, "count": {"w": jnp.full(1, n)}}, None, ())
            total += q * n * float(got["update"]["w"][0]) ** 2
        return total * r

    assert ratio(expected_average()) == pytest.approx(0.25, rel=1e-5)
    assert ratio(coordinate_average("count")) == pytest.approx(4.63, abs=5e-3)
    assert ratio(coordinate_average("inverse")) == pytest.approx(4.0, rel=1e-5)
    by_hand = p * r**2 / 5**2  # expected holders 2.5, fewer than the floor of 5
    assert ratio(coordinate_average("floored", 5.0)) == pytest.approx(by_hand, rel=1e-5)
    assert by_hand == 1.0 and ratio(coordinate_average("floored", 2.0)) == pytest.approx(4.0, rel=1e-5)


def test_scores_of_one_record_are_bounded():
    """Squares of a clipped gradient, summed by neuron: at most S^2 added, sqrt(2) S^2 replaced, both attained."""
    bound = 0.6

    def scores(gradient):
        clipped, _, _ = clip_tree(gradient, jnp.float32(bound))
        return np.asarray(MODEL.groups.scores(jax.tree.map(jnp.square, clipped))["dense_0"], np.float64)

    def alone(neuron):
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape), MODEL.shapes())
        zero["dense_0"]["kernel"] = zero["dense_0"]["kernel"].at[1, neuron].set(50.0)
        return scores(zero)

    rng = np.random.default_rng(0)
    for scale in (0.01, 1.0, 100.0):
        some = []
        for _ in range(20):
            draws = [scale * rng.normal(size=leaf.shape) for leaf in jax.tree.leaves(MODEL.shapes())]
            some.append(jax.tree.unflatten(jax.tree.structure(MODEL.shapes()), map(jnp.float32, draws)))
        found = [scores(one) for one in some]
        assert max(np.sum(np.abs(s)) for s in found) <= bound**2 * (1 + 1e-5)
        assert max(np.linalg.norm(a - b) for a in found for b in found) <= np.sqrt(2) * bound**2
    assert np.linalg.norm(alone(2)) == pytest.approx(bound**2, rel=1e-5)
    assert np.linalg.norm(alone(2) - alone(4)) == pytest.approx(np.sqrt(2) * bound**2, rel=1e-5)


def test_windows_and_prefixes_are_those_of_the_baselines():
    """FedRolex: neurons t, ..., t + k - 1 modulo n in round t. HeteroFL: the first k. Three layers, eight rounds."""
    model = mlp((4,), 3, (5, 6, 9))
    params = model.init(KEY)
    for source, start in ((rolling_dropout, 1), (ordered_dropout, 0)):
        sub = source(model.groups)
        for t in range(8):
            ctx = context(t, keep_rate=0.4, refresh_rounds=1)
            masks = sub.masks(ctx, sub.select(ctx, sub.init(params, ctx.hparams), params))
            for group, n in model.groups.sizes:
                window = [(start * t + i) % n for i in range(round(0.4 * n))]
                assert sorted(window) == np.flatnonzero(masks[group]).tolist()


def written(update, neurons, positions: str) -> bytes:
    """One upload of a client that chose for itself: positions, then the kept values; one string of bits."""
    if positions == "bitmap":
        bits = "".join(str(int(m)) for m in neurons)
    else:
        bits = "".join(f"{i:03b}" for i in np.flatnonzero(neurons))
    mask = MODEL.groups.masks(MODEL.shapes(), {"dense_0": jnp.asarray(neurons, jnp.float32)})
    for x, m in zip(jax.tree.leaves(update), jax.tree.leaves(mask), strict=True):
        kept = np.asarray(x)[np.asarray(m) > 0].astype(">f4").tobytes()
        bits += "".join(f"{byte:08b}" for byte in kept)
    return np.packbits([int(b) for b in bits]).tobytes()


def read(message: bytes, positions: str):
    """What the server makes of it, from the message and the public model alone: a full-sized update."""
    bits = np.unpackbits(np.frombuffer(message, np.uint8))
    if positions == "bitmap":
        neurons, bits = bits[:6], bits[6:]
    else:
        neurons = np.isin(np.arange(6), [4 * a + 2 * b + c for a, b, c in bits[:9].reshape(3, 3)])
        bits = bits[9:]
    mask = MODEL.groups.masks(MODEL.shapes(), {"dense_0": jnp.asarray(neurons, jnp.float32)})
    values = np.packbits(bits[: len(bits) // 32 * 32]).view(">f4")
    leaves, structure = jax.tree.flatten(mask)
    out = []
    for m in leaves:
        full = np.zeros(m.shape, np.float32)
        count = int(np.sum(np.asarray(m) > 0))
        full[np.asarray(m) > 0], values = values[:count], values[count:]
        out.append(full)
    return jax.tree.unflatten(structure, out)


def test_bytes_are_those_of_a_message_that_can_be_sent_and_read():
    """Private masks, three of six neurons kept: 27 values with 6 bits of bitmap, or with 9 bits of indices."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0, "explore": 0.0}).arrays()
    local, chain = fedavg_update(tiny.training()), recipes.private_average()
    made = make_round(sampler=tiny.sampler(), local=local, transform=chain, submodel=exact_dropout(LEARNER))
    state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h)
    seen = jax.device_get(jax.jit(made.transcript)(jnp.int32(4), KEY, state, tiny.pack(tiny.clients()), h))
    ctx = context(4)
    for positions, size in (("bitmap", 109), ("list", 110)):
        sub = exact_dropout(LEARNER, positions=positions)
        parts = Parts(local, chain, summed(), sub, None, None, PerfFlags(), tiny.POPULATION)
        payload = jax.tree.map(lambda x: x[0], seen.payloads)
        selection = sub.select(ctx, state.submodel, state.params)
        assert int(count_traffic(parts, ctx, selection, state.params, (), payload).up[0]) == size
        for k in range(tiny.POPULATION):
            update = jax.tree.map(lambda x, k=k: x[k], seen.payloads["update"])
            neurons = np.any(update["dense_0"]["kernel"] != 0, axis=0)
            if neurons.sum() < 3:  # a neuron that was kept and never active sends zeros: its place is chosen here
                neurons[np.flatnonzero(~neurons)[: 3 - neurons.sum()]] = True
            message = written(update, neurons, positions)
            assert len(message) == size
            assert tiny.same_bits(jax.tree.map(np.abs, read(message, positions)), jax.tree.map(np.abs, update))
