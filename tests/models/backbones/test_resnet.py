import jax
import jax.numpy as jnp
import numpy as np

from maskx_jax.models.backbones.resnet import ResNet


def test_recomputing_the_blocks_changes_no_path_output_or_gradient():
    kept, recomputed = (ResNet((2, 1), width=8, norm="group", remat=remat) for remat in (False, True))
    images = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    # Shapes are enough for init, which takes long to compile.
    shapes, same = (jax.eval_shape(model.init, jax.random.key(0), images) for model in (kept, recomputed))
    assert jax.tree.leaves_with_path(shapes) == jax.tree.leaves_with_path(same)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.1, 0.2, x.shape), x.dtype), shapes)

    def loss(variables, model):
        return sum(jnp.mean(x**2) for x in model.apply(variables, images).values())

    step = jax.value_and_grad(loss)
    jaxprs = [str(jax.make_jaxpr(step, static_argnums=1)(variables, model)) for model in (kept, recomputed)]
    assert ["remat" in jaxpr for jaxpr in jaxprs] == [False, True]
    first, second = (jax.jit(step, static_argnums=1)(variables, model) for model in (kept, recomputed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), second, first)
