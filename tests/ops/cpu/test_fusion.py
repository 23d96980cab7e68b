"""What keeps the compiler from keeping too much: same values, same gradients, and less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from maskx_jax.ops.cpu.convolution import matrix_convolution
from maskx_jax.ops.cpu.fusion import computed_once, late_zeros, relu, unknown_zero

VALUES = jnp.array([[jnp.nan, -jnp.inf, -1.5], [-0.0, 2.0, jnp.inf]], jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (6, 1), (1, 2, 3)])
def test_what_is_computed_once_has_the_same_values(dtype, shape):
    x = VALUES.reshape(shape).astype(dtype)
    y = jax.jit(computed_once)(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(jnp.float32), x.astype(jnp.float32))


@pytest.mark.parametrize("first", [3.0, -3.0, jnp.nan, -jnp.inf])
def test_zeros_are_zero_whatever_they_wait_for(first):
    assert jax.jit(unknown_zero)(jnp.full((2, 3), first)) == 0
    zeros = jax.jit(lambda x: late_zeros(x, (4, 5), jnp.bfloat16))(jnp.full(2, first))
    assert zeros.shape == (4, 5) and zeros.dtype == jnp.bfloat16 and (zeros == 0).all()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nn.relu, [0, 0, 0, 4, 5, 6, 7]),
        (relu, [0, 0, 0, 4, 5, 6, 7]),
        (lambda x: relu(x, 6.0), [0, 0, 0, 4, 5, 0, 0]),
    ],
)
def test_the_gradient_of_relu_is_that_of_flax(function, expected):
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 7.0])
    scale = jnp.arange(1.0, 8.0)
    values, pull_back = jax.vjp(jax.jit(function), x)
    np.testing.assert_array_equal(values, np.clip(x, 0, 7 if expected[-1] else 6))
    np.testing.assert_array_equal(pull_back(scale)[0], expected)


def temporaries(activation, dtype) -> int:
    """Return the bytes that the gradient of four bottleneck blocks needs."""
    narrow, wide = 32, 128
    keys = iter(jax.random.split(jax.random.key(0), 12))
    sizes = ((1, wide, narrow), (3, narrow, narrow), (1, narrow, wide))
    kernels = [[jax.random.normal(next(keys), (k, k, i, o), dtype) for k, i, o in sizes] for _ in range(4)]

    def convolve(x, kernel):
        pad = kernel.shape[0] // 2
        return 0.5 * matrix_convolution(x, kernel, (1, 1), ((pad, pad), (pad, pad)))

    def loss(kernels, x):
        for first, second, third in kernels:
            y = activation(convolve(x, first))
            x = activation(x + convolve(activation(convolve(y, second)), third))
        return (x * x).sum()

    compiled = jax.jit(jax.grad(loss)).lower(kernels, jnp.zeros((1, 64, 64, wide), dtype)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_backward_pass_keeps_the_outputs_of_activations_alone(dtype):
    own, flax = temporaries(relu, dtype), temporaries(nn.relu, dtype)
    # What bfloat16 keeps is not changed.
    assert own < 0.85 * flax if dtype == jnp.float32 else own < 1.05 * flax
