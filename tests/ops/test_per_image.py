import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskx_jax.ops.per_image import per_image


def test_equals_vmap_with_and_without_a_mesh_for_trees_and_what_images_share():
    def function(image, options, shared):
        return {"sum": image.sum() + options["a"], "all": image * shared}

    images = jnp.arange(48.0).reshape(16, 3)
    options = {"a": jnp.arange(16.0), "b": jnp.zeros((16, 2))}
    shared = jnp.array([1.0, 2.0, 3.0])
    mapped = per_image(function, (0, 0, None))
    expected = jax.vmap(function, (0, 0, None))(images, options, shared)
    jax.tree.map(np.testing.assert_array_equal, mapped(images, options, shared), expected)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        found = jax.jit(mapped)(images, options, shared)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    split = NamedSharding(mesh, PartitionSpec("data"))
    assert all(leaf.sharding.is_equivalent_to(split, leaf.ndim) for leaf in jax.tree.leaves(found))


def test_each_device_ends_its_own_loop():
    def turns(number):
        return jax.lax.while_loop(lambda state: state[0] > 0, lambda state: (state[0] - 1, state[1] + 1), (number, 0))[
            1
        ]

    numbers = jnp.array([3, 0, 50, 1, 7, 7, 2, 9])
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
        text = jax.jit(per_image(turns)).lower(numbers).compile().as_text()
        np.testing.assert_array_equal(jax.jit(per_image(turns))(numbers), numbers)
    assert "while(" in text and "all-reduce" not in text
