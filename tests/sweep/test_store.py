"""The result store: round trip, refusals, what a kill leaves behind, damage, SQL."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import sys

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.sweep import store
from fljax.sweep.files import as_table
from fljax.sweep.shards import read_info, write_shard
from fljax.sweep.store import check_target, open_results, write_results


def manifest(name="demo", **extra):
    axes = ["privacy.epsilon", "dropout.source"]
    return {"name": name, "kind": "sweep", "title": "Demo", "axes": axes, "privacy": [], **extra}


def trials(shift=0.0):
    return {
        "trial": np.arange(4),
        "privacy.epsilon": [2.0, math.inf, 2.0, math.inf],
        "dropout.source": ["fisher", "fisher", "rändom", "rändom"],
        "run.seed": np.arange(4, dtype=np.int32),
        "test_accuracy": np.array([0.5, 0.75, 0.25, math.nan], np.float32) + np.float32(shift),
        "epsilon": [1.9, None, None, None],
        "privacy_status": ["valid", "none", None, "none"],
        "uplink_bytes": np.full(4, 3_000_000_000),
    }


def curves():
    return {"trial": np.repeat(np.arange(4), 2), "round": np.tile([5, 10], 4), "test_accuracy": np.linspace(0, 1, 8)}


def write(folder, name="demo", shift=0.0, **extra):
    write_results(folder, manifest=manifest(name, **extra), trials=trials(shift), curves=curves())


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip(tmp_path):
    write(tmp_path / "it's a folder")
    results = open_results(tmp_path / "it's a folder")
    assert results.name == "demo"
    assert results.axes == ["privacy.epsilon", "dropout.source"]
    assert results.metrics == ["test_accuracy", "uplink_bytes"]
    table = results.trials
    assert list(table) == list(trials())
    np.testing.assert_array_equal(table["privacy.epsilon"], [2, math.inf, 2, math.inf])
    np.testing.assert_array_equal(table["dropout.source"], ["fisher", "fisher", "rändom", "rändom"])
    np.testing.assert_array_equal(table["test_accuracy"], trials()["test_accuracy"])
    np.testing.assert_array_equal(table["epsilon"], [1.9, math.nan, math.nan, math.nan])
    np.testing.assert_array_equal(table["privacy_status"], ["valid", "none", "", "none"])
    assert table["test_accuracy"].dtype == np.float32
    assert table["run.seed"].dtype == np.int32
    assert table["uplink_bytes"][0] == 3_000_000_000
    for name, values in curves().items():
        np.testing.assert_array_equal(results.curves[name], values)


def test_manifest_is_strict_json_and_restores_what_json_cannot_say(tmp_path):
    data = {"epsilon": [2.0, math.inf, -math.inf], "bad": math.nan, "np": np.float32(0.5), "array": np.arange(2)}
    write(tmp_path, experiment=data, provenance={"path": tmp_path, "flag": np.bool_(True), "none": None})

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "manifest.json").read_text(), parse_constant=refuse)
    read = open_results(tmp_path).manifest
    assert read["format"] == store.FORMAT
    assert read["experiment"]["epsilon"] == [2.0, math.inf, -math.inf]
    assert math.isnan(read["experiment"]["bad"])
    assert read["experiment"]["array"] == [0, 1]
    assert read["provenance"] == {"path": str(tmp_path), "flag": True, "none": None}


def test_manifest_refuses_objects(tmp_path):
    with pytest.raises(FljaxError, match="plain data, found object"):
        write(tmp_path / "x", extra=object())
    assert not list((tmp_path / "x").glob("[!.]*"))


def test_no_evaluated_round_is_fine(tmp_path):
    empty = {"trial": np.zeros(0, int), "round": np.zeros(0, int), "test_accuracy": np.zeros(0)}
    write_results(tmp_path, manifest=manifest(), trials=trials(), curves=empty)
    assert len(open_results(tmp_path).curves["round"]) == 0


def test_same_experiment_is_replaced_and_leaves_no_temporary_files(tmp_path):
    write(tmp_path)
    write(tmp_path, shift=1.0)
    assert open_results(tmp_path).trials["test_accuracy"][0] == 1.5
    assert visible(tmp_path) == ["manifest.json", "shards"]
    assert len(list((tmp_path / "shards").iterdir())) == len(list(tmp_path.glob(".plan-*"))) == 1


def test_refuses_another_experiment(tmp_path):
    write(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(FljaxError) as error:
        write(tmp_path, "other")
    assert "'demo'" in one_line(error) and "'other'" in str(error.value)
    assert before == snapshot(tmp_path)


def test_refuses_a_foreign_folder_and_a_file(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FljaxError) as error:
        write(tmp_path)
    assert "thesis.tex" in one_line(error)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FljaxError) as error:
        check_target(tmp_path / "thesis.tex", "demo")
    assert "found a file" in one_line(error)


def test_hidden_entries_do_not_matter(tmp_path):
    (tmp_path / ".shards").mkdir()
    check_target(tmp_path, "demo")
    check_target(tmp_path / "absent", "demo")
    write(tmp_path)
    assert (tmp_path / ".shards").is_dir()


class Killed(BaseException):
    """Not an Exception: nothing in the code may catch it."""


def kill_at(monkeypatch, stop):
    """Stops the writer at its n-th rename, of a file or of a folder, as a kill would."""
    calls = iter(range(100))
    real, real_replace = os.rename, os.replace

    def count(rename):
        def counted(source, target, **options):
            if next(calls) == stop:
                raise Killed
            rename(source, target, **options)

        return counted

    monkeypatch.setattr(os, "rename", count(real))
    monkeypatch.setattr(os, "replace", count(real_replace))


RENAMES = 4
"""Of a write: what the shard says into its stage, the shard into its place, the plan, the manifest."""


@pytest.mark.parametrize("call", range(RENAMES))
def test_killed_replacement_leaves_the_old_results_readable(tmp_path, monkeypatch, call):
    write(tmp_path)
    for shift in (1.0, 2.0):  # a second kill must not lose them either
        with monkeypatch.context() as patch:
            kill_at(patch, call)
            with pytest.raises(Killed):
                write(tmp_path, shift=shift, title="new")
        old = open_results(tmp_path)
        assert old.manifest["title"] == "Demo"
        assert old.trials["test_accuracy"][0] == 0.5
        assert len(old.curves["round"]) == 8
    write(tmp_path, shift=3.0, title="newest")
    assert open_results(tmp_path).trials["test_accuracy"][0] == 3.5
    assert visible(tmp_path) == ["manifest.json", "shards"]
    assert len(list((tmp_path / "shards").iterdir())) == len(list(tmp_path.glob(".plan-*"))) == 1


def test_a_write_has_as_many_renames_as_the_kills_above_know(tmp_path, monkeypatch):
    kill_at(monkeypatch, RENAMES)
    write(tmp_path)


@pytest.mark.parametrize("call", range(RENAMES))
def test_killed_first_write_can_be_repeated(tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch:
        kill_at(patch, call)
        with pytest.raises(Killed):
            write(tmp_path)
    with pytest.raises(FljaxError):
        open_results(tmp_path)
    if call > 1:  # the shard is in place: it is known whose
        with pytest.raises(FljaxError, match="'demo'"):
            write(tmp_path, "other")
    write(tmp_path)
    assert len(open_results(tmp_path).trials["trial"]) == 4


@pytest.mark.parametrize("name", ["trials.parquet", "curves.parquet", "shard.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damaged_file_of_a_shard_is_one_line(tmp_path, name, damage):
    write(tmp_path)
    (path,) = tmp_path.glob(f"shards/*/{name}")
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[10] ^= 1
        path.write_bytes(bytes(data[:50] if damage == "cut" else data))
    with pytest.raises(FljaxError) as error:
        open_results(tmp_path)
    assert name in one_line(error)


def test_results_of_a_full_disk_are_one_line_and_leave_the_old_ones(tmp_path, monkeypatch):
    write(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FljaxError) as error:
            write(tmp_path, shift=1.0)
    assert "No space left on device" in one_line(error) and "goes on" in str(error.value)
    assert open_results(tmp_path).trials["test_accuracy"][0] == 0.5
    assert len(list((tmp_path / "shards").iterdir())) == 1
    assert not list(tmp_path.glob(".staging/*")) and not list(tmp_path.glob(".*.tmp"))


def test_a_shard_is_kept_once(tmp_path):
    tables = {"trials": as_table("trials", trials(), ("trial",)), "curves": as_table("curves", curves(), ("trial",))}
    assert write_shard(tmp_path, "one", tables, {"name": "first"})
    assert not write_shard(tmp_path, "one", tables, {"name": "second"})
    assert read_info(tmp_path, "one")["name"] == "first"
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["one"]
    assert not list((tmp_path / ".staging").iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"name": 3, "kind": "run"}',
        '{"name": "a", "kind": "walk"}',
        '{"name": "a", "kind": "run"}',
    ],
)
def test_damaged_manifest_is_one_line(tmp_path, text):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(FljaxError) as error:
        open_results(tmp_path)
    assert "manifest.json" in one_line(error)
    with pytest.raises(FljaxError):
        write(tmp_path)  # what cannot be read is not overwritten


def test_newer_format_is_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    for refused in (lambda: open_results(tmp_path), lambda: write(tmp_path)):
        with pytest.raises(FljaxError) as error:
            refused()
        assert "format=3" in one_line(error) and "newer fljax" in str(error.value)


def test_results_of_an_older_format_are_not_read_and_may_be_replaced(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "demo", "kind": "sweep", "format": 1, "files": {}}')
    (tmp_path / "trials.parquet").write_bytes(b"old")
    with pytest.raises(FljaxError, match="Run it again") as error:
        open_results(tmp_path)
    one_line(error)
    write(tmp_path)
    assert visible(tmp_path) == ["manifest.json", "shards"]


def test_missing_folder_is_one_line(tmp_path):
    with pytest.raises(FljaxError) as error:
        open_results(tmp_path / "nowhere")
    assert "nowhere" in one_line(error)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"trial": [0, 0, 1, 2]}, "distinct"),
        ({"trial": [0.0, 1.0, 2.0, 3.0]}, "integers"),
        ({"run.seed": [1, 2]}, "run.seed"),
        ({"x": [{}, [], 1, 2]}, "numbers or text"),
        ({"x": np.zeros((4, 2))}, "one-dimensional"),
    ],
)
def test_bad_columns_are_refused(tmp_path, change, match):
    with pytest.raises(FljaxError, match=match) as error:
        write_results(tmp_path / "x", manifest=manifest(), trials=trials() | change, curves=curves())
    one_line(error)
    assert not (tmp_path / "x").exists()


def test_missing_column_is_refused(tmp_path):
    with pytest.raises(FljaxError, match="'round'"):
        write_results(tmp_path, manifest=manifest(), trials=trials(), curves={"trial": np.arange(4)})


def test_sql(tmp_path):
    write(tmp_path)
    results = open_results(tmp_path)
    query = """
        SELECT "privacy.epsilon" AS eps, max(c.test_accuracy) AS best, count(*) AS n
        FROM trials t JOIN curves c USING (trial) GROUP BY 1 ORDER BY 1
    """
    answer = results.sql(query)
    assert answer["eps"].tolist() == [2.0, math.inf]
    np.testing.assert_allclose(answer["best"], [5 / 7, 1.0])
    assert answer["n"].tolist() == [4, 4]
    for wrong in ("SELEC 1", "SELECT nope FROM trials", "SELECT * FROM 'absent.csv'"):
        with pytest.raises(FljaxError) as error:
            results.sql(wrong)
        one_line(error)


def test_tables_for_pandas_and_arrow_and_one_curve(tmp_path, monkeypatch):
    write(tmp_path)
    results = open_results(tmp_path)
    one = results.curve(2)
    np.testing.assert_array_equal(one["round"], [5, 10])
    np.testing.assert_allclose(one["test_accuracy"], np.linspace(0, 1, 8)[4:6])
    with pytest.raises(FljaxError, match="trial=9"):
        results.curve(9)
    for name, ask in (("pandas", results.to_pandas), ("pyarrow", results.to_arrow)):
        if importlib.util.find_spec(name):
            assert len(ask("SELECT trial, test_accuracy FROM trials")) == 4
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(FljaxError, match=f"pip install {name}") as error:
            ask()
        one_line(error)


def test_groups_sort_numbers_then_inf_then_missing(tmp_path):
    data = trials() | {"privacy.epsilon": [math.inf, None, 4.0, 2.0]}
    write_results(tmp_path, manifest=manifest(), trials=data, curves=curves())
    groups = open_results(tmp_path).groups(["privacy.epsilon"])
    assert list(groups) == [(2.0,), (4.0,), (math.inf,), (None,)]
    assert [rows.tolist() for rows in groups.values()] == [[3], [2], [0], [1]]


def test_notebook_view_is_escaped(tmp_path):
    write(tmp_path, title="<script>alert(1)</script>")
    page = open_results(tmp_path)._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "0.5000" in page and "missing" in page
