"""The mistakes that are planted, and the classes of mistakes that they stand for.

A class is one that real projects had: clipping the aggregate, noise for the sum on the mean, keys used twice. Where a
class cannot occur in fljax, ``NOT_PLANTED`` says why.
"""

from __future__ import annotations

import mutants_accounting
import mutants_encryption
import mutants_later
import mutants_local
import mutants_noise
import mutants_robust
import mutants_rounds
import mutants_runs
import mutants_secure
from mutant import Mutant

CLASSES = {
    1: "clip after averaging, or of the aggregate",
    2: "clip of the wrong tensor (weights, not their change)",
    3: "clip by leaf or by layer with noise for one joint norm",
    4: "weights by examples with noise for equal weights",
    5: "denominator is the realised count",
    6: "noise for the sum added to the mean, or the reverse",
    7: "noise not scaled by the clip, or by a wrong power",
    8: "noise of a round scaled to the next round's clip",
    9: "adaptive clip with a wrong sign or indicator",
    10: "count of adaptive clipping without noise or budget",
    11: "NaN or infinity gets past the clip",
    12: "division by zero for a zero update",
    13: "an empty cohort fails, or is seen",
    14: "padding is counted, or leaks",
    15: "truncation keeps the clients with low ids",
    16: "one random key for several leaves, parts or consumers",
    17: "one random key for several rounds, clients or sweep members",
    18: "noise or norms in low precision",
    19: "integer noise of a wrong law, overflow, wrap-around unnoticed",
    20: "what is sampled is not what is accounted",
    21: "sampling rate from a wrong number",
    22: "neighbouring relation confused (2 S)",
    23: "calibration overshoots its target",
    25: "statistics shared between clients, or state that no mechanism covers",
    26: "one contribution used twice",
    27: "leaves that bypass the noise by their type",
    28: "values without noise that nobody is warned of",
    29: "security of the random numbers overclaimed",
    30: "budget spent twice, or forgotten on resuming",
    31: "coordinates that were not selected released without noise",
    32: "no noise, and no infinite epsilon",
    33: "the accountant's arithmetic, or its memory",
    34: "a claim that nobody checked",
    35: "masks from values that were not noised",
    36: "local randomisers with a wrong probability or scale",
    37: "noise in shares: survivors, modulus, rounding, rotation",
    38: "noise correlated over rounds: reuse, participations",
    39: "private local steps: clip, denominator, batch",
    40: "audits that compare with another claim",
    41: "secure sums: pads, secrets, thresholds, words",
    45: "channels: nonces, keys, what is authenticated, replay",
    46: "secret sharing and secure sums with real keys",
    42: "robust rules, attacks and detection that are not those of their definition",
}
"""Number of a class -> the mistake. 1 to 32 are those that other projects were found to have had."""

NOT_PLANTED = {
    24: "sensitivity doubled by micro-batches: a client's whole update is clipped once; at record level every example "
    "is a batch of its own (class 39)",
}
"""Classes that cannot occur, with the reason."""

MUTANTS: tuple[Mutant, ...] = (
    *mutants_noise.MUTANTS,
    *mutants_rounds.MUTANTS,
    *mutants_runs.MUTANTS,
    *mutants_accounting.MUTANTS,
    *mutants_local.MUTANTS,
    *mutants_later.MUTANTS,
    *mutants_secure.MUTANTS,
    *mutants_encryption.MUTANTS,
    *mutants_robust.MUTANTS,
)
