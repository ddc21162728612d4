"""What was found: numbers of every attack beside their base lines, as JSON and as lines for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fljax.leakage.views import DEFENCES
from fljax.privacy.statement import PrivacyStatement


@dataclass(frozen=True)
class Leakage:
    """What an adversary learnt.

    Attributes:
      name: of the experiment. adversary: who attacked. defences: what the experiment declares, and what was assumed.
      views: adversary -> what it sees under these defences.
      round: that was attacked. victims: clients of it. examples: of one victim, mean.
      statement: what is claimed of the run's privacy.
      found: attack -> numbers, or ``{"skipped": reason}``.
      seed: of the adversary. seconds: wall time of everything.
      pictures: a few examples and their reconstructions, [H][W][c] in [0, 1] by row, or None.
      audited: what an audit estimated for epsilon, where one was asked for.
    """

    name: str
    adversary: str
    defences: tuple[str, ...]
    views: dict[str, tuple[str, ...]]
    round: int
    victims: int
    examples: float
    statement: PrivacyStatement
    found: dict[str, dict[str, Any]]
    seed: int
    seconds: float
    pictures: dict[str, Any] | None = None
    audited: dict[str, Any] | None = None

    @property
    def leakage_reduction(self) -> float | None:
        """``1 - (PSNR - PSNR_base) / (PSNR_none - PSNR_base)`` of the mask-aware inversion, or None."""
        return self.found.get("inversion", {}).get("leakage_reduction")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        said = self.statement
        privacy = {"status": said.status, "epsilon": said.epsilon, "delta": said.delta, "unit": said.unit}
        return {
            "name": self.name,
            "adversary": self.adversary,
            "defences": {name: DEFENCES[name].says for name in self.defences},
            "views": {name: list(items) for name, items in self.views.items()},
            "round": self.round,
            "victims": self.victims,
            "examples_per_victim": self.examples,
            "leakage_reduction": self.leakage_reduction,
            **self.found,
            "privacy": privacy | ({"audited": self.audited} if self.audited is not None else {}),
            "seed": self.seed,
            "seconds": self.seconds,
        }

    def text(self) -> str:
        """A few lines for people."""
        sees = ", ".join(self.views[self.adversary])
        lines = [
            f"{self.name}: what the {self.adversary} learns from round {self.round} "
            f"({self.victims} clients, {self.examples:.3g} examples each)",
            f"  defences   {', '.join(self.defences)}",
            f"  it sees    {sees}",
        ]
        for name, values in self.found.items():
            lines += _SAYS[name](name, values) if "skipped" not in values else [_row(name, f"- {values['skipped']}")]
        if self.statement.epsilon is not None:
            lines.append(_row("epsilon", f"{self.statement.epsilon:.4g} claimed ({self.statement.status})"))
        if self.audited is not None:
            low, high = self.audited["epsilon_lower"], self.audited["epsilon_estimate"]
            lines.append(_row("audited", f"estimated {high:.4g}, certified at least {low:.4g}"))
        return "\n".join(lines)


def _row(name: str, said: str) -> str:
    return f"  {name:<14}{said}"


def _labels(name: str, v: dict[str, Any]) -> list[str]:
    said = f"F1 {v['f1']:.2f}, {v['share']:.0%} of the labels (chance {v['chance']['f1']:.2f}, no defence "
    return [_row(name, f"{said}{v['no_defence']['f1']:.2f})")]


def _images(name: str, v: dict[str, Any]) -> list[str]:
    def told(r: dict[str, Any]) -> str:
        alike = "" if r["ssim"] is None else f", SSIM {r['ssim']:.2f}"
        return f"{r['psnr']:5.1f} dB, {r['share']:.0%} recovered{alike}"

    rows = [_row(name, told(v))]
    if "ignoring_masks" in v:
        rows.append(_row("", f"{told(v['ignoring_masks'])}: ignoring the masks"))
    rows.append(_row("", f"{told(v['no_defence'])}: without a defence"))
    rows += [_row("", f"{told(line)}: {kind.replace('_', ' ')}") for kind, line in v["base_lines"].items()]
    if v["leakage_reduction"] is not None:
        rows.append(_row("", f"leakage reduction {v['leakage_reduction']:.2f} (0 none, 1 whole)"))
    return rows


def _positions(name: str, v: dict[str, Any]) -> list[str]:
    said = f"most frequent label right for {v['accuracy']:.0%} +- {v['std_error']:.0%} of {v['clients']} clients"
    return [_row(name, f"{said}, {v['times_chance']:.1f} times chance ({v['chance']:.0%})")]


def _membership(name: str, v: dict[str, Any]) -> list[str]:
    return [
        _row(name if kind == "loss" else "", f"AUC {r['auc']:.3f} +- {r['auc_error']:.3f}, TPR {r['tpr']:.1%} at FPR "
             f"{v['fpr']:.0%} ({kind})")
        for kind, r in v.items()
        if kind in ("loss", "calibrated")
    ]  # fmt: skip


def _participation(name: str, v: dict[str, Any]) -> list[str]:
    if v["told"]:
        return [_row(name, "it is told who took part")]
    return [_row(name, f"AUC {v['auc']:.3f} +- {v['auc_error']:.3f} (chance 0.5)")]


def _exposure(name: str, v: dict[str, Any]) -> list[str]:
    first = "" if v["first_round"] is None else f", the first after round {v['first_round']}"
    return [_row(name, f"{v['clients']} clients solved for from sums alone after {v['rounds']} rounds{first}")]


_SAYS = {
    "labels": _labels,
    "analytic": _images,
    "inversion": _images,
    "positions": _positions,
    "membership": _membership,
    "participation": _participation,
    "exposure": _exposure,
}
