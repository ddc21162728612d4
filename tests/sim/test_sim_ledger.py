"""A run is resumed only with the ledger that it would have written itself."""

import numpy as np
import pytest
import small_run

from fljax.core.check import FljaxError
from fljax.privacy.ledger import open_ledger
from fljax.sim import checkpoint
from fljax.sim import run as running
from fljax.sim.build import resolve


class Stopped(Exception):
    """The run got past its checks."""


def test_a_forged_ledger_is_refused_and_the_true_one_is_not(tmp_path, monkeypatch):
    """A checkpoint after three of seven rounds; what comes after the checks is cut off."""
    experiment, program = small_run.experiment(), small_run.program()
    hparams, statement = resolve(experiment, program)
    noise = program.round.claims(hparams, program.params(0)).noise
    spent = open_ledger(program.round.law(hparams), noise, small_run.ROUNDS, statement.delta).spent
    assert np.all(np.diff(spent) >= 0) and spent[-1] >= statement.epsilon

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(running, "build", lambda _: program)
    monkeypatch.setattr(running, "compile_call", stop)
    path, state = tmp_path / running.CHECKPOINT, small_run.begin()._replace(done=3)
    header = {"fingerprint": experiment.fingerprint(), "name": "small", "rounds": small_run.ROUNDS}
    key = running.privacy_ledger(program, hparams, statement).event
    entry = {"event": key, "rounds": 3, "epsilon": float(spent[2])}
    for forged in ({"rounds": 1}, {"event": key.replace("0.5", "5.0")}, {"epsilon": 0.01}):
        assert entry | forged != entry
        checkpoint.save(path, state, header | {"ledger": entry | forged})
        with pytest.raises(FljaxError, match="privacy ledger") as refused:
            running.run(experiment, out=tmp_path, resume=True, quiet=True)
        assert "\n" not in str(refused.value)
    checkpoint.save(path, state, header | {"ledger": entry})
    with pytest.raises(Stopped):
        running.run(experiment, out=tmp_path, resume=True, quiet=True)
