"""load_dataset: the steps from files to clients, and the errors of its arguments."""

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.data import DATASETS, PARTITIONS, load_dataset


@pytest.fixture
def own(tmp_path):
    """12 natural clients of 10 .. 21 examples; x[:, 0] tells the client and x[:, 1] the example."""
    sizes = np.arange(10, 22)
    owner = np.repeat(np.arange(12), sizes)
    x = np.stack([owner, np.arange(len(owner))], axis=1).astype(np.float32)
    test_owner = np.repeat(np.arange(12), 2)
    test_x = np.stack([test_owner, -np.arange(1, 25)], axis=1).astype(np.float32)
    path = tmp_path / "own.npz"
    np.savez(
        path,
        x=x,
        y=owner % 4,
        client_id=owner * 10,
        test_x=test_x,
        test_y=test_owner % 4,
        test_client_id=test_owner * 10,
    )
    return path


def rows(data, column=1):
    """The examples of each client as sets of numbers."""
    x, at = np.asarray(data.x)[:, column], np.asarray(data.offsets)
    return [set(x[at[k] : at[k + 1]].astype(int).tolist()) for k in range(data.population)]


def test_digits_default_is_143_clients_of_10():
    data = load_dataset("digits")
    assert data.train.population == 143 and set(data.train.sizes) == {10} and data.input_shape == (64,)
    assert data.test.x.shape == (367, 64) and data.client_test is None and data.unseen is None
    assert data.task == "classification" and data.num_classes == 10 and "143 clients by iid" in data.description


def test_same_arguments_same_data():
    a, b, c = (load_dataset("digits", partition="dirichlet", seed=s) for s in (0, 0, 1))
    assert np.array_equal(a.train.x, b.train.x) and np.array_equal(a.train.offsets, b.train.offsets)
    assert not np.array_equal(a.train.x, c.train.x)


@pytest.mark.parametrize("partition", PARTITIONS[:-1])
def test_every_partition_deals_out_all_digits(partition):
    data = load_dataset("digits", partition=partition, clients=50, shift=0.0, alpha=0.1)
    whole = load_dataset("digits", clients=1)
    assert data.train.population == 50 and data.train.min_size >= 1 and partition in data.description
    assert np.array_equal(np.sort(data.train.x.sum(axis=1)), np.sort(whole.train.x.sum(axis=1)))
    assert data.summary().histogram.sum(axis=0).tolist() == whole.summary().histogram.sum(axis=0).tolist()


def test_feature_shift_changes_training_and_not_the_test_set():
    plain, shifted = load_dataset("digits"), load_dataset("digits", partition="feature_shift", shift=1.0)
    assert np.array_equal(plain.test.x, shifted.test.x) and np.array_equal(plain.train.y, shifted.train.y)
    assert np.abs(np.asarray(plain.train.x - shifted.train.x)).mean() > 0.5


def test_natural_clients_bring_their_own_tests(own):
    data = load_dataset("npz", data_dir=own)
    assert data.train.sizes.tolist() == list(range(10, 22)) and data.client_test.sizes.tolist() == [2] * 12
    assert rows(data.client_test, 0) == rows(data.train, 0) == [{k} for k in range(12)]


def test_a_choice_of_natural_clients(own):
    data = load_dataset("npz", data_dir=own, clients=5, seed=3)
    chosen = rows(data.train, 0)
    assert data.train.population == 5 and rows(data.client_test, 0) == chosen
    assert [len(c) for c in chosen] == [1] * 5 and chosen == sorted(chosen, key=min)
    assert len(data.test.x) == 24  # the publisher's test set stays whole
    assert rows(load_dataset("npz", data_dir=own, clients=5, seed=4).train, 0) != chosen


