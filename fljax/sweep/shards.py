"""Shards: what one batch of trials left, as a folder that is there whole or not at all, and is never changed.

    shards/<id>/trials.parquet    one row per trial: the swept fields under their dotted names, then the final metrics
    shards/<id>/curves.parquet    one row per (trial, evaluated round)
    shards/<id>/shard.json        digests of both; name of the experiment; statements of privacy, settings of the batch,
                                  timing, provenance

A shard is put together under a hidden name in the same folder, flushed, and renamed. The rename fails where a shard of
that id is there already: the same shard cannot be kept twice, however many workers race for it.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fljax.core.check import FljaxError
from fljax.sweep.files import Columns, digest, digest_of, flush, read_json, remove, write_json, write_table, writing

SHARDS = "shards"
STAGING = ".staging"
QUARANTINE = "quarantine"
TABLES = ("trials", "curves")
_INFO = "shard.json"


def write_shard(folder: Path, shard: str, tables: Mapping[str, Columns], info: Mapping[str, Any]) -> bool:
    """Keeps a shard, all of it or nothing.

    Args:
      folder: of the results. shard: its id. tables: ``trials`` and ``curves``. info: plain data that goes with them.
    Returns:
      True, or False where a shard of this id was there already; it stays as it is.

    Raises:
      FljaxError: one line, where it cannot be written (a full disk); nothing of it is left.
    """
    target, staged = folder / SHARDS / shard, folder / STAGING / f"{shard}.{uuid.uuid4().hex[:8]}"
    with writing(folder):
        try:
            staged.mkdir(parents=True)
            target.parent.mkdir(exist_ok=True)
            files = {}
            for name in TABLES:
                path = staged / f"{name}.parquet"
                write_table(path, tables[name])
                files[path.name] = {"rows": len(tables[name]["trial"]), "sha256": digest(path)}
            content = {**info, "shard": shard, "files": files}
            write_json(staged / _INFO, content | {"sha256": digest_of(content)})
            flush(staged)
            if target.exists():
                return False
            os.rename(staged, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or target.exists():  # somebody else was faster
                return False
            raise
        finally:
            remove(staged)
        flush(target.parent)
    return True


def read_info(folder: Path, shard: str, check: bool = True) -> dict[str, Any]:
    """What a shard says of itself.

    Args:
      folder: of the results. shard: its id. check: compare the tables with their digests.

    Raises:
      FljaxError: one line that begins with the file that is damaged or missing.
    """
    path = folder / SHARDS / shard
    info = read_json(path / _INFO)
    if not isinstance(info, dict) or info.pop("sha256", None) != digest_of(info):
        raise FljaxError(f"{path / _INFO}: damaged or changed. The same sweep again does this shard anew.")
    for name, entry in info["files"].items() if check else ():
        file = path / name
        if not file.is_file() or digest(file) != entry["sha256"]:
            state = "damaged or changed" if file.is_file() else "missing"
            raise FljaxError(f"{file}: {state}. The same sweep again does this shard anew.")
    return info


def is_there(folder: Path, shard: str) -> bool:
    """Whether a shard was finished; not whether it is still undamaged."""
    return (folder / SHARDS / shard).is_dir()


def finished_shards(folder: Path) -> set[str]:
    """Ids of all shards that were finished; one look at the folder, however many there are."""
    place = folder / SHARDS
    return set(os.listdir(place)) if place.is_dir() else set()


def quarantine(folder: Path, shard: str) -> Path:
    """Moves a damaged shard out of the way, to be looked at; returns where it is now."""
    place = folder / QUARANTINE / f"{shard}-{uuid.uuid4().hex[:8]}"
    with writing(folder):
        place.parent.mkdir(exist_ok=True)
        os.rename(folder / SHARDS / shard, place)
        flush(folder / SHARDS)
    return place


def table_path(folder: Path, shard: str, table: str) -> Path:
    """Where a table of a shard lies."""
    return folder / SHARDS / shard / f"{table}.parquet"
