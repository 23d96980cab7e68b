"""ResNet whose last stage works on regions in place of the image: the C4 form of Faster R-CNN (He et al. 2015)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from maskx_jax.models.backbones.resnet import ResNet
from maskx_jax.ops.cpu.used_slots import map_used_slots


class ResNetC4(ResNet):
    """The map of res4, and res5 for the regions that are pooled from it; the fields are those of `ResNet`.

    The parameters have the paths that they have in `ResNet`, so that weights of a classifier fill both parts.
    """

    levels = (4,)
    multiple = 16

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return {4: res4}."""
        x = self.stem(images)
        for level in (2, 3, 4):
            x = self.stage(x, level)
        return {4: x}

    @nn.compact
    def res5(self, pooled: Float[Array, "r s s c"]) -> Float[Array, "r s2 s2 c2"]:
        """Return half as many bins along each side, and twice as many channels."""
        return self.stage(pooled, 5)

    def region_features(
        self, pooled: Float[Array, "b r s s c"], used: Bool[Array, "b r"]
    ) -> Float[Array, "b r s2 s2 c2"]:
        """Return what `res5` makes of pooled regions.

        Args:
          pooled: from the map of res4.
          used: which slots hold a region; on one CPU device the others are not computed.
        """
        if self.cpu and not self.is_initializing():
            # As a function of its parameters: JAX's loops do not take the modules of Flax.
            backbone, variables = self.unbind()
            own = {
                collection: {name: values for name, values in modules.items() if name.startswith("res5")}
                for collection, modules in variables.items()
            }

            def of_chunk(own: Any, pooled: Array, labels: Array) -> Any:
                del labels
                return backbone.apply(own, pooled, method="res5")

            return map_used_slots(of_chunk, own, pooled, jnp.zeros(used.shape, jnp.int32), used)
        features = self.res5(pooled.reshape(-1, *pooled.shape[2:]))
        return features.reshape(*used.shape, *features.shape[1:])