def test_unseen_clients_never_train(own):
    data = load_dataset("npz", data_dir=own, unseen_clients=4, client_test_fraction=0.3)
    train, unseen = rows(data.train, 0), rows(data.unseen, 0)
    assert len(train) == 8 and len(unseen) == 4
    assert sorted(k for c in train + unseen for k in c) == list(range(12))
    assert data.unseen.sizes.tolist() == [10 + min(c) for c in unseen]  # whole, nothing held out
    again = load_dataset("npz", data_dir=own, unseen_clients=4)
    assert rows(again.unseen) == rows(data.unseen)  # holding out does not change who trains
    assert rows(again.client_test, 0) == train


def test_client_test_fraction_holds_out_own_examples(own):
    whole = load_dataset("npz", data_dir=own)
    data = load_dataset("npz", data_dir=own, client_test_fraction=0.2)
    for kept, held, all_of_them in zip(rows(data.train), rows(data.client_test), rows(whole.train), strict=True):
        assert kept | held == all_of_them and not kept & held and len(held) == round(0.2 * len(all_of_them))
    tiny = load_dataset("digits", clients=1430, client_test_fraction=0.5)
    assert set(tiny.train.sizes) == {1} and tiny.client_test.max_size == 0 and tiny.client_test.population == 1430


def test_examples_per_client_is_a_cap(own):
    data = load_dataset("npz", data_dir=own, examples_per_client=12)
    assert data.train.sizes.tolist() == [10, 11] + [12] * 10
    data = load_dataset("npz", data_dir=own, examples_per_client=12, client_test_fraction=0.5)
    assert (data.train.sizes + data.client_test.sizes).tolist() == [10, 11] + [12] * 10


def test_other_partitions_of_data_with_natural_clients(own):
    data = load_dataset("npz", data_dir=own, partition="iid")
    assert data.train.population == 12 and data.client_test is None
    assert max(len(c) for c in rows(data.train, 0)) > 1  # mixed


def test_the_repair_is_stated():
    data = load_dataset("digits", partition="dirichlet", clients=500, alpha=0.1)
    assert data.train.min_size == 1 and "examples moved so that no client is empty" in data.description
    empty = load_dataset("digits", partition="dirichlet", clients=500, alpha=0.1, allow_empty=True)
    assert empty.train.min_size == 0 and "moved" not in empty.description


def test_options_reach_the_loader():
    data = load_dataset("synthetic", options={"clients": 4, "iid": True})
    assert data.train.population == 4 and data.client_test.population == 4 and "iid" in data.description


def test_registry_says_what_needs_files():
    assert {name for name, info in DATASETS.items() if not info.needs_files} == {"digits", "synthetic"}
    assert all(info.description and "\n" not in info.description for info in DATASETS.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "digit"}, ["name='digit'", "'digits'"]),
        ({"partition": "dirichlett"}, ["partition='dirichlett'", "'dirichlet'"]),
        ({"clients": 1431}, ["clients=1431", "1430"]),
        ({"clients": 0}, ["clients=0"]),
        ({"clients": 1.5}, ["clients=1.5", "whole"]),
        ({"partition": "natural"}, ["digits", "natural", "iid"]),
        ({"name": "synthetic", "clients": 31}, ["clients=31", "30"]),
        ({"unseen_clients": 143}, ["unseen_clients=143", "143 clients"]),
        ({"unseen_clients": -1}, ["unseen_clients=-1"]),
        ({"client_test_fraction": 1.0}, ["client_test_fraction=1.0"]),
        ({"examples_per_client": 0}, ["examples_per_client=0"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"options": {"x": 1}}, ["option='x'", "image"]),
        ({"name": "mnist", "options": {"x": 1}}, ["mnist", "'x'"]),
        ({"name": "synthetic", "options": {"client": 1}}, ["option='client'", "'clients'"]),
        ({"partition": "dirichlet", "alpha": -1.0}, ["alpha=-1.0"]),
    ],
)
def test_errors_are_one_line(arguments, words):
    with pytest.raises(FljaxError) as error:
        load_dataset(**({"name": "digits"} | arguments))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
