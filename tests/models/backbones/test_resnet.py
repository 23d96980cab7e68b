import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mask_rcnn
from maskx_jax.models.backbones.resnet import ResNet
from maskx_jax.models.build import build


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


# Parameters of the classifiers of torchvision and timm, less those of `fc`.
@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("r50", 25_557_032),
        ("x101_32x8d", 88_791_336),
        ("x101_64x4d", 83_455_272),
        ("r50_gn", 25_557_032),
    ],
)
def test_the_variants_are_the_networks_of_their_names(backbone, expected):
    network = build(mask_rcnn.get_config(f"backbone={backbone}").model, 80).backbone
    maps, shapes = jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected - (2048 * 1000 + 1000)
    assert {level: x.shape for level, x in maps.items()} == {
        level: (1, 64 >> level, 96 >> level, 64 << level) for level in (2, 3, 4, 5)
    }


@pytest.mark.parametrize("groups", [1, 4])
def test_one_cpu_computes_the_same_network(groups):
    images = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    one, other = (ResNet((1, 1), width=8, groups=groups, group_width=4, cpu=cpu) for cpu in (False, True))
    shapes = jax.eval_shape(one.init, jax.random.key(0), images)
    assert shapes == jax.eval_shape(other.init, jax.random.key(0), images)
    assert shapes["params"]["res3_block0"]["conv2"]["kernel"].shape == (3, 3, 8, 8 * groups)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.1, 0.2, x.shape), x.dtype), shapes)
    first, second = (jax.jit(model.apply)(variables, images) for model in (one, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), second, first)
