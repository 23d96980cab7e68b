import jax
import jax.numpy as jnp

from maskx_jax.models.layers import conv


def test_a_convolution_is_the_compilers_own_unless_it_is_for_one_cpu():
    x = jnp.ones((1, 4, 4, 2))

    def primitives(cpu):
        layer = conv(2, 3, cpu=cpu)
        variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), x))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
        return str(jax.make_jaxpr(layer.apply)(zeros, x))

    assert "conv_general_dilated" in primitives(cpu=False) and "custom_vjp" not in primitives(cpu=False)
    assert "conv_general_dilated" not in primitives(cpu=True)
