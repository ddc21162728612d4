"""Messages: what a stage sends can be written in exactly the bytes that its wire says, and is read back bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uploads import KEY, LEAVES, SHAPES, P, context, everything, program, support, unflat, update

from fljax.compress.pack import Layout, decode, encode, num_bytes
from fljax.compress.quantise import quantise, sign_quantise, top_level
from fljax.compress.sparsify import kept_count, rand_k, top_k
from fljax.core.check import FljaxError
from fljax.core.transform import Wire, chain

SIZES = tuple(int(np.prod(s)) for s in SHAPES.values())
SHARED, OWN = rand_k(), rand_k(shared=False)  # each compiled once
STAGES = {
    "dense": (chain(), 32, "all"),
    "top_k": (top_k(), 32, "listed"),
    "top_k 2 bits": (chain(top_k(), quantise(2, LEAVES)), 2, "listed"),
    "top_k 5 bits": (chain(top_k(), quantise(5, LEAVES)), 5, "listed"),
    "top_k signs": (chain(top_k(), sign_quantise(LEAVES, sparse=True)), 1, "listed"),
    "8 bits": (quantise(8, LEAVES), 8, "all"),
    "16 bits": (quantise(16, LEAVES), 16, "all"),
    "signs": (sign_quantise(LEAVES), 1, "all"),
    "rand_k": (SHARED, 32, "public"),
    "rand_k 3 bits": (chain(rand_k(), quantise(3, LEAVES)), 3, "public"),
    "rand_k own": (OWN, 32, "seed"),
}


def vector(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


def counted(stage, n: int, rate: float) -> int:
    """Bytes of the update as a round counts them."""
    wires = stage.wire(context(jnp.float32(rate)), {"update": Wire(jnp.int32(n), jnp.int32(32), jnp.int32(0))})
    wire = wires["update"]
    return int(-(-(wire.values * wire.bits + wire.extra) // 8))


def scale_of(x: np.ndarray, bits: int) -> np.float32:
    """A leaf's mean magnitude, or its step: the float next to max / s of which all its values are exact multiples."""
    most = np.abs(x).max(initial=np.float32(0))
    if bits == 1 or most == 0:
        return most
    guess = most * np.float32(1 / top_level(bits))
    near = (guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(np.inf)))
    return next(step for step in near if np.array_equal(np.rint(x / step) * step, x))


def write(name, u, rate, mask):
    """(layout, values on the support, positions, message) of one upload."""
    stage, bits, positions = STAGES[name]
    on = vector(mask) == 1
    sizes = tuple(int(x.sum()) for x in np.split(on, np.cumsum(SIZES)[:-1]))
    u = jax.tree.map(jnp.multiply, u, mask)
    sent, *_ = program(stage)(u, rate, mask, KEY, KEY, None)
    values = vector(sent)
    assert not values[~on].any()
    values, ends = values[on], np.cumsum(sizes)[:-1]
    k = len(values) if positions == "all" else int(kept_count(jnp.float32(rate), len(values)))
    layout = Layout(sizes, k, bits, positions)
    scales = np.array([scale_of(x, bits) for x in np.split(values, ends)]) if bits < 32 else None
    known = None
    if positions in ("public", "seed"):  # an upload of ones shows where it is sent
        choose = SHARED if positions == "public" else OWN
        known = vector(program(choose)(unflat(np.ones(P)), rate, mask, KEY, KEY, None)[0])[on] != 0
    return layout, values, known, encode(layout, values, scales, known, seed=2**63 + 12345)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_a_message_has_the_bytes_that_are_counted_and_is_read_back(name, masked):
    mask = support(3) if masked else everything()
    for rate in (0.01, 0.1, 0.4, 1.0) if "k" in name else (1.0,):
        layout, values, known, message = write(name, update(3), rate, mask)
        assert len(message) == num_bytes(layout) == counted(STAGES[name][0], layout.size, rate)
        got = decode(layout, message, known)
        assert got.dtype == np.float32 and got.tobytes() == (values + np.float32(0)).tobytes()
        assert np.any(values), "a message of zeros shows nothing"
        if layout.positions == "seed" and rate < 1:
            start = 4 * len(layout.sizes) if layout.bits < 32 else 0  # the scales come first
            assert int.from_bytes(message[start : start + 8], "big") == 2**63 + 12345


def test_short_and_long_lists_of_positions():
    """136 values: an index takes 8 bits, a bitmap 136; from 17 values on the bitmap is the shorter one."""
    short, long = Layout((P,), 16, 32, "listed"), Layout((P,), 18, 32, "listed")
    assert (short.index_bits, short.bitmap, long.bitmap) == (8, False, True)
    assert num_bytes(short) == 16 * 4 + 16 and num_bytes(long) == 18 * 4 + 17


@pytest.mark.parametrize("bits", [1, 2, 4, 32])
@pytest.mark.parametrize("count", [3, 60])
@pytest.mark.parametrize("filled", [0, 1, 2])
def test_fewer_values_than_places(bits, count, filled):
    """Where less than k values are not zero the message is as long, and zeros are read as zeros."""
    layout, values = Layout(SIZES, count, bits, "listed"), np.zeros(P, np.float32)
    values[[50, 120][:filled]] = [-1.5, 1.5][:filled]
    message = encode(layout, values, np.array([0.0, 1.5, 1.5]))
    assert len(message) == num_bytes(layout)
    np.testing.assert_array_equal(decode(layout, message), values)


def test_a_message_by_hand():
    """Levels -1, 3, 0 of three bits at a step of 0.5, positions 1, 4, 6 of eight in a bitmap."""
    layout = Layout((8,), 3, 3, "public")
    values = np.array([0, -0.5, 0, 0, 1.5, 0, 0, 0], np.float32)
    sent = np.isin(np.arange(8), [1, 4, 6])
    bits = "00111111000000000000000000000000" + "010" + "110" + "011" + "0000000"
    assert encode(layout, values, np.array([0.5]), sent) == bytes(int(bits[i : i + 8], 2) for i in range(0, 48, 8))
    listed = layout._replace(positions="listed", bits=32, count=2)
    bits = "001" + "100" + f"{np.float32(-0.5).view(np.uint32):032b}" + f"{np.float32(1.5).view(np.uint32):032b}" + "00"
    assert encode(listed, values) == bytes(int(bits[i : i + 8], 2) for i in range(0, 72, 8))


def test_what_cannot_be_written_is_refused_in_one_line():
    values = np.ones(P, np.float32)
    refused = [
        lambda: encode(Layout(SIZES, 3, 32, "listed"), values),
        lambda: encode(Layout(SIZES, 3, 32, "public"), values, sent=np.arange(P) < 3),
        lambda: encode(Layout(SIZES, 3, 32, "public"), 0 * values),
        lambda: encode(Layout(SIZES, P, 8), values),
        lambda: encode(Layout(SIZES, P, 8), values, scales=np.ones(2)),
        lambda: num_bytes(Layout(SIZES, 3)),
        lambda: num_bytes(Layout(SIZES, P + 1, 32, "listed")),
        lambda: num_bytes(Layout(SIZES, P, 20)),
        lambda: num_bytes(Layout(SIZES, 3, 32, "hidden")),
        lambda: decode(Layout(SIZES, P), b"short"),
    ]
    for call in refused:
        with pytest.raises(FljaxError, match=r"^Expected [^\n]*$"):
            call()
