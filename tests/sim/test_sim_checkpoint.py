"""Checkpoints: complete to the bit, atomic, and refused in one line where they do not fit."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
import tiny

from fljax.core.check import FljaxError
from fljax.sim import checkpoint
from fljax.sim.engine import Running

HEADER = {"fingerprint": "abc", "name": "small"}


class Stopped(Exception):
    """A run that was killed."""


def a_run() -> Running:
    """Leaves of every type and shape that a state has."""
    state = {"w": jnp.array([[1.5, jnp.nan], [jnp.inf, -0.0]]), "count": jnp.int32(7), "flag": jnp.array([True, False])}
    return Running(3, state, {"loss": np.array([1.0, np.nan, 3.0], np.float32), "contacted": np.arange(3, dtype=int)})


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "run" / "c.npz", a_run(), HEADER)
    return tmp_path / "run" / "c.npz"


def refused(path, template=None, expected=HEADER) -> str:
    """The message with which a checkpoint is refused."""
    with pytest.raises(FljaxError) as error:
        checkpoint.restore(path, template or a_run().state, expected)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_a_round_trip_is_exact_to_the_bit(path):
    found = checkpoint.restore(path, a_run().state, HEADER)
    assert found.done == 3
    assert tiny.same_bits(found.state, a_run().state)
    assert small_run.same_history(found.history, a_run().history)
    assert [x.dtype for x in jax.tree.leaves(found.state)] == [x.dtype for x in jax.tree.leaves(a_run().state)]
    assert checkpoint.read_header(path) == {"format": checkpoint.FORMAT, "done": 3, **HEADER}


def test_nothing_else_is_left_in_the_folder(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, a_run()._replace(done=4), HEADER)
    assert path.read_bytes() == before


def test_the_checkpoint_of_another_experiment_is_refused(path):
    assert "another experiment" in refused(path, expected={"fingerprint": "xyz"})


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "not a readable checkpoint" in refused(path)


def test_a_flipped_bit_in_the_state_is_refused(path):
    whole = bytearray(path.read_bytes())
    place = whole.index(np.float32(1.5).tobytes() + np.float32(np.nan).tobytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    assert "not a readable checkpoint" in refused(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04K\x01.", b"[1, 2]"])
def test_something_else_is_refused(path, content):
    path.write_bytes(content)
    assert "not a readable checkpoint" in refused(path)


def test_arrays_and_archives_that_are_no_checkpoints_are_refused(path):
    np.save(path.with_suffix(".npy"), np.zeros(3))
    assert "not a readable checkpoint" in refused(path.with_suffix(".npy"))
    np.savez(path, x=np.zeros(3))
    assert "not a readable checkpoint" in refused(path)
    np.savez(path, header=np.frombuffer(b"[1]", np.uint8))
    assert "not a readable checkpoint" in refused(path)


def test_a_file_that_would_have_to_be_unpickled_is_refused(path):
    buffer = io.BytesIO()
    header = np.frombuffer(json.dumps({"format": checkpoint.FORMAT, "done": 3, **HEADER}).encode(), np.uint8)
    np.savez(buffer, header=header, **{"state/w": np.array([{"a": 1}], dtype=object)})
    path.write_bytes(buffer.getvalue())
    assert "not a readable checkpoint" in refused(path)


def test_another_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    assert "format 99" in refused(path)


@pytest.mark.parametrize(
    "change",
    [{"more": jnp.zeros(2)}, {"w": jnp.zeros((2, 3))}, {"count": jnp.float32(7)}],
    ids=["missing", "other shape", "other type"],
)
def test_a_leaf_that_does_not_fit_is_refused_by_name(path, change):
    message = refused(path, {**a_run().state, **change})
    assert next(iter(change)) in message


def test_a_missing_file_is_refused(tmp_path):
    assert "not a readable checkpoint" in refused(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "length",
    [pytest.param(3, id="same calls", marks=pytest.mark.slow), pytest.param(5, id="other calls")],  # the harder one
)
def test_a_run_that_is_stopped_and_resumed_is_the_same_run(tmp_path, length):
    """Killed after three of seven rounds; the rest from the file, also with another number of rounds per call."""
    whole, path = small_run.drive_it(seed=1), tmp_path / "c.npz"

    def keep_and_die(running):
        checkpoint.save(path, running, HEADER)
        raise Stopped

    with pytest.raises(Stopped):
        small_run.drive_it(seed=1, after_call=keep_and_die)
    start = checkpoint.restore(path, small_run.begin(seed=2).state, HEADER)
    assert start.done == 3
    rest = small_run.drive_it(length, seed=1, start=start)
    assert tiny.same_bits(rest.state, whole.state)
    assert small_run.same_history(rest.history, whole.history)
