"""Named algorithms: a docstring and a chain. Every one is the same round with other parts.

    >>> training = Training(model, loss, epochs=1, batch_size=10)
    >>> round = dp_fedavg(training, poisson(population=143, max_rate=0.3))

Learning rates, clip, noise, keep rate and every other number come from ``Hparams`` when the round runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fljax.client.dpsgd import dpsgd_update
from fljax.client.prox import ditto_update, fedprox_update
from fljax.client.scaffold import scaffold_update
from fljax.client.sgd import Training, fedavg_update, fedsgd_update
from fljax.compress.feedback import error_feedback
from fljax.compress.quantise import quantise, sign_quantise
from fljax.compress.sparsify import rand_k, top_k
from fljax.core.check import one_of
from fljax.core.transform import UpdateTransform, chain
from fljax.core.tree import num_elements
from fljax.core.types import LocalUpdate, Round
from fljax.dropout.baselines import magnitude_dropout, ordered_dropout, random_dropout, rescale, rolling_dropout
from fljax.dropout.fisher import fisher_dropout as fisher_submodel
from fljax.dropout.information import Learner
from fljax.dropout.sources import random_per_client
from fljax.dropout.widths import random_widths
from fljax.privacy.adaptive import adaptive_clip, bit_share
from fljax.privacy.clip import clip
from fljax.privacy.correlated import banded_noise, tree_noise
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.local import local_gaussian
from fljax.privacy.noise import central_gaussian
from fljax.privacy.record import private_gradient
from fljax.secure.fixedpoint import fixed_point, smallest_bits
from fljax.secure.graph import Graph, choose_graph
from fljax.secure.masks import Lanes, double_mask
from fljax.server.average import coordinate_average, expected_average, realised_average
from fljax.server.clients import Tiers
from fljax.server.optim import server_optimiser
from fljax.server.round import make_round
from fljax.server.sampler import Sampler


def private_average(
    clipping: str = "flat",
    average: UpdateTransform | None = None,
    noise: UpdateTransform | None = None,
    first: Sequence[UpdateTransform] = (),
    weighted: bool = False,
    last: Sequence[UpdateTransform] = (),
) -> UpdateTransform:
    """The chain of user-level DP: clip on the client, noise, a public denominator.

    Args:
      clipping: ``flat`` (one norm over everything), ``per_layer`` (the same bound, divided evenly over layers) or
        ``adaptive`` (the norm follows a private quantile; the budget is divided between update and quantile).
      average: the denominator; default the expected cohort.
      noise: the stage that hides what the clip has bounded; default Gaussian noise by the server.
      first: what a client does before it clips, such as compression.
      weighted: the average weighs clients by at most 1, which it does after the clip: the clip's bound holds.
      last: what a client does before it sends, such as encoding and masking.
    """
    one_of(["flat", "per_layer", "adaptive"], clipping=clipping)
    if clipping == "adaptive":
        return chain(
            *first, average or expected_average(), adaptive_clip(), noise or central_gaussian(bit_share), *last
        )
    bounded, average = clip(per_layer=clipping == "per_layer"), average or expected_average()
    pair = (bounded, average) if weighted else (average, bounded)
    return chain(*first, *pair, noise or central_gaussian(), *last)


def _round(sampler: Sampler, local: LocalUpdate, transform: UpdateTransform, parts: dict[str, Any]) -> Round:
    """The round of a recipe; a part that the caller names replaces the recipe's own."""
    named: dict[str, Any] = {"sampler": sampler, "local": local, "transform": transform}
    return make_round(**(named | parts))


