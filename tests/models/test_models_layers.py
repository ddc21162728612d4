"""The matrix form of the convolution against XLA's, and the pool against its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from fljax.core.check import FljaxError
from fljax.models import convolution
from fljax.models.convolution import MOST, conv_matmul, convolutions_by, tile_of
from fljax.models.layers import flatten, max_pool_2x2

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def close(a, b, rtol=1e-5):
    """Equal up to rounding: relative to the size of the whole array, since sums of many terms may cancel."""
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))


CASES = {
    "valid": {"window_strides": (1, 1), "padding": "VALID"},
    "same_strided": {"window_strides": (2, 1), "padding": "SAME"},
    "explicit": {"window_strides": (1, 2), "padding": ((2, 0), (-1, 1))},
    "dilated": {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_conv_matmul_and_its_gradients_equal_xla(case):
    x, kernel = arrays((2, 7, 6, 3), (3, 2, 3, 4))

    def pulled_back(conv):
        out, back = jax.vjp(lambda x, k: conv(x, k, dimension_numbers=NHWC, **CASES[case]), x, kernel)
        return (out, *back(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))

    ours, theirs = jax.jit(lambda: (pulled_back(conv_matmul), pulled_back(lax.conv_general_dilated)))()
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        close(a, b)


TILES = {  # window, tile, and the error relative to that of patches that its powers allow
    "2x1 of 3": (3, (2, 1), 2),
    "4x1 of 3": (3, (4, 1), 10),
    "2x2 of 3": (3, (2, 2), 2),
    "1x4 of 3": (3, (1, 4), 10),
    "2x1 of 5": (5, (2, 1), 15),
    "4x2 of 2": (2, (4, 2), 10),
}


@pytest.mark.parametrize("case", TILES)
@pytest.mark.parametrize("size", [(9, 7), (12, 10)])  # tiles that reach beyond the image, and tiles that do not
def test_tiles_and_their_gradients_equal_xla_in_double_precision(case, size):
    window, tile, factor = TILES[case]
    with jax.enable_x64(True):
        x, kernel = (a.astype(jnp.float64) for a in arrays((2, *size, 3), (window, window, 3, 4)))

        def pulled_back(conv):
            out, back = jax.vjp(lambda x, k: conv(x, k, (1, 1), "SAME", dimension_numbers=NHWC), x, kernel)
            return (out, *back(jnp.sin(jnp.arange(out.size)).reshape(out.shape)))

        with convolutions_by(tile):
            ours = jax.jit(lambda: pulled_back(conv_matmul))()
        for a, b in zip(ours, jax.jit(lambda: pulled_back(lax.conv_general_dilated))(), strict=True):
            close(a, b, factor * 1e-15)


def products(conv, x, kernel):
    """Matrix products in the program of a convolution."""
    return str(jax.make_jaxpr(lambda x, k: conv(x, k, (1, 1), "SAME"))(x, kernel)).count("dot_general[")


@pytest.mark.parametrize(("tile", "count"), [((1, 1), 1), ((2, 1), 4), ((4, 1), 6), ((2, 2), 16), ((4, 2), 24)])
def test_a_tile_is_as_many_products_as_its_algorithm_needs(tile, count):
    with convolutions_by(tile):
        assert products(conv_matmul, *arrays((1, 8, 8, 2), (3, 3, 2, 3))) == count


def test_convolutions_with_enough_channels_are_computed_by_tiles():
    assert products(conv_matmul, *arrays((1, 8, 8, 16), (3, 3, 16, 16))) == 6
    assert products(conv_matmul, *arrays((1, 8, 8, 15), (3, 3, 15, 16))) == 1


def test_a_tile_leaves_channels_that_are_zero_exactly_zero():
    x, kernel = arrays((2, 8, 8, 4), (3, 3, 4, 6))
    x, kernel = x.at[..., 1].set(0.0), kernel.at[..., 2].set(0.0)

    @jax.jit
    def run(x, kernel):
        out, back = jax.vjp(lambda x, k: conv_matmul(x, k, (1, 1), "SAME"), x, kernel)
        return out, back(out)[1]

    with convolutions_by((4, 1)):
        out, gradient = run(x, kernel)
    assert not out[..., 2].any() and out.any()
    assert not gradient[:, :, 1].any()  # the weights of an input that is zero have no gradient


def test_a_tile_is_not_taken_where_it_cannot_be():
    x, kernel = arrays((1, 9, 9, 2), (3, 3, 2, 3))
    for options in ({"window_strides": (2, 2), "padding": "SAME"}, {**CASES["dilated"]}):
        with convolutions_by((2, 2)):
            forced = conv_matmul(x, kernel, **options)
        np.testing.assert_array_equal(forced, conv_matmul(x, kernel, **options))


@pytest.mark.parametrize(
    ("rows", "window", "channels", "tile"),
    [
        (26, 3, (32, 64), (4, 1)),
        (6, 3, (16, 16), (4, 1)),  # 4 outputs
        (7, 3, (16, 16), (2, 1)),  # 5 outputs: 12 products either way, and fewer digits lost with 2
        (3, 3, (16, 16), (1, 1)),  # one output
        (14, 5, (32, 64), (2, 1)),
        (26, 3, (1, 32), (1, 1)),  # few channels
        (26, 7, (32, 32), (1, 1)),  # no algorithm
        (26, 1, (32, 32), (1, 1)),
    ],
)
def test_the_tile_needs_the_fewest_products(rows, window, channels, tile):
    x, kernel = jnp.zeros((1, rows, 30, channels[0])), jnp.zeros((window, window, *channels))
    assert tile_of(x, kernel, (1, 1), (1, 1)) == tile
    assert tile_of(x, kernel, (2, 2), (1, 1)) == tile_of(x, kernel, (1, 1), (2, 1)) == (1, 1)
    assert tile_of(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), (1, 1), (1, 1)) == (1, 1)


def test_conv_matmul_under_vmap_over_weights_equals_a_loop_and_holds_no_convolution():
    x, kernels = arrays((3, 2, 5, 5, 2), (3, 3, 3, 2, 4))

    def gradient(conv):
        return jax.grad(lambda k, x: jnp.sum(conv(x, k, (1, 1), "VALID", dimension_numbers=NHWC) ** 2), (0, 1))

    vmapped = jax.jit(jax.vmap(gradient(conv_matmul)))
    loop = jax.jit(lambda kernels, x: lax.map(lambda client: gradient(lax.conv_general_dilated)(*client), (kernels, x)))
    for ours, theirs in zip(vmapped(kernels, x), loop(kernels, x), strict=True):
        close(ours, theirs)
    program = str(jax.make_jaxpr(vmapped)(kernels, x))
    assert "conv_general_dilated" not in program and "scatter" not in program


LARGE = {  # images, kernel, stride: more than 24 MiB of patches or tiles
    "few channels": ((96, 48, 48, 6), (3, 3, 6, 6), 1),
    "strided": ((96, 64, 64, 6), (5, 5, 6, 6), 2),
    "tiles": ((48, 48, 48, 16), (3, 3, 16, 16), 1),
}


def bytes_of_gradient(shape, window, stride):
    """Temporary memory of a convolution with its gradients, relative to its inputs."""

    def loss(kernel, x):
        return jnp.square(conv_matmul(x, kernel, (stride, stride), "SAME")).sum()

    kernel, x = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (window, shape))
    program = jax.jit(jax.grad(loss, (0, 1))).lower(kernel, x).compile()
    return program.memory_analysis().temp_size_in_bytes / (4 * x.size)


@pytest.mark.parametrize("case", ["few channels", "strided", pytest.param("tiles", marks=pytest.mark.slow)])
def test_the_memory_of_patches_and_tiles_is_bounded(case, monkeypatch):
    bounded = bytes_of_gradient(*LARGE[case])
    monkeypatch.setitem(MOST, "cpu", (2**60, 2**60))
    assert bounded < 5.5 and bytes_of_gradient(*LARGE[case]) > 2 * bounded


@pytest.mark.parametrize("case", ["same_strided", "tiles"])
def test_blocks_of_images_and_all_derivatives_equal_xla(case, monkeypatch):
    """Blocks of two images: four and a rest of one; and a batch of three clients."""
    options = CASES.get(case, {"window_strides": (1, 1), "padding": "SAME"})
    x, kernel, dx, dk = arrays((3, 9, 7, 6, 3), (3, 3, 3, 3, 2), (3, 9, 7, 6, 3), (3, 3, 3, 3, 2))

    def outcome(conv):
        def one(x, kernel, dx, dk):
            function = partial(conv, dimension_numbers=NHWC, **options)
            out, back = jax.vjp(function, x, kernel)
            forward = jax.jvp(function, (x, kernel), (dx, dk))[1]
            return out, forward, *back(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

        return one

    monkeypatch.setattr(convolution, "_sizes", lambda *_: (9, 0))  # a byte an image
    monkeypatch.setitem(MOST, "cpu", (0, 2))
    with convolutions_by((2, 1) if case == "tiles" else (1, 1)):
        ours = outcome(conv_matmul)
        assert str(jax.make_jaxpr(ours)(x[0], kernel[0], dx[0], dk[0])).count("scan[") >= 2
        found = jax.jit(jax.vmap(ours))(x, kernel, dx, dk)
    clients = (x, kernel, dx, dk)
    expected = jax.jit(lambda *c: lax.map(lambda c: outcome(lax.conv_general_dilated)(*c), c))(*clients)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_gradients_in_half_precision_are_added_up_in_single_precision(monkeypatch):
    """512 blocks of one image: a sum of ones in bfloat16 would stay at 256."""
    monkeypatch.setitem(MOST, "cpu", (0, 1))
    x, kernel = jnp.ones((512, 2, 2, 1), jnp.bfloat16), jnp.ones((2, 2, 1, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda k: conv_matmul(x, k, (1, 1), "VALID").astype(jnp.float32).sum()))(kernel)
    assert gradient.dtype == jnp.bfloat16 and (gradient == 512).all()


def program_of(images, size, window, stride=1):
    x, kernel = jnp.zeros((images, size, size, window[-2])), jnp.zeros(window)
    return str(jax.make_jaxpr(lambda x, k: conv_matmul(x, k, (stride, stride), "SAME"))(x, kernel))


def test_only_large_batches_are_computed_in_blocks():
    """Ten images of any layer here are not, by patches either; nor is what lays out less than its outputs."""
    for size, window, stride in ((32, (3, 3, 64, 64), 1), (14, (5, 5, 32, 64), 1), (32, (3, 3, 64, 128), 2)):
        with convolutions_by((1, 1)):
            assert "scan" not in program_of(10, size, window, stride)
        assert "scan" not in program_of(10, size, window, stride)
        assert "scan" in program_of(100, size, window, stride)
    assert "scan" not in program_of(2000, 28, (3, 3, 1, 32))
    assert "scan" not in program_of(2000, 28, (1, 1, 16, 16))
    assert "scan" not in program_of(1, 500, (3, 3, 16, 16))


def test_accelerators_keep_no_patches(monkeypatch):
    x, kernel = arrays((4, 9, 9, 3), (3, 3, 3, 4))

    def most():
        """Values of the largest array that the backward pass asks for."""
        kept = jax.eval_shape(lambda *a: jax.vjp(lambda x, k: conv_matmul(x, k, (1, 1), "SAME"), *a)[1], x, kernel)
        return max(leaf.size for leaf in jax.tree.leaves(kept))

    assert most() == 9 * x.size
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert most() == 4 * 11 * 11 * 3  # the padded inputs


def test_conv_matmul_in_one_dimension():
    x, kernel = arrays((2, 9, 3), (3, 3, 4))
    theirs = lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    close(conv_matmul(x, kernel, (1,), "SAME"), theirs)


def test_conv_matmul_has_a_forward_derivative():
    x, kernel, tangent = arrays((1, 4, 4, 2), (3, 3, 2, 3), (3, 3, 2, 3))
    _, ours = jax.jvp(lambda k: conv_matmul(x, k, (1, 1), "VALID"), (kernel,), (tangent,))
    close(ours, conv_matmul(x, tangent, (1, 1), "VALID"))


def test_conv_matmul_keeps_the_precision_it_is_asked_for():
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((1, 4, 4, 2), (1, 1, 2, 3)))
    assert conv_matmul(x, kernel, (1, 1), "VALID").dtype == jnp.bfloat16
    assert conv_matmul(x, kernel, (1, 1), "VALID", preferred_element_type=jnp.float32).dtype == jnp.float32


def test_flax_layers_take_conv_matmul():
    (x,) = arrays((2, 6, 6, 3))
    options = {"strides": 2, "padding": "SAME"}
    ours = nnx.Conv(3, 4, (3, 3), conv_general_dilated=conv_matmul, rngs=nnx.Rngs(0), **options)
    theirs = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0), **options)
    close(ours(x), theirs(x))
    variables = linen.Conv(4, (3, 3), **options).init(jax.random.key(0), x)
    close(
        linen.Conv(4, (3, 3), conv_general_dilated=conv_matmul, **options).apply(variables, x),
        linen.Conv(4, (3, 3), **options).apply(variables, x),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_group_count": 2}, "feature_group_count=2"),
        ({"batch_group_count": 2}, "batch_group_count=2"),
        ({"lhs_dilation": (2, 2)}, r"input_dilation=\(2, 2\)"),
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "channels last"),
        ({"out_sharding": "model"}, "out_sharding='model'"),
    ],
)
def test_conv_matmul_refuses_what_it_cannot_do(options, message):
    x, kernel = arrays((2, 4, 4, 4), (3, 3, 4, 4))
    with pytest.raises(FljaxError, match=message):
        conv_matmul(x, kernel, (1, 1), "VALID", **options)


def test_conv_matmul_refuses_a_window_larger_than_the_input():
    x, kernel = arrays((2, 4, 4, 1), (5, 5, 1, 4))
    with pytest.raises(FljaxError, match=r"window \(5, 5\) to fit into the padded input \(4, 4\)"):
        conv_matmul(x, kernel, (1, 1), "VALID")


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 7, 3)])
def test_max_pool_equals_linen_valid_with_its_gradient(shape):
    (x,) = arrays(shape)
    theirs, back = jax.vjp(lambda x: linen.max_pool(x, (2, 2), (2, 2), "VALID"), x)
    ours, our_back = jax.vjp(max_pool_2x2, x)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(our_back(ours)[0], back(theirs)[0])


def test_max_pool_splits_the_gradient_of_ties_without_losing_any():
    assert float(jax.grad(lambda x: max_pool_2x2(x).sum())(jnp.ones((1, 2, 2, 1))).sum()) == pytest.approx(1.0)


def test_flatten_has_the_channel_fastest():
    x = jnp.arange(12).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(flatten(x)[0, :3], x[0, 0, 0])
