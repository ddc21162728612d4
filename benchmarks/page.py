"""The tables of docs/performance.md, written from the files in benchmarks/results and from nothing else.

    python -m benchmarks.page                       # writes the page anew from the stored files
    python -m benchmarks.page --check               # says whether the page agrees with them
    python -m benchmarks.page --measure cohort_cnn vs_tiny_mlp
    python -m benchmarks.page --measure all         # everything, about three quarters of an hour on two idle cores

``SOURCES`` names the command behind every file; ``--measure`` runs it and stores its file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import tables
from benchmarks.tables import Files, grid

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/performance.md"

SOURCES = {
    "cohort_cnn": "round --workload cohort_cnn",
    "tiny_mlp": "round --workload tiny_mlp --rounds-per-call 25 --calls 15",
    "tiny_mlp_central": "round --workload tiny_mlp --privacy central --rounds-per-call 25 --calls 15",
    "emnist_natural": "round --workload emnist_natural --rounds-per-call 3",
    "resnet18_cifar": "round --workload resnet18_cifar",
    "resnet8_cifar": "round --workload resnet8_cifar",
    "char_lstm_text": "round --workload char_lstm_text",
    "transformer_text": "round --workload transformer_text",
    "long_tailed_cnn": "round --workload long_tailed_cnn",
    "long_tailed_mlp": "round --workload long_tailed_mlp --rounds-per-call 5 --calls 15",
    "cohort_cnn_chunk1": "round --workload cohort_cnn --chunk 1 --calls 3",
    "cohort_cnn_chunk2": "round --workload cohort_cnn --chunk 2 --calls 3",
    "cohort_cnn_chunk10": "round --workload cohort_cnn --chunk 10 --calls 3",
    "cohort_cnn_chunk0": "round --workload cohort_cnn --chunk 0 --calls 3",
    "cohort_cnn_central": "round --workload cohort_cnn --privacy central",
    "cohort_cnn_adaptive": "round --workload cohort_cnn --privacy adaptive",
    "cohort_cnn_local": "round --workload cohort_cnn --privacy local",
    "cohort_cnn_discrete_gaussian": "round --workload cohort_cnn --privacy discrete_gaussian --calls 3",
    "cohort_cnn_skellam": "round --workload cohort_cnn --privacy skellam --calls 3",
    "cohort_cnn_keep0.5_compact": "round --workload cohort_cnn --keep 0.5 --dropout-exec compact",
    "cohort_cnn_keep0.25_compact": "round --workload cohort_cnn --keep 0.25 --dropout-exec compact",
    "cohort_cnn_keep1_compact_tiers": "round --workload cohort_cnn --keep 1 --dropout-exec compact --tiers 1 0.5 0.25",
    "cohort_cnn_keep0.25_masked": "round --workload cohort_cnn --keep 0.25 --dropout-exec masked",
    "vs_cohort_cnn": "vs --workload cohort_cnn --turns 3",
    "vs_tiny_mlp": "vs --workload tiny_mlp --turns 3",
    "trials_tiny_mlp": "trials",
    "trials_tiny_mlp_w3": "trials --grid w3 --rounds 5",
    "sweep": "sweep",
    "store": "store --trials 100000 --rounds 100 --width 1000",
    "scaling": "scaling",
    "memory": "memory",
    "convolutions": "convolutions",
    "layers": "layers",
    "dense": "dense",
    "widths": "widths",
    "streaming": "streaming",
    "compile_cohort_cnn": "compile_time",
    "profile_cohort_cnn": "profile",
    "precision": "precision",
}
"""File (without its backend) -> the command that writes it, after ``python -m benchmarks.``"""


def stored(backend: str = "cpu") -> Files:
    """The stored files that there are, by name."""
    paths = {name: RESULTS / f"{name}_{backend}.json" for name in SOURCES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def sources(files: Files) -> str:
    """Which command, commit and load are behind each file."""
    rows = []
    for name, f in files.items():
        origin, load = f["provenance"], f.get("load", {}).get("before", [])
        commit = origin["commit"][:9] + (" + changes" if origin["dirty"] else "")
        command = f"`python -m benchmarks.{SOURCES[name]}`"
        rows.append([f"`{name}_cpu.json`", command, commit, origin["date"][:16], f"{load[0]:.1f}" if load else ""])
    return grid(["file", "command", "commit", "date (UTC)", "load before"], rows)


TABLES = tables.TABLES | {"sources": sources}


def written(page: str, files: Files) -> str:
    """The page with every table anew: what stands between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    parts = page.split("<!-- table: ")
    result = parts[0]
    for part in parts[1:]:
        name, rest = part.split(" -->\n", 1)
        result += f"<!-- table: {name} -->\n{TABLES[name](files)}<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return result


def measure(names: list[str]) -> None:
    """Runs the commands behind these files; each stores its own."""
    for name in names:
        command = [sys.executable, "-m", *f"benchmarks.{SOURCES[name]}".split(), "--out", str(RESULTS)]
        print(" ".join(command[1:]), flush=True)
        subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    """Measures where asked, then writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", default=[], choices=["all", *SOURCES], metavar="NAME")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is not up to date")
    args = parser.parse_args()
    measure(list(SOURCES) if "all" in args.measure else args.measure)
    page = PAGE.read_text()
    new = written(page, stored())
    if args.check:
        sys.exit("Expected docs/performance.md to agree with benchmarks/results." if new != page else 0)
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
