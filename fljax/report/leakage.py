"""The section of a page that says what an adversary learnt, from the file that ``fljax leakage`` leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fljax.report import text
from fljax.report.citation import PROBES, references
from fljax.sweep.files import read_json
from fljax.sweep.store import LEAKAGE

GREYS = 15
"""Steps of grey of a picture: neighbours that are equal become one rectangle, which keeps pages small."""
ROWS = {"original": "the client's examples", "seen": "reconstructed from what it sees", "bare": "without a defence"}

Line = tuple[str, list[str]]


def leakage_section(folder: Path) -> dict[str, Any] | None:
    """What the page shows, or None where the folder holds no ``leakage.json``.

    Returns:
      ``facts``: pairs of label and text; ``lines``: attack, what it reached, and beside what; ``skipped``: sentences;
      ``pictures``: an SVG or None; ``works``: BibTeX of the attacks.

    Raises:
      FljaxError: the file is damaged.
    """
    path = folder / LEAKAGE
    if not path.is_file():
        return None
    found = read_json(path)
    attacks = {name: found[name] for name in SAYS if isinstance(found.get(name), dict)}
    done = {name: values for name, values in attacks.items() if "skipped" not in values}
    facts = [
        ("adversary", text.words(found["adversary"])),
        ("sees", ", ".join(found["views"][found["adversary"]]) or text.DASH),
        ("defences", ", ".join(text.words(name) for name in found["defences"])),
        (
            "attacked round",
            f"{found['round']}, {found['victims']} clients of {found['examples_per_victim']:.3g} examples",
        ),
    ]
    audited = found.get("privacy", {}).get("audited")
    if audited:
        facts.append(("audited ε", f"{audited['epsilon_estimate']:.3g}, certified {audited['epsilon_lower']:.3g}"))
    works, entries = dict.fromkeys(key for name in done for key in PROBES.get(name, ())), references()
    return {
        "works": "\n\n".join(entries[key] for key in works),
        "facts": facts,
        "lines": [line for name, values in done.items() for line in SAYS[name](name, values)],
        "skipped": [f"{name}: {v['skipped']}" for name, v in attacks.items() if "skipped" in v],
        "pictures": pictures_svg(found["pictures"]) if found.get("pictures") else None,
    }


def _labels(name: str, v: Mapping[str, Any]) -> list[Line]:
    reached = f"F1 {v['f1']:.2f}, {v['share']:.0%} of the labels"
    return [(name, [reached, f"F1 {v['chance']['f1']:.2f}", f"F1 {v['no_defence']['f1']:.2f}"])]


def _images(name: str, v: Mapping[str, Any]) -> list[Line]:
    def told(r: Mapping[str, Any]) -> str:
        alike = "" if r["ssim"] is None else f", SSIM {r['ssim']:.2f}"
        return f"{r['psnr']:.1f} dB, {r['share']:.0%} recovered{alike}"

    base = max(v["base_lines"].values(), key=lambda line: line["psnr"])
    lines = [(name, [told(v), told(base), told(v["no_defence"])])]
    if "ignoring_masks" in v:
        lines.append((f"{name}, ignoring the masks", [told(v["ignoring_masks"]), told(base), text.DASH]))
    return lines


def _positions(name: str, v: Mapping[str, Any]) -> list[Line]:
    reached = f"most frequent label {v['accuracy']:.0%} ± {v['std_error']:.0%}, {v['times_chance']:.1f} times chance"
    return [(name, [reached, f"{v['chance']:.0%}", text.DASH])]


def _membership(name: str, v: Mapping[str, Any]) -> list[Line]:
    return [
        (f"{name}, {kind}", [f"AUC {v[kind]['auc']:.3f} ± {v[kind]['auc_error']:.3f}, TPR {v[kind]['tpr']:.1%} at FPR "
                             f"{v['fpr']:.0%}", "AUC 0.5", text.DASH])
        for kind in ("loss", "calibrated")
    ]  # fmt: skip


def _participation(name: str, v: Mapping[str, Any]) -> list[Line]:
    return [(name, ["told" if v["told"] else f"AUC {v['auc']:.3f} ± {v['auc_error']:.3f}", "AUC 0.5", text.DASH])]


def _exposure(name: str, v: Mapping[str, Any]) -> list[Line]:
    return [(name, [f"{v['clients']} clients after {v['rounds']} rounds", text.DASH, text.DASH])]


SAYS = {
    "labels": _labels,
    "analytic": _images,
    "inversion": _images,
    "positions": _positions,
    "membership": _membership,
    "participation": _participation,
    "exposure": _exposure,
}
"""Attacks in the order of the page; each line is what was reached, by chance, and without a defence."""


def pictures_svg(pictures: Mapping[str, Any], cell: int = 4) -> str:
    """Rows of images as inline SVG: pictures[row] is a list of images [H][W][c] of numbers in [0, 1]."""
    rows = [(ROWS[name], pictures[name]) for name in ROWS if name in pictures]
    height, width = len(rows[0][1][0]), len(rows[0][1][0][0])
    step, across = (width + 1) * cell, max(len(images) for _, images in rows)
    label, parts = 16, []
    for r, (said, images) in enumerate(rows):
        top = r * (height * cell + label + 6)
        parts.append(f'<text x="0" y="{top + 11}" font-size="11" fill="currentColor">{said}</text>')
        for k, image in enumerate(images):
            parts += _pixels(image, k * step, top + label, cell)
    size = (across * step, len(rows) * (height * cell + label + 6))
    head = f'<svg viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" role="img" shape-rendering="crispEdges"'
    return f'{head} aria-label="examples and their reconstructions" style="max-width:100%">{"".join(parts)}</svg>'


def _pixels(image: Sequence[Sequence[Sequence[float]]], left: int, top: int, cell: int) -> list[str]:
    """Rectangles of one image; equal neighbours of a line are one."""
    parts = []
    for i, line in enumerate(image):
        shades = [_shade(pixel) for pixel in line]
        start = 0
        for j in range(1, len(shades) + 1):
            if j == len(shades) or shades[j] != shades[start]:
                x, y, width = left + start * cell, top + i * cell, (j - start) * cell
                parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{cell}" fill="{shades[start]}"/>')
                start = j
    return parts


def _shade(pixel: Sequence[float]) -> str:
    """A colour as #rgb, one hexadecimal digit each."""
    digits = [f"{round(GREYS * min(max(v, 0.0), 1.0)):x}" for v in pixel]
    return "#" + "".join(digits if len(digits) == 3 else 3 * digits[:1])
