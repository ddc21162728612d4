"""The store of sweeps: how long 100,000 trials take to plan, to write, to read, and to be found complete.

    python -m benchmarks.store --trials 100000 --rounds 100 --width 1000 --out benchmarks/results

The trials cost nothing: their four metrics are random numbers, which do not compress. Everything else is what a sweep
does: it is planned, its shards are claimed, written, flushed and checked, its manifest is completed, and it is started
once more. The files are in the cache of the operating system when they are read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from fljax.config import Experiment, validate
from fljax.core.provenance import provenance
from fljax.core.types import Hparams
from fljax.privacy.ledger import Ledger
from fljax.privacy.statement import PrivacyStatement
from fljax.sweep import folder as sweep_folder
from fljax.sweep.folder import begin, finish, missing, work
from fljax.sweep.run import Done, Resolved
from fljax.sweep.store import open_results

METRICS = ("test_accuracy", "test_loss", "loss", "update_norm")
QUERIES = {
    "mean_and_std_by_cell": 'SELECT "client.lr", "privacy.clip", avg(test_accuracy), stddev(test_accuracy) '
    "FROM trials GROUP BY 1, 2",
    "mean_curve_by_axis": 'SELECT "privacy.clip", round, avg(c.test_accuracy) FROM curves c JOIN trials USING (trial) '
    "GROUP BY 1, 2",
    "one_curve_in_sql": "SELECT * FROM curves WHERE trial = 77777 % (SELECT count(*) FROM trials) ORDER BY round",
    "duplicates": "SELECT trial_id FROM trials GROUP BY 1 HAVING count(*) > 1",
}


def experiment(trials: int, rounds: int, width: int) -> Experiment:
    """A sweep of so many trials: clips, learning rates, five seeds; evaluated in every round."""
    rates = [round(1e-4 * (i + 1), 6) for i in range(trials // 100)]
    clips = [round(0.1 * (i + 1), 2) for i in range(20)]
    sweep = {"grid": {"privacy.clip": clips, "client.lr": rates}, "seeds": 5}
    tree = {"name": "store", "rounds": rounds, "eval_every": 1, "sweep": sweep, "perf": {"trials_per_batch": width}}
    return validate(tree | {"privacy": {"mechanism": "central_gaussian"}})


def fake_runner(rounds: int):
    """A stand-in for ``make_runner``: random histories at once."""
    rng, said = np.random.default_rng(0), PrivacyStatement("none", "no noise was asked for")
    links = {f"{link}_{unit}": np.ones(rounds, np.int32) for link in ("uplink", "downlink") for unit in ("kib", "rest")}

    def make(plan, pending, quiet=False, check=None, kept=None):
        def run(shard, saved):
            batch = plan.batch(shard)
            resolved = [Resolved(Hparams(), said, Ledger())] * len(batch.trials)
            numbers = rng.random((len(batch.trials), len(METRICS), rounds), np.float32)
            histories = [
                dict(zip(METRICS, row, strict=True)) | {"participants": np.ones(rounds), **links} for row in numbers
            ]
            return Done(batch, resolved, histories, 0.0, [(rounds, 0.1)])

        return run

    return make


@contextmanager
def timed(name: str, seconds: dict[str, float]):
    """Notes and prints how long the block takes."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    print(f"{name:28s} {seconds[name]:8.3f} s", flush=True)


def measure(trials: int, rounds: int, width: int) -> dict:
    """Seconds of every step, bytes on disk."""
    e, seconds = experiment(trials, rounds, width), {}
    sweep_folder.make_runner = fake_runner(rounds)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        with timed("plan", seconds):
            plan = begin(out, e)
        with timed("write_all_shards", seconds):
            work(out, plan, quiet=True)
        with timed("finish", seconds):
            finish(out, plan)
        with timed("second_start", seconds):
            assert missing(out, begin(out, e)) == []
        with timed("open", seconds):
            results = open_results(out)
        with timed("one_curve", seconds):
            assert len(results.curve(trials // 2)["round"]) == rounds
        for name, query in QUERIES.items():
            with timed(name, seconds):
                answer = results.sql(query)
        assert len(answer["trial_id"]) == 0
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        shards = len(results.shards)
    return {"trials": trials, "rounds": rounds, "width": width, "shards": shards, "bytes": size, "seconds": seconds}


def main() -> None:
    """Prints the seconds of every step, and writes them as JSON where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--width", type=int, nargs="+", default=[1000])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [measure(args.trials, args.rounds, width) for width in args.width]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"rows": rows, "provenance": provenance()}, indent=1)
        (args.out / f"store_{jax.default_backend()}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
