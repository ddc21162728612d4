"""Ctrl-C and SIGTERM: heard while a call runs, obeyed between two calls, and never half way through a checkpoint."""

import signal
import subprocess
import sys
import threading

import pytest
import small_run

from fljax.sim import checkpoint
from fljax.sim.interrupt import Interrupted, stop_requests
from fljax.sim.run import CHECKPOINT, run
from fljax.sim.trackers import Tracker


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_request_waits_for_the_next_check(number, name, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as stopped, stop_requests() as check:
        check("before anything was asked for")
        signal.raise_signal(number)
        going_on = True
        check("after 3 of 7 rounds")
    assert going_on and str(stopped.value) == f"stopped by {name} after 3 of 7 rounds"
    assert stopped.value.signal == number and isinstance(stopped.value, KeyboardInterrupt)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert "again to stop at once" in capsys.readouterr().err


def test_a_second_request_stops_at_once(capsys):
    with pytest.raises(Interrupted, match="at once"), stop_requests(quiet=True):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == ""


NEVER_BACK = """
import ctypes
from fljax.sim.interrupt import stop_requests
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
library.pthread_mutex_lock(mutex)
with stop_requests(several=True):
    print("ready", flush=True)
    library.pthread_mutex_lock(mutex)  # no signal ends it
"""


def test_a_second_request_ends_one_of_several_processes_that_waits_for_another():
    """The main thread is inside of the runtime, where no handler of Python runs."""
    words = [sys.executable, "-c", NEVER_BACK]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)  # the first one waits for the call
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
            told = process.stderr.read()  # behind what the handler said, if the first came before the lock
            assert told.endswith("fljax: stopped by SIGTERM at once.\n")
        finally:
            process.kill()


@pytest.mark.parametrize("several", [False, True])
def test_what_listens_to_signals_is_put_back(several):
    with stop_requests(several=several):
        assert (signal.set_wakeup_fd(-1) == -1) != several
    assert signal.set_wakeup_fd(-1) == -1


def test_outside_of_the_main_thread_nothing_is_caught():
    """Where handlers cannot be set; the work goes on as it would have."""
    seen = []

    def work():
        with stop_requests() as check:
            check("")
            seen.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["done"]


def test_a_run_is_stopped_at_the_end_of_its_call_with_everything_kept(tmp_path):
    """The signal comes while the second call of three rounds is being told to a tracker."""
    rounds, closed = [], []

    def log(t, metrics):
        rounds.append(t)
        if t == 4:
            signal.raise_signal(signal.SIGTERM)

    tracker = Tracker("mine", log, lambda: closed.append(True))
    with pytest.raises(Interrupted) as stopped:
        run(small_run.experiment(), out=tmp_path, quiet=True, track=[tracker])
    assert "SIGTERM after 6 of 7 rounds" in str(stopped.value) and str(tmp_path) in str(stopped.value)
    assert rounds == [1, 2, 3, 4, 5, 6] and closed == [True]
    kept = checkpoint.restore(tmp_path / CHECKPOINT, small_run.begin().state, {})
    whole = small_run.drive_it(when=small_run.schedule())
    assert kept.done == 6
    assert all(values.tobytes() == whole.history[name][:6].tobytes() for name, values in kept.history.items())
