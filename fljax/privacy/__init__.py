"""Differential privacy: what bounds and noises a round, and what that is worth in epsilon.

Importing this package does not import ``dp_accounting``; the functions that need it do, when they are called.
"""

from fljax.privacy.accounting import default_delta, epsilon, epsilon_series, fixed_size_bound, stated_epsilon
from fljax.privacy.calibration import calibrate, calibrate_many
from fljax.privacy.events import Event
from fljax.privacy.mechanisms import make_event
from fljax.privacy.rdp import rdp_epsilon
from fljax.privacy.selection import selection_epsilon
from fljax.privacy.statement import PrivacyStatement, state_privacy

__all__ = [
    "Event",
    "PrivacyStatement",
    "calibrate",
    "calibrate_many",
    "default_delta",
    "epsilon",
    "epsilon_series",
    "fixed_size_bound",
    "make_event",
    "rdp_epsilon",
    "selection_epsilon",
    "state_privacy",
    "stated_epsilon",
]
