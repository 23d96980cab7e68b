"""Where the weights of the mask predictor come from: learned per class, shared by all, or predicted (Mask^X R-CNN).

The three modules return the same thing, rows of mask weights and which row is a region's own; the mask head does not
know the difference.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from maskx_jax.limits import Check, number, one_of
from maskx_jax.models.layers import msra_fill, scaled_msra_fill
from maskx_jax.models.rcnn.box_head import ClassWeights

ACTIVATIONS = {"leaky_relu": lambda x: nn.leaky_relu(x, 0.1), "relu": nn.relu, "none": lambda x: x}
INPUTS = ("cls", "box", "cls+box", "embedding")


LIMITS: Mapping[str, Check] = {
    "input": one_of(*INPUTS),
    "num_layers": one_of(1, 2, 3),
    "activation": one_of(*ACTIVATIONS),
    "embedding_size": number(1),
    "init_scale": number(1e-6),
}


class MaskWeights(NamedTuple):
    """Weights of a 1x1 convolution from mask features to one logit, a row for each class (row 0 is background).

    Or a row for each region: what takes them is given the rows' numbers.
    """

    weights: Float[Array, "rows c"]
    bias: Float[Array, "rows"]


class ClassSpecificWeights(nn.Module):
    """A row of learned weights and a bias for every class: Mask R-CNN, and the fully supervised oracle."""

    num_classes: int
    channels: int

    @nn.compact
    def __call__(self, class_weights: ClassWeights, labels: Int[Array, "b q"]) -> tuple[MaskWeights, Int[Array, "b q"]]:
        """Return the rows of all classes, and the labels; the detection weights are not used."""
        shape = (self.channels, self.num_classes + 1)
        kernel = self.param("kernel", msra_fill, shape)
        return MaskWeights(kernel.T, self.param("bias", nn.initializers.zeros, shape[1:])), labels


class ClassAgnosticWeights(nn.Module):
    """One row for all classes: the baseline that segments whatever is in the box.

    Attributes:
      num_classes: C, without background.
      channels: of the mask features.
      kernel_init: of the row. So small a scale because a larger one gave Detectron's authors NaN losses; features that
        are normalised take a larger one.
    """

    num_classes: int
    channels: int
    kernel_init: Any = nn.initializers.normal(0.001)

    @nn.compact
    def __call__(self, class_weights: ClassWeights, labels: Int[Array, "b q"]) -> tuple[MaskWeights, Int[Array, "b q"]]:
        """Return the one row repeated for all classes, and the labels; the detection weights are not used."""
        kernel = self.param("kernel", self.kernel_init, (self.channels, 1))
        bias = self.param("bias", nn.initializers.zeros, (1,))
        classes = self.num_classes + 1
        rows = MaskWeights(jnp.broadcast_to(kernel.T, (classes, self.channels)), jnp.broadcast_to(bias, (classes,)))
        return rows, labels


class WeightTransfer(nn.Module):
    """The function T of Mask^X R-CNN (section 3.2): w_seg = T(w_det), shared by all classes.

    It is trained through the classes that have masks and applied to all. There is no mask bias, and the biases of the
    detection layers are not inputs.

    Attributes:
      num_classes: C, without background.
      channels: of the mask features, and of T's hidden layers.
      input: "cls", "box", "cls+box" (the paper's choice), or "embedding": a fixed vector a class, kept in the
        collection "frozen" and filled from a file or left random.
      num_layers: 1, 2 (the paper's choice) or 3.
      activation: "leaky_relu" (slope 0.1, the paper's choice), "relu" or "none", between layers.
      stop_gradient: whether the mask loss is kept from changing the detection weights through T.
      embedding_size: of the fixed vectors.
      init_scale: factor of the initial kernels of MSRAFill (1 is the paper's choice). Training changes T along the
        weights of classes with masks; of another class much stays as the initial T made it, which is noise to its
        masks: the smaller, the less of it.
      cpu: whether it is computed as one CPU does best.
    """

    num_classes: int
    channels: int
    input: str = "cls+box"
    num_layers: int = 2
    activation: str = "leaky_relu"
    stop_gradient: bool = True
    embedding_size: int = 300
    init_scale: float = 1.0
    cpu: bool = False

    @nn.compact
    def __call__(self, class_weights: ClassWeights, labels: Int[Array, "b q"]) -> tuple[MaskWeights, Int[Array, "b q"]]:
        """Predict rows of mask weights from rows of detection weights, and say which row is each region's own.

        Of all classes; on one CPU of each region, if there are fewer regions than classes. (Elsewhere the products are
        cheap, and each device would exchange the rows of its regions with the others.)

        Raises:
          ValueError: `input` or `activation` is unknown.
        """
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"got activation {self.activation!r}; expected one of {tuple(ACTIVATIONS)}")
        parts = self._inputs(class_weights)
        if self.cpu and labels.size < len(parts[0]):
            parts = [part[labels.reshape(-1)] for part in parts]
            labels = jnp.arange(labels.size).reshape(labels.shape)
        w_det = jnp.concatenate(parts, axis=1)
        if self.stop_gradient:
            w_det = jax.lax.stop_gradient(w_det)
        x = w_det
        fill = scaled_msra_fill(self.init_scale)
        for index in range(self.num_layers):
            if index > 0:
                x = ACTIVATIONS[self.activation](x)
            x = nn.Dense(self.channels, kernel_init=fill, name=f"fc{index + 1}")(x)
        return MaskWeights(x, jnp.zeros(x.shape[:1], x.dtype)), labels

    def _inputs(self, class_weights: ClassWeights) -> list[Float[Array, "classes ..."]]:
        """Return what the input consists of, a row for each class."""
        if self.input == "cls":
            return [class_weights.classification]
        if self.input == "box":
            return [class_weights.boxes]
        if self.input == "cls+box":
            return [*class_weights]
        if self.input == "embedding":
            return [self.variable("frozen", "embedding", self._random_embedding).value]
        raise ValueError(f"got input {self.input!r} of the weight transfer; expected one of {INPUTS}")

    def _random_embedding(self) -> Float[Array, "classes embedding"]:
        """Return rows of about unit length, zeros for background (the paper's "randn" input)."""
        shape = (self.num_classes, self.embedding_size)
        rows = jax.random.normal(self.make_rng("params"), shape) * self.embedding_size**-0.5
        return jnp.pad(rows, ((1, 0), (0, 0)))
