"""From the section of secure sums to its stages, and what a report says of them."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from fljax.config import Experiment
from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.transform import UpdateTransform
from fljax.privacy.integers import padded_size
from fljax.sections.secure import PAIRED, own_words
from fljax.secure.fixedpoint import fixed_point, smallest_bits
from fljax.secure.graph import Graph, choose_graph
from fljax.secure.ledger import expansion, key_traffic
from fljax.secure.masks import Lanes, double_mask, flashe, otp, pairwise, shared_key
from fljax.secure.positions import suppress
from fljax.secure.prf import LABELS
from fljax.server.positions import Agreement
from fljax.server.sampler import Sampler

READERS = {
    "clear": "the server reads every upload",
    "shared_key": "INSECURE: every client reads every upload, and differences of uploads are open to all",
    "otp": "the holder of the keys could read every upload; the server reads the sum",
    "flashe": "every client could read every upload; the server reads the sum once it is unmasked",
    "pairwise": "nobody reads an upload, unless the server calls a slow client dropped; it reads the sum",
    "double_mask": "nobody reads an upload while fewer than t neighbours help the server; it reads the sum",
}
"""Who can read what, by mask."""
MASKS = {"shared_key": shared_key, "otp": otp, "flashe": flashe}
"""Masks without a graph: (lanes) -> stage."""


LEAKS = {
    "dense": "nothing but the sum",
    "public": "every client's positions, and values of coordinates that one client alone sends",
    "union": "how many clients keep each neuron",
    "consensus": "one mask, from released values or a sum of scores",
    "seeded": "nothing that depends on data",
    "ldp": "every client's positions, each with probability of a lie",
}
"""What the positions of a round tell the server beside the sum, by mode."""


def agreement(experiment: Experiment) -> Agreement | None:
    """How clients agree on whose words travel; None where every upload has a word for every value."""
    s = experiment.secure
    if s.masking == "none" or s.positions == "dense":
        return None
    return Agreement(s.positions == "union", s.contributors if own_words(experiment) else 1)


def secure_stages(
    experiment: Experiment, sampler: Sampler, size: int, largest: int, groups: Any = None
) -> tuple[UpdateTransform, ...]:
    """The last stages of a chain: words, and their mask; none where nothing is encoded.

    Args:
      sampler: who takes part. size: P, the number of shared parameters. largest: examples of the largest client.
    """
    secure = experiment.secure
    if secure.masking == "none":
        return ()
    lanes = word_lanes(experiment, sampler, size, groups)
    stages: list[UpdateTransform] = []
    if not experiment.privacy.mechanism.startswith("distributed"):  # which makes integers of its own
        weight = float(largest) if _by_examples(experiment) else 1.0
        wanted = secure.bits, weight, secure.overflow
        stages.append(fixed_point(secure.value_bits, sampler.capacity, lanes.size, *wanted))
    if lanes.groups is not None:
        stages.append(suppress(groups, secure.contributors if own_words(experiment) else 1))
    if secure.masking in PAIRED:
        mask = double_mask if secure.masking == "double_mask" else pairwise
        stages.append(mask(lanes, round_graph(experiment, sampler)))
    elif secure.masking != "clear":
        stages.append(MASKS[secure.masking](lanes))
    return tuple(stages)


def word_lanes(experiment: Experiment, sampler: Sampler, size: int, groups: Any = None) -> Lanes:
    """How many words of how many bits a client sends, and what masks them."""
    secure, privacy = experiment.secure, experiment.privacy
    mode = "ideal" if secure.mode == "protocol" else secure.mode  # the pads are the host's, see sim/agreed.py
    if privacy.mechanism.startswith("distributed"):
        return Lanes(padded_size(size), privacy.bits, secure.prf, mode)
    values = (1 + (experiment.client.algorithm == "scaffold")) * size + (privacy.clipping == "adaptive")
    if experiment.server.denominator == "count":
        values += groups.num_cells
    if experiment.dropout.source == "paid":
        values += sum(n for _, n in groups.sizes)
    bits = secure.bits or smallest_bits(secure.value_bits, sampler.capacity)
    return Lanes(values, bits, secure.prf, mode, None if secure.positions == "dense" else groups)


def round_graph(experiment: Experiment, sampler: Sampler) -> Graph:
    """Who shares keys with whom in a round of the experiment."""
    s = experiment.secure
    graph = choose_graph(sampler.capacity, s.corrupt, s.dropout, s.adversary, s.degree, s.threshold)
    if own_words(experiment) and graph.degree < sampler.capacity - 1:
        raise FljaxError(
            f"Expected secure.degree={graph.degree} to be {sampler.capacity - 1} for secure.positions="
            f"{s.positions!r}: clients that share no key have no pad on the words that they alone send. "
            f"Set secure.degree = {sampler.capacity - 1}."
        )
    return graph


def _by_examples(experiment: Experiment) -> bool:
    """Do updates arrive multiplied by numbers of examples?"""
    return experiment.server.denominator == "realised" and experiment.server.weights == "examples"


def describe_secure(
    experiment: Experiment, sampler: Sampler, params: Any, history: dict[str, np.ndarray], groups: Any = None
) -> dict[str, Any]:
    """What the words of a run were, who could read them, what they cost and what went wrong; {} without words.

    Args:
      sampler: of the run. params: its final parameters. history: its metrics, [T]. groups: of neurons.

    Returns:
      Beside the numbers of the encoding and the graph: ``expansion``, traffic with keys and shares in both directions
      over that of 32-bit floats; ``aborted_rounds``, ``wrong_values`` (by overflow), ``saturated`` (share of the values
      that the range cut off); ``params_sha256`` of the final parameters, to compare runs bit by bit.
    """
    s = experiment.secure
    if s.masking == "none":
        return {}
    lanes = word_lanes(experiment, sampler, tree.num_elements(params), groups)
    graph = round_graph(experiment, sampler) if s.masking in PAIRED else None
    scheme, others = ("none" if s.masking == "clear" else s.masking), 0 if graph is None else graph.degree
    keys = key_traffic(scheme, others)
    found: dict[str, Any] = {"masking": s.masking, "mode": s.mode, "who_reads": READERS[s.masking]}
    if s.mode == "masked":
        found["pads"] = LABELS[s.prf]
    found |= {"bits": lanes.bits, "values": lanes.size}
    if not experiment.privacy.mechanism.startswith("distributed"):
        found |= {"value_bits": s.value_bits, "value_range": s.value_range or experiment.privacy.clip}
    if graph is not None:
        found |= {"degree": graph.degree, "threshold": graph.threshold, "adversary": s.adversary}
    found["key_bytes"] = -(-keys.total // 8)
    found["expansion"] = expansion(scheme, lanes.size, lanes.bits, others)
    names = {"secure_aborted": "aborted_rounds", "fixed_point_overflow": "wrong_values"}
    found |= {shown: int(np.sum(history[name])) for name, shown in names.items() if name in history}
    if "fixed_point_saturated" in history:
        found["saturated"] = float(np.mean(history["fixed_point_saturated"]))
    found |= _positions(experiment, history)
    whole = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(params))
    return found | {"params_sha256": hashlib.sha256(whole).hexdigest()}


def _positions(experiment: Experiment, history: dict[str, np.ndarray]) -> dict[str, Any]:
    """Whose words travelled and what that told; {} without dropout. Shares are means over the rounds with masks."""
    s, d = experiment.secure, experiment.dropout
    if d.source == "none":
        return {}
    found: dict[str, Any] = {"positions": s.positions, "positions_tell": LEAKS[s.positions]}
    if own_words(experiment):
        found["min_contributors"] = s.contributors
    if s.positions_epsilon is not None:
        found["positions_epsilon"] = s.positions_epsilon
    seen = {n: v[d.warmup_rounds :] for n, v in history.items() if n.startswith("positions_") and len(v)}
    return found | {n.removeprefix("positions_"): float(np.mean(v)) for n, v in seen.items() if len(v)}
