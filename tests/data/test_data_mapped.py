"""Arrays in .npy files: mapped, streamed and resident data are the same; bad files are refused in one line."""

import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.data import load_dataset
from fljax.data.streamed import StreamedData

RNG = np.random.default_rng(0)
PARTS = {
    "x": RNG.integers(0, 256, (12, 4, 4, 1)).astype(np.uint8),
    "y": RNG.integers(0, 3, 12),
    "test_x": RNG.integers(0, 256, (5, 4, 4, 1)).astype(np.uint8),
    "test_y": np.array([0, 1, 2, 1, 0]),
    "client_id": np.repeat([7, 3, 5], [5, 4, 3]),
}


def write(folder, **changed):
    for name, values in (PARTS | changed).items():
        if values is not None:
            np.save(folder / f"{name}.npy", values)
    return folder


def test_streamed_data_are_the_resident_ones_and_stay_in_the_file(tmp_path):
    folder = write(tmp_path)
    whole, streamed = (load_dataset("npy", data_dir=folder, streamed=s) for s in (False, True))
    assert isinstance(streamed.train, StreamedData) and isinstance(streamed.train.examples, np.memmap)
    assert whole.num_classes == streamed.num_classes == 3
    window = streamed.train.window(0, np.array([[0, 1, 2]])).at(jnp.int32(0))
    for client in range(3):
        every = jnp.arange(5)
        a = whole.train.take(0, jnp.int32(client)).batch(every, every < 9)
        b = window.take(0, jnp.int32(client)).batch(every, every < 9)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.y)
    first = PARTS["x"][PARTS["client_id"] == 3] / np.float32(255)  # clients in the order of their ids
    np.testing.assert_array_equal(whole.train.x[:4], first)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"y": None}, "y.npy: cannot be read"),
        ({"y": RNG.integers(0, 3, 11)}, "expected one entry for each of 12 examples"),
        ({"y": np.full(12, -1)}, "expected whole labels"),
        ({"test_x": np.zeros((5, 4, 4, 1), np.float32)}, r"expected uint8 \(4, 4, 1\) as in x.npy"),
        ({"x": np.array([None] * 12)}, "expected an array of numbers"),
        ({"client_id": np.zeros((3, 2), int)}, "client_id.npy: expected one entry"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, changed, words):
    with pytest.raises(FljaxError, match=words) as error:
        load_dataset("npy", data_dir=write(tmp_path, **changed))
    assert "\n" not in str(error.value)


def test_a_folder_is_needed(tmp_path):
    with pytest.raises(FljaxError, match="to be a folder with"):
        load_dataset("npy", data_dir=tmp_path / "absent")
