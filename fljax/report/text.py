"""Names and numbers as people read them: axis labels, percent, bytes, durations, statements of privacy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

EPSILON = "privacy.epsilon"
DASH = "—"
NO_CLAIM_NEEDED = ("", "none")
"""Statuses of trials that promise no privacy."""
CLAIM = "valid"
"""The one status under which an ε is a guarantee. Whatever is neither this nor without a promise was refused."""

_AXES = {EPSILON: "ε", "dropout.keep_rate": "keep rate", "dropout.source": "source"}
_METRICS = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "client_accuracy_mean": "accuracy of clients, mean",
    "client_accuracy_p10": "accuracy of clients, 10th percentile",
    "unseen_accuracy": "accuracy on unseen clients",
    "uplink_bytes": "uplink",
    "downlink_bytes": "downlink",
    "simulated_s": "simulated time",
    "simulated_flops": "arithmetic of the clients",
    "kept_energy": "energy kept by the masks",
    "snr_gain": "gain in signal to noise",
    "mask_overlap": "overlap with the mask before",
    "pair_overlap": "overlap between clients",
    "coverage": "parameters trained by somebody",
    "clip_fraction": "clients clipped",
    "clip_norm": "norm before the clip, mean of clients",
    "clip_bound": "clipping norm",
    "update_norm": "norm of the released average",
    "epsilon_spent": "ε spent so far",
    "test_attack_success": "attack success",
    "detection_precision": "malicious among the rejected",
    "detection_recall": "rejected among the malicious",
    "false_positive_rate": "rejected among the honest",
    "time_to_detect": "attacked rounds before detection",
}
COSTS = ("uplink_bytes", "downlink_bytes", "simulated_s", "simulated_flops")
"""Metrics that say what a trial cost."""
MASKS = ("kept_energy", "snr_gain", "mask_overlap", "pair_overlap", "coverage")
"""Metrics of the masks of a round."""
_NO_SHARES = ("snr_gain",)
DETECTION = ("detection_precision", "detection_recall", "false_positive_rate", "time_to_detect")
"""Metrics of a robust rule that tells malicious clients apart."""
_SHARES = ("test_attack_success", *DETECTION[:3])
CLIPPING = ("clip_fraction", "clip_norm", "clip_bound", "update_norm", "epsilon_spent")
"""Metrics of what clip and noise did in a round."""


def axis_label(axis: str) -> str:
    """The name of a swept field: the last part of its dotted name, or a better one where there is one."""
    return _AXES.get(axis, axis.rsplit(".", 1)[-1].replace("_", " "))


def value_label(axis: str, value: Any) -> str:
    """A value of a swept field: ``none`` for ε = inf, a dash for a missing one."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if math.isinf(value):
            return "none" if axis == EPSILON else "∞"
        return f"{value:.6g}"
    return str(value)


def cell_label(cell: Mapping[str, Any], refused: bool = False) -> str:
    """A cell in one line, such as ``ε 2, keep rate 0.5, fisher``; the ε of a refused one is called a target."""
    parts = []
    for axis, value in cell.items():
        text = value_label(axis, value)
        if axis == EPSILON and refused:
            parts.append(f"target ε {text}")
        elif axis == EPSILON and text == "none":
            parts.append("no noise")
        else:
            parts.append(text if isinstance(value, str) and value else f"{axis_label(axis)} {text}")
    return ", ".join(parts) or "the run"


def metric_label(metric: str) -> str:
    """The name of a metric with its unit."""
    name = metric_name(metric)
    return f"{name} (%)" if is_share(metric) else name


def metric_name(metric: str) -> str:
    """The name of a metric without its unit."""
    return _METRICS.get(metric, metric.replace("_", " "))


