"""Leases: one owner at a time, heirs of the dead and of the silent, and nobody removes what is another's."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from fljax.sweep import lease
from fljax.sweep.lease import CLAIMS, claimed, identity, is_claimed


def leases(folder):
    return sorted(p.name for p in (folder / CLAIMS).iterdir())


def plant(folder, owner, age=0.0, generation=0):
    """A lease of somebody else, touched so many seconds ago."""
    path = folder / CLAIMS / f"s.{generation}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(owner))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_one_owner_at_a_time_and_none_after(tmp_path):
    with claimed(tmp_path, "s") as first:
        assert first and is_claimed(tmp_path, "s")
        with claimed(tmp_path, "s") as second, claimed(tmp_path, "t") as other:
            assert not second and other
        assert leases(tmp_path) == ["s.0"]
    assert leases(tmp_path) == [] and not is_claimed(tmp_path, "s")
    with claimed(tmp_path, "s") as again:
        assert again


def test_a_lease_is_given_up_when_its_work_fails(tmp_path):
    try:
        with claimed(tmp_path, "s"):
            raise RuntimeError
    except RuntimeError:
        assert leases(tmp_path) == []


def test_of_many_racers_one_wins(tmp_path):
    """Forty rounds of eight threads that start together."""
    with ThreadPoolExecutor(8) as pool:
        for i in range(40):
            won = list(pool.map(lambda _, i=i: lease._claim(tmp_path / CLAIMS, f"r{i}", 60.0, "x"), range(8)))
            assert sum(path is not None for path in won) == 1


def test_an_expired_lease_of_another_machine_has_one_heir(tmp_path):
    elsewhere = identity() | {"host": "elsewhere", "place": "another boot"}
    plant(tmp_path, elsewhere, age=10)
    with claimed(tmp_path, "s", lease=20.0) as early:
        assert not early
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda _: lease._claim(tmp_path / CLAIMS, "s", 5.0, "x"), range(8)))
    assert sum(path is not None for path in won) == 1
    assert leases(tmp_path) == ["s.1"]


def test_a_dead_process_of_this_machine_has_an_heir_at_once(tmp_path):
    code = "from fljax.sweep.lease import identity; import json; print(json.dumps(identity()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    plant(tmp_path, json.loads(said))
    with claimed(tmp_path, "s") as heir:
        assert heir
    plant(tmp_path, identity())  # alive: this process
    with claimed(tmp_path, "s") as nobody:
        assert not nobody


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path):
    plant(tmp_path, identity() | {"start": "1"})
    assert not is_claimed(tmp_path, "s")


def test_a_half_written_lease_counts_until_it_expires(tmp_path):
    path = plant(tmp_path, {})
    path.write_text('{"host": ')
    assert is_claimed(tmp_path, "s", lease=60.0)
    os.utime(path, (0, 0))
    assert not is_claimed(tmp_path, "s", lease=60.0)


def test_a_lease_is_kept_alive_while_its_owner_works(tmp_path):
    with claimed(tmp_path, "s", lease=0.4):
        path = tmp_path / CLAIMS / "s.0"
        os.utime(path, (0, 0))
        deadline = time.time() + 10
        while path.stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > 0


def test_who_lost_a_lease_leaves_that_of_the_heir_alone(tmp_path):
    with claimed(tmp_path, "s"):
        path = tmp_path / CLAIMS / "s.0"
        path.write_text("of the heir")
    assert path.read_text() == "of the heir"
