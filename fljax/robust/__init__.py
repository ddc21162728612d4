"""Malicious clients: rules that withstand them, and attacks that try the rules."""

from fljax.robust.adversary import make_adversary
from fljax.robust.before import (
    adaptive_norm_bound,
    bucketing,
    nearest_neighbour_mixing,
    norm_bound,
    secure_groups,
)
from fljax.robust.centres import centred_clipping, geometric_median
from fljax.robust.coordinatewise import mean, mean_around_median, median, sign_majority, trimmed_mean
from fljax.robust.distances import bulyan, krum, multi_krum
from fljax.robust.spectral import divide_and_conquer, flame
from fljax.robust.trust import fltrust, foolsgold

__all__ = [
    "adaptive_norm_bound",
    "bucketing",
    "bulyan",
    "centred_clipping",
    "divide_and_conquer",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "krum",
    "make_adversary",
    "mean",
    "mean_around_median",
    "median",
    "multi_krum",
    "nearest_neighbour_mixing",
    "norm_bound",
    "secure_groups",
    "sign_majority",
    "trimmed_mean",
]
