"""What training, evaluation and loading ask of a model: the contract of every family of detectors."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskx_jax.ops.losses import Mean
from maskx_jax.structures import Batch, Detections


@runtime_checkable
class Detector(Protocol):
    """A Flax module with these attributes and methods; no base class is needed."""

    @property
    def produces(self) -> frozenset[str]:
        """What its detections have: "boxes", and maybe "masks" or "keypoints"."""

    @property
    def multiple(self) -> int:
        """What the height and the width of a canvas must be multiples of, in pixels."""

    def loss_means(self, batch: Batch, keys: Key[Array, "b"] | Int[Array, "b 2"]) -> dict[str, Mean]:
        """Return the parts of the loss by name before they are divided; the total is the sum of what they become.

        Added over the parts of a batch they are those of the batch.

        Args:
          batch: images and objects, and maybe what is computed of the images already, see `BackboneDetector`.
          keys: of each image; what is drawn at random in an image depends on its own key only.
        """

    def detect(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> Detections:
        """Return the detections of each image, best first.

        Initialising a model through this method makes every variable that it has.

        Args:
          images: RGB, padded at the bottom and the right.
          image_sizes: height and width without the padding.
        """


@runtime_checkable
class BackboneDetector(Detector, Protocol):
    """A detector with a backbone whose maps may be computed once, and come with a batch then.

    `loss_means` takes `Batch.maps` and `Batch.pyramid` for what the methods of that name return. The parameters and
    constants that they depend on are those of the modules `backbone`, and `backbone` and `fpn`.
    """

    def maps(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> dict[int, Float[Array, "..."]]:
        """Return what the backbone makes of the images, by level.

        Args:
          images: RGB, padded at the bottom and the right.
          image_sizes: height and width without the padding.
        """

    def pyramid(
        self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]
    ) -> dict[int, Float[Array, "..."]]:
        """Return what the heads see of the images, by level; arguments are those of `maps`."""


@runtime_checkable
class MaskDetector(Detector, Protocol):
    """A detector whose `produces` has "masks": it predicts them on boxes that are given, too."""

    def predict_masks(
        self,
        images: UInt8[Array, "b h w 3"],
        image_sizes: Float[Array, "b 2"],
        boxes: Float[Array, "b n 4"],
        labels: Int[Array, "b n"],
        valid: Bool[Array, "b n"],
    ) -> Float[Array, "b n m m"]:
        """Return the probability of the object at each point of its box; what is not valid has no meaning.

        On the box and the label of a detection it is the mask that `detect` returns.

        Args:
          images: RGB, padded at the bottom and the right.
          image_sizes: height and width without the padding.
          boxes: clipped to the images.
          labels: 1..C.
          valid: which slots hold a box; those of an image come first.
        """