def is_share(metric: str) -> bool:
    """Whether a metric is a share of one, shown in percent."""
    return (
        "accuracy" in metric
        or metric in _SHARES
        or (metric in MASKS and metric not in _NO_SHARES)
        or metric.endswith(("_fraction", "_share"))
    )


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better: not for losses, errors, norms and costs."""
    worse = ("loss", "error", "norm", "bytes", "perplexity", "attack_success", "false_positive", "time_to")
    return metric not in COSTS and not any(word in metric for word in worse)


def metric_text(metric: str, value: float) -> str:
    """A value of a metric: percent with one decimal, costs with their unit, otherwise four digits."""
    if not math.isfinite(value):
        return DASH if math.isnan(value) else "∞"
    if metric.endswith("_bytes"):
        return byte_text(value)
    if metric == "simulated_s":
        return duration_text(value)
    if metric == "simulated_flops":
        return byte_text(value, "FLOP")
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.4g}"


def mean_std_text(metric: str, mean: float, std: float) -> str:
    """Mean ± standard deviation; the mean alone where there is no deviation (one seed, or costs that never vary)."""
    if not math.isfinite(std) or (metric in COSTS and std == 0):
        return metric_text(metric, mean)
    spread = f"{std:.2g}" if not is_share(metric) and metric not in COSTS else metric_text(metric, std)
    return f"{metric_text(metric, mean)} ± {spread}"


def byte_text(count: float, unit: str = "B") -> str:
    """Bytes (or another unit) with a decimal prefix: 1 500 000 is ``1.5 MB``."""
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 999.5:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} T{unit}"


def duration_text(seconds: float) -> str:
    """Seconds as ``41 ms``, ``8.3 s``, ``12 min 5 s`` or ``3 h 20 min``."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def small_text(value: Any) -> str:
    """A number of a statement, such as δ: ``1e-05`` is written ``1e-5``; None is a dash; lists are joined."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "; ".join(small_text(item) for item in value) or DASH
    if isinstance(value, dict):
        return "; ".join(f"{key} {small_text(item)}" for key, item in value.items()) or DASH
    if isinstance(value, float):
        short = f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
        return re.sub(r"\.?0*e([+-])0*", r"e\1", short).replace("inf", "∞")
    return str(value)


def words(value: Any) -> str:
    """A value of a statement where identifiers are read as words: ``add_or_remove_one`` is ``add or remove one``."""
    short = small_text(value)
    return short.replace("_", " ") if re.fullmatch(r"[a-z]+(_[a-z]+)*", short) else short


def has_epsilon(statement: Mapping[str, Any]) -> bool:
    """Whether a statement of privacy makes a claim: a finite ε under the status ``valid``."""
    epsilon = statement.get("epsilon")
    return statement.get("status") == CLAIM and isinstance(epsilon, (int, float)) and math.isfinite(epsilon)


SELECTION = ("selection_trials", "epsilon_selection", "selection_procedure")
"""Keys of a statement that price the choice of the best trial."""


def selection(statement: Mapping[str, Any]) -> list[str]:
    """What releasing only the best of the trials with this noise would cost, in one sentence; nothing where unknown."""
    epsilon, trials = statement.get("epsilon_selection"), statement.get("selection_trials")
    if not isinstance(epsilon, (int, float)) or not isinstance(trials, int):
        return []
    if not math.isfinite(epsilon):
        return []
    return [f"releasing only the best of {trials} expected trials: epsilon_selection = {round_up(epsilon)}"]


def epsilon_text(statement: Mapping[str, Any]) -> str:
    """The ε of a statement, or its status and the reason where there is none: never a number that is no guarantee."""
    if has_epsilon(statement):
        return round_up(statement["epsilon"])
    status = words(statement.get("status") or "none")
    reason = small_text(statement.get("reason"))
    return status if reason == DASH else f"{status}: {reason}"


def round_up(epsilon: float, digits: int = 4) -> str:
    """Four digits, rounded up: 3.9912 is written 3.992, since a smaller number would claim more than was derived."""
    if epsilon <= 0:
        return "0"
    exact = Decimal(repr(float(epsilon)))
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{exact.quantize(step, rounding=ROUND_CEILING).normalize():f}"
