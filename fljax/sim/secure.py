"""From the section of secure sums to its stages, and what a report says of them."""

from __future__ import annotations

from fljax.config import Experiment
from fljax.core.transform import UpdateTransform
from fljax.privacy.integers import padded_size
from fljax.sections.secure import PAIRED
from fljax.secure.fixedpoint import fixed_point, smallest_bits
from fljax.secure.graph import Graph, choose_graph
from fljax.secure.masks import Lanes, double_mask, flashe, otp, pairwise, shared_key
from fljax.server.sampler import Sampler

MASKS = {"shared_key": shared_key, "otp": otp, "flashe": flashe}
"""Masks without a graph: (lanes) -> stage."""


def secure_stages(experiment: Experiment, sampler: Sampler, size: int, largest: int) -> tuple[UpdateTransform, ...]:
    """The last stages of a chain: words, and their mask; none where nothing is encoded.

    Args:
      sampler: who takes part. size: P, the number of shared parameters. largest: examples of the largest client.
    """
    secure = experiment.secure
    if secure.masking == "none":
        return ()
    lanes = word_lanes(experiment, sampler, size)
    stages: list[UpdateTransform] = []
    if not experiment.privacy.mechanism.startswith("distributed"):  # which makes integers of its own
        weight = float(largest) if _by_examples(experiment) else 1.0
        wanted = secure.bits, weight, secure.overflow
        stages.append(fixed_point(secure.value_bits, sampler.capacity, lanes.size, *wanted))
    if secure.masking in PAIRED:
        mask = double_mask if secure.masking == "double_mask" else pairwise
        stages.append(mask(lanes, round_graph(experiment, sampler)))
    elif secure.masking != "clear":
        stages.append(MASKS[secure.masking](lanes))
    return tuple(stages)


def word_lanes(experiment: Experiment, sampler: Sampler, size: int) -> Lanes:
    """How many words of how many bits a client sends, and what masks them."""
    secure, privacy = experiment.secure, experiment.privacy
    mode = "ideal" if secure.mode == "protocol" else secure.mode  # the pads are the host's, see sim/agreed.py
    if privacy.mechanism.startswith("distributed"):
        return Lanes(padded_size(size), privacy.bits, secure.prf, mode)
    trees = 1 + (experiment.client.algorithm == "scaffold") + (experiment.server.denominator == "count")
    values = trees * size + (privacy.clipping == "adaptive")
    bits = secure.bits or smallest_bits(secure.value_bits, sampler.capacity)
    return Lanes(values, bits, secure.prf, mode)


def round_graph(experiment: Experiment, sampler: Sampler) -> Graph:
    """Who shares keys with whom in a round of the experiment."""
    s = experiment.secure
    return choose_graph(sampler.capacity, s.corrupt, s.dropout, s.adversary, s.degree, s.threshold)


def _by_examples(experiment: Experiment) -> bool:
    """Do updates arrive multiplied by numbers of examples?"""
    return experiment.server.denominator == "realised" and experiment.server.weights == "examples"
