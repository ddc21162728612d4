"""From the name of a privacy mechanism to the chain between clients and server."""

from __future__ import annotations

from typing import Any

from fljax import recipes
from fljax.compress.feedback import error_feedback
from fljax.compress.quantise import quantise, sign_quantise
from fljax.compress.sparsify import rand_k, top_k
from fljax.config import Experiment
from fljax.core.transform import UpdateTransform, chain
from fljax.privacy.adaptive import bit_share
from fljax.privacy.correlated import banded_noise, tree_noise
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.local import local_duchi, local_gaussian, local_krr, local_laplace, local_privunit
from fljax.privacy.noise import Shares, central_gaussian, query_share
from fljax.sections import PURE, CompressConfig, PrivacyConfig
from fljax.server.average import bounded_average, coordinate_average, expected_average, realised_average
from fljax.server.sampler import Sampler
from fljax.sim.secure import secure_stages


def make_transform(
    experiment: Experiment, sampler: Sampler, size: int, leaves: int, largest: int = 1, groups: Any = None
) -> UpdateTransform:
    """The chain of an experiment: compression, average, clip and noise where privacy is asked for, words and masks.

    Args:
      experiment: validated. sampler: who takes part. size: P, the number of shared parameters. leaves: of their arrays.
      largest: examples of the largest client. groups: neuron groups of the model, where it has any.
    """
    first, last = _compression(experiment.compress, leaves), secure_stages(experiment, sampler, size, largest, groups)
    server, privacy = experiment.server, experiment.privacy
    if server.denominator == "realised":
        weights = "present" if last and server.weights == "uniform" else server.weights
        return chain(*first, realised_average(weights), *last)
    average = expected_average()
    if server.denominator != "expected":
        average = coordinate_average(server.denominator, server.least_holders, groups if last else None)
    if server.weight_cap is not None and server.total_weight is not None:
        average = bounded_average(server.weight_cap, server.total_weight, sampler.population)
    if privacy.mechanism in ("none", "record_gaussian"):  # at record level the noise is in the clients' own steps
        return chain(*first, average, *last)
    if privacy.mechanism in PURE:
        return chain(average, _randomiser(privacy, size), *last)
    if experiment.he_splits_noise:  # the noise is added under the encryption, see ``secure/encrypted.py``
        return recipes.private_average(privacy.clipping, average, chain(), first)
    noise, weighted = _noise(experiment, sampler, size), server.weight_cap is not None
    return recipes.private_average(privacy.clipping, average, noise, first, weighted=weighted, last=last)


def _compression(compress: CompressConfig, leaves: int) -> tuple[UpdateTransform, ...]:
    """The stages that compress, which come first: what follows on the client only scales the message."""
    stages: list[UpdateTransform] = []
    if compress.sparsify != "none":
        stages.append(top_k() if compress.sparsify == "topk" else rand_k(rescale=not compress.error_feedback))
    if compress.quantise == "stochastic":
        stages.append(quantise(compress.bits, leaves))
    elif compress.quantise == "sign":
        stages.append(sign_quantise(leaves, sparse=compress.sparsify != "none"))
    return (error_feedback(chain(*stages)),) if compress.error_feedback else tuple(stages)


def _noise(experiment: Experiment, sampler: Sampler, size: int) -> UpdateTransform:
    """The stage that hides what the clip has bounded."""
    privacy = experiment.privacy
    if privacy.mechanism == "central_tree":
        return tree_noise(experiment.rounds, sampler)
    if privacy.mechanism == "central_banded":
        return banded_noise(experiment.rounds, privacy.bands, sampler)
    if privacy.mechanism == "local_gaussian":
        return local_gaussian()
    if privacy.mechanism.startswith("distributed"):
        kind = privacy.mechanism.removeprefix("distributed_")
        return distributed_noise(kind, size, sampler, privacy.min_survivors, privacy.bits)
    return central_gaussian(_shares(experiment))


def _shares(experiment: Experiment) -> Shares | None:
    """How the budget is divided where more than the update is released."""
    adaptive, paid = experiment.privacy.clipping == "adaptive", experiment.dropout.source == "paid"
    if adaptive and paid:
        return lambda ctx: bit_share(ctx) | query_share(ctx)
    return bit_share if adaptive else query_share if paid else None


def _randomiser(privacy: PrivacyConfig, size: int) -> UpdateTransform:
    """The stage that bounds and randomises one upload, with a pure epsilon."""
    if privacy.mechanism == "local_krr":
        return local_krr(size, privacy.levels)
    make = {"local_laplace": local_laplace, "local_duchi": local_duchi, "local_privunit": local_privunit}
    return make[privacy.mechanism](size)
