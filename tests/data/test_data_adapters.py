"""Data of other libraries: columns of a dataset, partitions, and the HDF5 files of TensorFlow Federated."""

import importlib
import sys

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.data import from_flwr, from_hf, load_dataset
from fljax.data.registry import missing_files

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 4, 4), np.uint8)
LABELS = RNG.integers(0, 3, 30)
WRITERS = np.array([f"w{k % 4}" for k in range(30)])


class Table:
    """What adapters need of a dataset: the names of its columns, and the columns, whose values come one by one."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name):
        return iter(self.columns[name])


class Partitioner:
    """Three partitions of ten."""

    num_partitions = 3

    def load_partition(self, k):
        rows = slice(10 * k, 10 * k + 10)
        return Table(img=PIXELS[rows], label=LABELS[rows])


class Federated:
    """A partitioner for each split, as FederatedDataset has them."""

    partitioners = {"train": Partitioner()}  # noqa: RUF012

    def load_partition(self, k, split):
        return self.partitioners[split].load_partition(k)

    def load_split(self, split):
        assert split == "test"
        return {"img": PIXELS[:6], "label": LABELS[:6]}


def table(rows=slice(None)):
    return Table(image=PIXELS[rows], label=LABELS[rows].tolist(), writer=WRITERS[rows])


def test_columns_become_pixels_labels_and_clients():
    source = from_hf({"train": table(slice(24)), "test": table(slice(24, 30))}, client_id="writer")
    np.testing.assert_array_equal(source.x[..., 0], PIXELS[:24].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(source.test_x[..., 0], PIXELS[24:].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(source.y, LABELS[:24])
    assert source.y.dtype == np.int32 and source.task == "classification" and source.num_classes == 3
    assert source.client_ids.tolist() == WRITERS[:24].tolist()
    data = load_dataset(source, client_test_fraction=0.25)
    assert data.train.population == 4 and "4 clients by natural" in data.description
    assert data.client_test.population == 4


def test_one_split_without_clients_is_partitioned_and_a_tenth_is_held_out():
    source = from_hf(table(), task="classification")
    assert len(source.x) + len(source.test_x) == 30 and len(source.test_x) == 3
    data = load_dataset(source, clients=5, partition="dirichlet", alpha=0.3)
    assert data.train.population == 5 and "dirichlet(alpha=0.3)" in data.description
    assert load_dataset(source).train.population == 27  # 100 would be more than there are examples


def test_plain_columns_and_regression():
    source = from_hf({"features": RNG.normal(size=(20, 3)), "target": RNG.normal(size=20)})
    assert source.task == "regression" and source.x.shape[1:] == (3,) and source.y.dtype == np.float32


@pytest.mark.parametrize("make", [Partitioner, Federated])
def test_partition_k_is_client_k(make):
    test = "test" if make is Federated else Table(img=PIXELS[:6], label=LABELS[:6])
    source = from_flwr(make(), test=test)
    assert source.client_ids.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    np.testing.assert_array_equal(source.y, LABELS)
    np.testing.assert_array_equal(source.test_y, LABELS[:6])
    assert load_dataset(source).train.population == 3
    assert np.bincount(from_flwr(make()).client_ids).tolist() == [9, 9, 9]  # a tenth of each is the test part


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: from_hf(table(), x="imge"), "Perhaps you meant 'image'"),
        (lambda: from_hf(Table(a=PIXELS, label=LABELS)), "x= to name one of the columns a, label"),
        (lambda: from_hf(table(), client_id="author"), "client_id='author' to be one of"),
        (lambda: from_hf(table(), y="writer"), "found text. Encode it as class numbers"),
        (lambda: from_hf(Table(x=[PIXELS[0], PIXELS[0][:2]], y=[0, 1])), "Resize or pad them first"),
        (lambda: from_hf({"train": 3}), "found int. Choose one of its splits"),
        (lambda: from_flwr([1, 2]), "num_partitions and load_partition, found list"),
        (lambda: from_flwr(Federated(), split="trian"), "Perhaps you meant 'train'"),
    ],
)
def test_what_does_not_fit_is_one_line(make, says):
    with pytest.raises(FljaxError) as error:
        make()
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "module", "extra"), [("hf", "datasets", "hf"), ("tff", "h5py", "hdf5")])
def test_a_missing_package_names_its_extra(monkeypatch, tmp_path, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FljaxError) as error:
        load_dataset(name, data_dir=tmp_path)
    assert f'pip install "fljax[{extra}]"' in str(error.value) and "\n" not in str(error.value)


def test_a_saved_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra hf (240 MB) is not installed")
    whole = datasets.Dataset.from_dict({"image": list(PIXELS), "label": LABELS, "writer": WRITERS})
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "hf"))
    data = load_dataset("hf", data_dir=tmp_path, options={"client_id": "writer"})
    assert data.train.population == 4
    with pytest.raises(FljaxError, match="not a saved dataset"):
        load_dataset("hf", data_dir=tmp_path / "hf" / "train" / "nothing_here")


# ---- HDF5 of TensorFlow Federated ------------------------------------------------------------------------------------


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason="the extra hdf5 is not installed")


def write(h5py, path, clients):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("examples")
        for name, features in clients.items():
            for feature, values in features.items():
                group.create_dataset(f"{name}/{feature}", data=values)
    return path.parent


def emnist(rows):
    """Client k of three has rows k, k + 3, ..."""
    return {
        f"f{k:04d}": {"pixels": (PIXELS[rows][k::3] / 255).astype(np.float32), "label": LABELS[rows][k::3]}
        for k in range(3)
    }


def test_groups_become_natural_clients(h5py, tmp_path):
    write(h5py, tmp_path / "tff/fed_emnist_train.h5", emnist(slice(24)))
    write(h5py, tmp_path / "tff/fed_emnist_test.h5", emnist(slice(24, 30)))
    data = load_dataset("tff", data_dir=tmp_path)
    assert data.train.population == 3 and list(data.train.sizes) == [8, 8, 8] and data.input_shape == (4, 4)
    at = np.asarray(data.train.offsets)
    for k in range(3):
        np.testing.assert_array_equal(data.train.y[at[k] : at[k + 1]], LABELS[:24][k::3])
        np.testing.assert_array_equal(data.client_test.y[2 * k : 2 * k + 2], LABELS[24:][k::3])
    np.testing.assert_allclose(data.train.x[0], PIXELS[0] / 255, rtol=1e-6)
    assert missing_files("tff", tmp_path) == "" and "missing train-images" in missing_files("mnist", tmp_path)


def test_text_becomes_sequences(h5py, tmp_path):
    lines = {"ROLE_A": {"snippets": [b"to be", b"or not"]}, "ROLE_B": {"snippets": [b"x"]}}
    folder = write(h5py, tmp_path / "shakespeare_train.h5", lines)
    data = load_dataset("tff", data_dir=folder, options={"length": 4}, clients=1)
    assert data.task == "next_char" and data.train.population == 1  # one character is nothing to predict
    from fljax.data.text import decode

    kept = decode(np.asarray(data.train.x)) + decode(np.asarray(data.test.x))
    assert set(kept) <= set("to be\nor not")


@pytest.mark.parametrize(
    ("clients", "options", "says"),
    [
        ({"a": {"tokens": [1, 2]}}, {}, "client 'a' has features ['tokens']. Choose one by x=."),
        ({"a": {"pixels": [1.0, 2.0], "label": [1]}}, {}, "2 inputs and 1 labels"),
        ({"a": {"pixels": [[1.0]], "label": [1]}, "b": {"pixels": [[1.0, 2.0]], "label": [1]}}, {}, "of one shape"),
        ({"a": {"pixels": [1.0], "label": [1]}}, {"y": "labl"}, "Perhaps you meant 'label'"),
        ({}, {}, "expected clients with examples"),
    ],
)
def test_files_that_break_the_format_are_one_line(h5py, tmp_path, clients, options, says):
    folder = write(h5py, tmp_path / "x_train.h5", clients)
    with pytest.raises(FljaxError) as error:
        load_dataset("tff", data_dir=folder, options=options)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_one_line(h5py, tmp_path):
    with pytest.raises(FljaxError, match="Expected one file"):
        load_dataset("tff", data_dir=tmp_path)
    (tmp_path / "a_train.h5").write_bytes(b"not hdf5")
    with pytest.raises(FljaxError, match="not a readable HDF5 file"):
        load_dataset("tff", data_dir=tmp_path)
    with h5py.File(tmp_path / "a_train.h5", "w") as file:
        file["other"] = 1
    with pytest.raises(FljaxError, match=r"group 'examples', found \['other'\]"):
        load_dataset("tff", data_dir=tmp_path)


def test_the_extras_name_the_modules_that_are_imported():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras["hdf5"][0].startswith("h5py") and extras["hf"][0].startswith("datasets")
    assert importlib.import_module("fljax.sim.trackers").PACKAGES["tensorboard"][0] in extras["tensorboard"][0]