def fedsgd(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """FedSGD: clients send the gradient of all their examples; the server averages it, weighted by examples.

    With every client in every round it is gradient descent on the pooled data. McMahan et al., AISTATS 2017.
    """
    return _round(sampler, fedsgd_update(training), realised_average(), parts)


def fedavg(training: Training, sampler: Sampler, shared: Sequence[str] | None = None, **parts: Any) -> Round:
    """FedAvg: clients train, the server averages their changes, weighted by examples. McMahan et al., AISTATS 2017.

    Args:
      training: model, loss, local optimiser and length.
      sampler: who takes part.
      shared: parameter paths that are shared, default all; the others stay private with each client.
      **parts: any other part of ``make_round``: server, transform, available, submodel, perf.
    """
    local = fedavg_update(training, shared)
    return _round(sampler, local, realised_average(), parts)


def fedopt(training: Training, sampler: Sampler, optimizer: str = "adam", **parts: Any) -> Round:
    """FedAdam, FedYogi, FedAdagrad, FedAvgM: FedAvg's clients under an adaptive server. Reddi et al., ICLR 2021."""
    return fedavg(training, sampler, server=server_optimiser(optimizer), **parts)


def fedprox(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """FedProx: a proximal term of weight ``hparams.proximal`` holds clients near the model. Li et al., MLSys 2020."""
    return _round(sampler, fedprox_update(training), realised_average(), parts)


def scaffold(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """SCAFFOLD: control variates correct the clients' drift. Karimireddy et al., ICML 2020 (option II)."""
    local = scaffold_update(training, sampler.population)
    return _round(sampler, local, realised_average("uniform"), parts)


def ditto(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """Ditto: FedAvg, and beside it one personal model a client, pulled towards the shared one. Li et al., ICML 2021."""
    return _round(sampler, ditto_update(training), realised_average(), parts)


def dp_fedavg(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """DP-FedAvg: central user-level differential privacy. McMahan, Ramage, Talwar, Zhang, ICLR 2018.

    Every client's change is clipped to S; the server adds N(0, (z S)^2) to the sum and divides by the public expected
    cohort size. (``hparams.clip``, ``hparams.noise_multiplier``)
    """
    return _round(sampler, fedavg_update(training), private_average(), parts)


def topk_fedavg(training: Training, sampler: Sampler, feedback: bool = True, **parts: Any) -> Round:
    """FedAvg in which a client sends the values of largest magnitude alone, and later what it kept back.

    The share that is sent is ``hparams.compress_rate``. Stich, Cordonnier, Jaggi, NeurIPS 2018.

    Args:
      feedback: keep what was not sent and add it to the next update; False loses it.
    """
    compress = error_feedback(top_k()) if feedback else top_k()
    return _round(sampler, fedavg_update(training), chain(compress, realised_average()), parts)


def quantised_fedavg(training: Training, sampler: Sampler, bits: int = 8, **parts: Any) -> Round:
    """FedAvg with few bits a value: stochastic rounding (QSGD, Alistarh et al., NIPS 2017), or signs for one bit.

    Args:
      bits: 2 to 16, or 1 for signs with error feedback (EF-signSGD, Karimireddy et al., ICML 2019).
    """
    leaves = len(jax.tree.leaves(training.model.shapes()))
    compress = quantise(bits, leaves) if bits > 1 else error_feedback(sign_quantise(leaves))
    return _round(sampler, fedavg_update(training), chain(compress, realised_average()), parts)


def fed_smp(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """Fed-SMP with random positions: DP-FedAvg on the same random coordinates for all clients of a round.

    Sparsify and rescale, clip, sum, noise, keep the same coordinates, divide. Hu, Guo, Gong, IEEE TMC 2023, with noise
    by the server. (``hparams.compress_rate``, ``hparams.clip``, ``hparams.noise_multiplier``)
    """
    return _round(sampler, fedavg_update(training), private_average(first=[rand_k()]), parts)


def dp_ftrl(training: Training, sampler: Sampler, rounds: int, bands: int | None = None, **parts: Any) -> Round:
    """DP-FTRL: clients in a cyclic order, noise that is correlated over the rounds. Kairouz et al., ICML 2021.

    Args:
      rounds: T.
      bands: of a banded strategy (Choquette-Choo et al., NeurIPS 2023; needs ``fljax[dp]``), None for a tree.
    """
    noise = tree_noise(rounds, sampler) if bands is None else banded_noise(rounds, bands, sampler)
    return _round(sampler, fedavg_update(training), private_average(noise=noise), parts)


def local_dp_fedavg(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """FedAvg under local differential privacy: every client clips and noises its own upload, and trusts nobody.

    Dwork and Roth, 2014, on each upload by itself; sampling amplifies nothing. (``hparams.clip``, ``noise_multiplier``)
    """
    return _round(sampler, fedavg_update(training), private_average(noise=local_gaussian()), parts)


def distributed_dp_fedavg(
    training: Training,
    sampler: Sampler,
    kind: str = "discrete_gaussian",
    min_survivors: int | None = None,
    bits: int = 16,
    **parts: Any,
) -> Round:
    """FedAvg under distributed differential privacy: integer shares of noise by the clients, and a secure sum.

    Kairouz, Liu, Steinke, ICML 2021 (``discrete_gaussian``); Agarwal, Kairouz, Liu, NeurIPS 2021 (``skellam``).

    Args:
      min_survivors: clients that answer at the least, default the cohort; with fewer a round is aborted.
      bits: of one value; sums wrap around at 2^bits.
    """
    size = num_elements(training.model.shapes())
    noise = distributed_noise(kind, size, sampler, min_survivors, bits)
    return _round(sampler, fedavg_update(training), private_average(noise=noise), parts)


def secagg(
    training: Training,
    sampler: Sampler,
    value_bits: int = 16,
    weight: float | None = None,
    graph: Graph | None = None,
    prf: str = "threefry",
    mode: str = "ideal",
    **parts: Any,
) -> Round:
    """FedAvg under a secure sum: fixed-point words, masked by pads that cancel (SecAgg; SecAgg+ for larger cohorts).

    Bonawitz et al., CCS 2017; Bell et al., CCS 2020. (``hparams.extra["value_range"]``)

    Args:
      value_bits: of one value; words get as many as the sum needs.
      weight: the largest number of examples, by which clients weigh; None weighs all alike.
      graph: who shares keys; default by ``choose_graph``.
      prf, mode: see ``fljax.secure.masks``.
    """
    size, slots = num_elements(training.model.shapes()), sampler.capacity
    average = realised_average("present" if weight is None else "examples")
    encoding = fixed_point(value_bits, slots, size, largest_weight=weight or 1.0)
    lanes = Lanes(size, smallest_bits(value_bits, slots), prf, mode)
    masked = double_mask(lanes, graph or choose_graph(slots))
    return _round(sampler, fedavg_update(training), chain(average, encoding, masked), parts)


def record_dp_fedavg(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """FedAvg of clients that train by DP-SGD: each example is private, also from the server. Needs ``fljax[dp]``.

    Abadi et al., CCS 2016, at every client by itself; its updates may be averaged in any way.
    """
    return _round(sampler, dpsgd_update(training, private_gradient), realised_average(), parts)


def fisher_dropout(
    training: Training, sampler: Sampler, source: str = "fisher", forward: str = "submodel", **parts: Any
) -> Round:
    """DP-FedAvg in which clients train and send only the most informative neurons, by one public ranking.

    Mask, train the sub-model, mask the change, clip, sum, noise on the mask (it is public), divide. The ranking comes
    from updates that were already released, so that it costs no privacy (``fljax.dropout.fisher``).

    Args:
      source: ``fisher``; ``random`` for the control (Federated Dropout with a shared mask); ``magnitude`` for the
        largest weights of the released model.
      forward: ``submodel`` or ``upload_only``.
    """
    sources = {"fisher": fisher_submodel, "random": random_dropout, "magnitude": magnitude_dropout}
    one_of(sources, source=source)
    return dp_fedavg(training, sampler, submodel=sources[source](training.model.groups, forward), **parts)


def federated_dropout(training: Training, sampler: Sampler, **parts: Any) -> Round:
    """Federated Dropout: every client trains a random sub-model of its own. Caldas et al., 2018.

    Every coordinate is divided by the expected number of clients that hold it, a public constant.
    """
    submodel, average = random_per_client(training.model.groups), coordinate_average("inverse")
    return _round(sampler, fedavg_update(training), average, {"submodel": submodel, **parts})


def feddrop(training: Training, sampler: Sampler, tiers: Tiers, **parts: Any) -> Round:
    """FedDrop: Federated Dropout with keep rates by the communication and computation of a client's class of devices.

    Wen, Jeon, Huang, "Federated dropout: a simple approach for enabling federated learning on resource constrained
    devices", 2021. ``sim.devices.rates_from_resources`` gives such rates.

    Args:
      tiers: keep rate of each class, and the class of each client.
    """
    return federated_dropout(training, sampler, tiers=tiers, **parts)


def fjord(
    training: Training,
    sampler: Sampler,
    tiers: Tiers | None = None,
    widths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    distill: bool = False,
    **parts: Any,
) -> Round:
    """FjORD: every local step trains the first neurons of each layer, a random share of them. Horváth et al., 2021.

    A client sends its widest sub-model; coordinates are averaged over the clients that hold them.

    Args:
      tiers: widest share of each class of devices; default all.
      widths: shares that a step may draw. distill: narrow sub-models learn from the widest too, with the weight
        ``hparams.distill``.
    """
    learner = Learner(training.model.apply, training.loss, training.model.groups)
    local = fedavg_update(training._replace(objective=random_widths(learner, widths, distill)))
    named = {"submodel": ordered_dropout(training.model.groups), "tiers": tiers, **parts}
    return _round(sampler, local, coordinate_average("count"), named)


def heterofl(training: Training, sampler: Sampler, tiers: Tiers, **parts: Any) -> Round:
    """HeteroFL: a client of a smaller class trains the first neurons of every layer. Diao, Ding, Tarokh, ICLR 2021.

    Coordinates are averaged over the clients that hold them, hidden neurons are scaled up by 1 / keep rate while a
    client trains, and logits of classes that it does not have are held at 0. The averaging by counts rules epsilon out.
    Tiers with ``redrawn`` are its dynamic rates.
    """
    groups = training.model.groups
    local = fedavg_update(training._replace(scaler=rescale(groups), present_classes=True))
    named = {"submodel": ordered_dropout(groups), "tiers": tiers, **parts}
    return _round(sampler, local, coordinate_average("count"), named)


def fedrolex(training: Training, sampler: Sampler, tiers: Tiers | None = None, **parts: Any) -> Round:
    """FedRolex: a window of neurons that rolls on with the rounds (``hparams.refresh_rounds`` 1). Alam et al., 2022."""
    named = {"submodel": rolling_dropout(training.model.groups), "tiers": tiers, **parts}
    return _round(sampler, fedavg_update(training), coordinate_average("count"), named)
