import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.cpu import convolution as ops

# Images, height, width, channels in and out, side of the kernel, stride: of a ResNet, a pyramid and heads.
CASES = [
    (2, 13, 18, 5, 7, 3, 1),
    (2, 16, 12, 5, 7, 3, 2),
    (1, 17, 15, 3, 4, 7, 2),
    (3, 8, 9, 4, 6, 1, 1),
    (2, 9, 8, 4, 6, 1, 2),
    (12, 14, 14, 8, 24, 3, 1),
    # Of as many channels that Winograd's algorithm is taken: even and odd sides.
    (2, 12, 16, 32, 40, 3, 1),
    (3, 13, 9, 40, 32, 3, 1),
    # Of as many outputs that its squares are the large ones: 7 rows of squares, 26 with the last one cut off.
    (3, 28, 27, 32, 40, 3, 1),
    (1, 102, 24, 32, 32, 3, 1),
]


def plain(x, kernel, stride, padding, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize("case", CASES)
# Everything in one tile; some images or rows in each, the last one beyond the end of some; a row in each.
@pytest.mark.parametrize("tile_bytes", [2**23, 300_000, 20_000, 1])
def test_products_equal_the_plain_convolution_forward_and_backward(case, tile_bytes, monkeypatch):
    monkeypatch.setattr(ops, "_TILE_BYTES", tile_bytes)
    images, height, width, inputs, outputs, side, stride = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((images, height, width, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((side, side, inputs, outputs)), jnp.float32)
    padding = ((side // 2, side // 2), (side // 2, side // 2))

    def both(convolve):
        y, pull_back = jax.vjp(convolve, x, kernel)
        return y, *pull_back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    expected = both(lambda x, kernel: plain(x, kernel, stride, padding))
    actual = both(lambda x, kernel: ops.matrix_convolution(x, kernel, (stride, stride), padding))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5 * float(jnp.abs(other).max()), rtol=0)


# Groups, channels in and out of each, stride, side of the kernel: some groups go together, all do, each is wide enough
# by itself; each channel is a group.
@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "stride", "side"),
    [(8, 8, 8, 1, 3), (6, 4, 3, 2, 3), (2, 32, 40, 1, 3), (5, 1, 1, 1, 3), (5, 1, 1, 2, 5)],
)
def test_grouped_products_equal_the_plain_convolution_forward_and_backward(groups, inputs, outputs, stride, side):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 9, 12, groups * inputs)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((side, side, inputs, groups * outputs)), jnp.float32)

    def both(convolve):
        y, pull_back = jax.vjp(convolve, x, kernel)
        return y, *pull_back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    options = {"feature_group_count": groups}
    actual = jax.jit(both, static_argnums=0)(
        lambda x, kernel: ops.convolution(x, kernel, (stride, stride), [(1, 1), (1, 1)], **options)
    )
    expected = both(lambda x, kernel: plain(x, kernel, stride, [(1, 1), (1, 1)], groups))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5 * float(jnp.abs(other).max()), rtol=0)


def test_wide_convolutions_of_3_x_3_take_4_or_2_multiplications_for_9():
    def multiplications(channels, side=32):
        x, kernel = jnp.zeros((1, side, side, channels)), jnp.zeros((3, 3, channels, channels))
        program = jax.jit(lambda x, kernel: ops.matrix_convolution(x, kernel, (1, 1), ((1, 1), (1, 1))))
        return program.lower(x, kernel).compile().cost_analysis()["flops"] / (2 * x.size * channels)

    assert multiplications(16) == pytest.approx(9, rel=0.1)
    # And the transforms, which matter less the more channels and pixels there are.
    assert 4 < multiplications(256) < 4.6
    assert 2.25 < multiplications(256, side=48) < 3.4


@pytest.mark.parametrize(
    ("maps", "side"),
    [((1, 200, 336), 4), ((1, 50, 84), 4), ((2, 32, 32), 4), ((1, 32, 32), 2), ((1, 25, 42), 2), ((100, 14, 14), 2)],
)
def test_squares_are_large_where_that_pays(maps, side):
    assert ops._square_side(*maps) == side


def test_an_output_is_cut_into_images_or_into_rows_of_one_image(monkeypatch):
    def count(limit):
        monkeypatch.setattr(ops, "_TILE_BYTES", limit)
        return ops._windows(jnp.zeros((6, 10, 4, 1)), (3, 3), (1, 1), ((1, 1), (1, 1))).number

    image = 10 * 4 * 9 * 4  # Bytes of what the pixels of one image see.
    assert [count(limit) for limit in (6 * image, 3 * image, image, image - 1, image // 10, 1)] == [1, 2, 6, 12, 60, 60]


def test_tiles_of_a_prime_number_of_rows_go_beyond_the_end_and_are_no_smaller_for_it():
    assert [ops._tile_rows(13, limit) for limit in (20, 13, 12, 6, 5, 2, 0)] == [13, 13, 7, 5, 5, 1, 1]
    assert [ops._tile_rows(100, limit) for limit in (99, 49, 30, 9)] == [50, 25, 25, 5]


def test_dilation_is_refused():
    x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
    with pytest.raises(ValueError, match=r"got rhs_dilation \(2, 2\) of a convolution; expected \(1, 1\)"):
        ops.convolution(x, kernel, (1, 1), [(1, 1), (1, 1)], rhs_dilation=(2, 2))
