"""A batch of trials that would not fit into memory is refused before it runs, with one that fits."""

import pytest
from small_sweep import experiment

from fljax.core import memory
from fljax.core.check import FljaxError
from fljax.sim.build import load_data
from fljax.sweep.plan import make_plan
from fljax.sweep.run import begin_batch, get_ready, run_sweep


@pytest.mark.slow  # compiles a handful of widths
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(monkeypatch):
    sweep = experiment(**{"perf.trials_per_batch": 8})
    plan = make_plan(sweep)
    shard = next(iter(plan.shards))
    ready = get_ready([plan.batch(shard)], load_data(sweep.data), {}, quiet=True)
    whole = memory.needed(begin_batch(ready, shard, quiet=True).executable).more
    monkeypatch.setattr(memory, "free", lambda: int(0.7 * whole))
    with pytest.raises(FljaxError, match=r"perf.trials_per_batch=8 to fit .* Use perf.trials_per_batch=[1-7]\."):
        run_sweep(sweep, quiet=True)


def test_states_of_trials_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    sweep = experiment(**{"perf.trials_per_batch": 8})
    plan = make_plan(sweep)
    shard = next(iter(plan.shards))
    ready = get_ready([plan.batch(shard)], load_data(sweep.data), {}, quiet=True)
    ready.compiled[ready.structure, 8, plan.batch(shard).rate] = run_sweep  # nothing is compiled
    made = memory.size_of(begin_batch(ready, shard, quiet=True).start.state)
    monkeypatch.setattr(memory, "free", lambda: int(3.5 * made / 8 / memory.SHARE))
    with pytest.raises(FljaxError, match=r"the states of 8 trials to fit .* Use perf.trials_per_batch=3\."):
        begin_batch(ready, shard, quiet=True)
