"""Results folders with known numbers, for the tests of the report."""

from __future__ import annotations

import math

from fljax.sweep.store import open_results, write_results

EPS, KEEP, SOURCE = "privacy.epsilon", "dropout.keep_rate", "dropout.source"


def statement(epsilon, refused=False, **cell):
    claimed = isinstance(epsilon, float) and math.isfinite(epsilon) and not refused
    return {
        "status": "refused" if refused else "valid" if claimed else "none",
        "reason": "The mask is private <b>&</b> its noise is not." if refused else None,
        "epsilon": epsilon if claimed else None,
        "delta": 1e-5,
        "unit": "user",
        "relation": "add_or_remove_one" if claimed else None,
        "sampler": "Poisson" if claimed else None,
        "accountant": "PLD" if claimed else None,
        "population": 1000,
        "noise_multiplier": 1.25,
        "rounds": 30,
        "caveats": ["The search for hyper-parameters is not covered."] + (["Of this \u03b5."] if epsilon == 8 else []),
        "cell": cell,
    }


def make_sweep(folder, axes, seeds=3, refuse=lambda cell: False, masks=(), **extra):
    """Writes a sweep over the product of the axes; the accuracy is a known function of cell and seed.

    masks: metrics of masks that the curves hold as well: the accuracy again.
    """
    cells = [{}]
    for axis, values in axes.items():
        cells = [cell | {axis: value} for cell in cells for value in values]
    rows, curves, privacy = [], [], []
    for cell in cells:
        said = statement(cell.get(EPS), refuse(cell), **cell)
        privacy.append(said)
        for seed in range(seeds):
            level = 0.5 + 0.01 * cells.index(cell) + 0.02 * seed
            row = {"trial": len(rows), **cell, "run.seed": seed, "test_accuracy": level, "test_loss": 1 - level}
            row |= {"epsilon": said["epsilon"], "privacy_status": said["status"]}
            rows.append(row | {"uplink_bytes": round(1e6 * cell.get(KEEP, 1.0)), "downlink_bytes": 2_000_000})
            seen = {r: dict.fromkeys(("test_accuracy", *masks), level * r / 30) for r in (10, 20, 30)}
            curves += [{"trial": row["trial"], "round": r} | values for r, values in seen.items()]
    manifest = {"name": "demo", "kind": "sweep" if len(rows) > 1 else "run", "title": "Demo", "axes": list(axes)}
    manifest |= {"privacy": privacy, "experiment": {"run": {"rounds": 30}}, "timing": {"steady_s": 75.0}}
    manifest |= {"provenance": {"command": "fljax sweep demo.toml", "commit": "abc", "dirty": False}, "fljax": "0"}
    as_columns = [{k: [row[k] for row in table] for k in table[0]} for table in (rows, curves)]
    write_results(folder, manifest=manifest | extra, trials=as_columns[0], curves=as_columns[1])
    return open_results(folder)


GRID = {EPS: [2.0, 8.0, math.inf], KEEP: [0.5, 1.0], SOURCE: ["fisher", "random"]}
