"""The registry of all shipped parts of a round, which the contracts go through."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny

from fljax import recipes, robust
from fljax.audit.canaries import canary_update, draw_canaries
from fljax.client.dpsgd import dpsgd_update
from fljax.client.prox import ditto_update, fedprox_update
from fljax.client.scaffold import scaffold_update
from fljax.client.sgd import difference_update, fedavg_update, fedsgd_update, share_all
from fljax.compress.feedback import error_feedback
from fljax.compress.quantise import quantise, sign_quantise
from fljax.compress.sparsify import rand_k, top_k
from fljax.core.transform import chain, summed
from fljax.core.types import Broadcast, Ctx
from fljax.dropout.baselines import magnitude_dropout, ordered_dropout, random_dropout, rolling_dropout
from fljax.dropout.fisher import fisher_dropout
from fljax.dropout.information import Learner
from fljax.dropout.positions import reported_positions
from fljax.dropout.ranked import ranked_submodel
from fljax.dropout.sources import (
    exact_dropout,
    paid_dropout,
    public_dropout,
    random_per_client,
    self_released_dropout,
)
from fljax.dropout.votes import gumbel_dropout
from fljax.privacy.adaptive import adaptive_clip
from fljax.privacy.clip import clip
from fljax.privacy.correlated import banded_noise, tree_noise
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.local import local_duchi, local_gaussian, local_krr, local_laplace, local_privunit
from fljax.privacy.noise import central_gaussian
from fljax.privacy.record import private_gradient
from fljax.robust import attacks, poison
from fljax.secure.ckks import Ckks
from fljax.secure.encrypted import Selective, encrypted_sum
from fljax.secure.fixedpoint import fixed_point
from fljax.secure.graph import choose_graph
from fljax.secure.masks import Lanes, double_mask, flashe, otp, pairwise, shared_key
from fljax.secure.positions import suppress
from fljax.server.average import bounded_average, coordinate_average, expected_average, realised_average
from fljax.server.clients import Tiers
from fljax.server.optim import SERVER_OPTIMISERS
from fljax.server.sampler import cyclic, cyclic_poisson, fixed_size, full, make_sampler, poisson

T, N = tiny.training(), tiny.POPULATION
GROUPS = tiny.model().groups
TIERS = Tiers((1.0, 0.5), np.arange(N) % 2)
LEARNER = Learner(tiny.model().apply, T.loss, GROUPS)
P = sum(leaf.size for leaf in jax.tree.leaves(tiny.model().shapes()))
PADDED = 1 << (P - 1).bit_length()
LEAVES = len(jax.tree.leaves(tiny.model().shapes()))

LANES, RING = Lanes(P, 24, mode="masked"), choose_graph(5)


def masked(mask):
    """A mask behind the encoding that makes its words."""
    return chain(realised_average(), fixed_point(16, 5, P, largest_weight=6.0), mask)


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
    "fixed_point": lambda: chain(realised_average("present"), fixed_point(16, 5, P)),
    "shared_key": lambda: masked(shared_key(LANES)),
    "otp": lambda: masked(otp(LANES)),
    "flashe": lambda: masked(flashe(LANES)),
    "pairwise": lambda: masked(pairwise(LANES, RING)),
    "double_mask": lambda: masked(double_mask(LANES, RING)),
    "double_mask on noise": lambda: chain(
        expected_average(), distributed_noise("skellam", P, full(N)), double_mask(Lanes(PADDED, 16), RING)
    ),
    "top_k": top_k,
    "rand_k": rand_k,
    "rand_k own": lambda: rand_k(shared=False, rescale=False),
    "quantise": lambda: quantise(4, LEAVES),
    "sign_quantise": lambda: sign_quantise(LEAVES),
    "error_feedback": lambda: error_feedback(chain(top_k(), sign_quantise(LEAVES, sparse=True))),
    "chain": lambda: chain(realised_average(), chain()),
    "suppress": lambda: chain(realised_average(), fixed_point(16, 5, P, largest_weight=6.0), suppress(GROUPS, 2)),
    "encrypted_sum": lambda: encrypted_sum(realised_average(), Ckks(), P),
    "encrypted_sum selective": lambda: encrypted_sum(recipes.private_average(), Ckks(), P, Selective(0.3)),
    "encrypted_sum noised": lambda: encrypted_sum(
        chain(expected_average(), clip()), Ckks(), P, Selective(0.3, "dropped"), least=1
    ),
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
    "gumbel_dropout": lambda: gumbel_dropout(LEARNER),
    "reported_positions": lambda: reported_positions(exact_dropout(LEARNER), 4.0),
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
AGGREGATORS = {
    "summed": summed,
    "mean": robust.mean,
    "median": robust.median,
    "trimmed_mean": lambda: robust.trimmed_mean(1),
    "mean_around_median": lambda: robust.mean_around_median(1),
    "sign_majority": lambda: robust.sign_majority(0.1),
    "krum": lambda: robust.krum(1),
    "multi_krum": lambda: robust.multi_krum(1, before=[robust.bucketing(2), robust.norm_bound(1.0)]),
    "bulyan": lambda: robust.bulyan(1),
    "geometric_median": robust.geometric_median,
    "centred_clipping": lambda: robust.centred_clipping(1.0),
    "divide_and_conquer": lambda: robust.divide_and_conquer(1),
    "flame": lambda: robust.flame(0.01),
    "fltrust": lambda: robust.fltrust(fedavg_update(T), tiny.pack(tiny.clients(9))),
    "foolsgold": lambda: robust.foolsgold(N),
}
ADVERSARIES = {
    "make_adversary": lambda: robust.make_adversary("sign_flip", N, forge=attacks.sign_flip()),
    "make_adversary label_flip": lambda: robust.make_adversary("flip", N, poison.flip_labels(tiny.CLASSES)),
}
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
    "fisher_dropout magnitude": lambda: recipes.fisher_dropout(T, tiny.sampler(), "magnitude"),
    "dp_ftrl": lambda: recipes.dp_ftrl(T, cyclic(N, 2), 8),
    "local_dp_fedavg": lambda: recipes.local_dp_fedavg(T, tiny.sampler()),
    "distributed_dp_fedavg": lambda: recipes.distributed_dp_fedavg(T, fixed_size(N, 3), bits=24),
    "secagg": lambda: recipes.secagg(T, tiny.sampler(), mode="masked"),
    "record_dp_fedavg": lambda: recipes.record_dp_fedavg(T._replace(epochs=None, steps=2), tiny.sampler()),
    "federated_dropout": lambda: recipes.federated_dropout(T, tiny.sampler()),
    "feddrop": lambda: recipes.feddrop(T, tiny.sampler(), TIERS),
    "fjord": lambda: recipes.fjord(T, tiny.sampler(), TIERS, distill=True),
    "heterofl": lambda: recipes.heterofl(T, tiny.sampler(), TIERS),
    "fedrolex": lambda: recipes.fedrolex(T, tiny.sampler(), TIERS),
    "robust_fedavg": lambda: recipes.robust_fedavg(T, tiny.sampler(), robust.median()),
    "robust_fedavg fltrust": lambda: recipes.robust_fedavg(T, tiny.sampler(), AGGREGATORS["fltrust"]()),
    "robust_fedavg foolsgold": lambda: recipes.robust_fedavg(T, tiny.sampler(), robust.foolsgold(N)),
    "robust_fedavg centred_clipping": lambda: recipes.robust_fedavg(T, tiny.sampler(), robust.centred_clipping(1.0)),
    "robust_fedavg attacked": lambda: recipes.robust_fedavg(
        T, tiny.sampler(), robust.krum(1), adversary=ADVERSARIES["make_adversary"]()
    ),
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
    "Adversary": ADVERSARIES,
    "Round": ROUNDS,
}
NOT_A_PART = {"make_round", "make_transform", "make_aggregator", "make_attack", "bind", "encrypted"}
"""Functions that bind given parts; the recipes are its instances."""

ATTACK = {"attack_fraction": 0.25, "attack_strength": 1.0, "attack_start": 1.0}
HPARAMS = dataclasses.replace(tiny.HPARAMS, extra=ATTACK).arrays()
KEY = jax.random.key(0)
PARAMS = jax.tree.map(lambda s: jnp.full(s.shape, 0.5, jnp.float32), tiny.model().shapes())
DATA = tiny.pack(tiny.clients())
PRESENCE = jnp.full(5, 2)


def context(**changes) -> Ctx:
    nobody, one = jnp.int32(-1), jnp.float32(1.0)
    bounds = {"payload": jnp.float32(0.5)}
    ctx = Ctx(jnp.int32(0), HPARAMS, KEY, nobody, nobody, one, HPARAMS.keep_rate, None, bounds, presence=PRESENCE)
    return ctx._replace(**changes)


def one_client(local, mask=None):
    """(function of (key, id, data) -> what one client returns, its state)."""
    shared, _ = local.split(PARAMS)
    algorithm, own = local.init(KEY, PARAMS, HPARAMS)

    def run(key, client_id, data):
        ctx = context(id=client_id)
        return local.run(key, ctx, Broadcast(shared, algorithm, mask), own, data.take(client_id, client_id))

    return run, shared, algorithm, own
