"""Masks learned from boxes: what the mask branch is trained on for objects that have no masks.

BoxInst (Tian et al., CVPR 2021) learns masks from boxes in a one-stage detector. These are its two losses in the form
that Mask R-CNN needs, over regions, and one more: our adaptation, published by nobody; see docs/box_supervision.md.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskx_jax.limits import Check, number, one_of
from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.box_losses import cover_cells, pairwise_loss, projection_loss, similar_neighbours
from maskx_jax.ops.colours import rgb_to_lab, sample_colours
from maskx_jax.ops.losses import Mean, masked_mean
from maskx_jax.ops.per_image import per_image
from maskx_jax.ops.sampling import draw
from maskx_jax.structures import Batch, GroundTruth, RoiTargets

LIMITS: Mapping[str, Check] = {
    "enabled": one_of(False, True),
    "num_samples": number(1),
    "widening": number(1),
    "dilation": number(1),
    "similarity": number(1e-6, 1),
    "projection_weight": number(0),
    "pairwise_weight": number(0),
    "background_weight": number(0),
    "warmup_steps": number(0),
}


@dataclasses.dataclass(frozen=True)
class BoxSupervision:
    """Losses of the masks of objects that have only boxes; objects with masks take no part in them.

    Attributes:
      enabled: whether there are these losses. Without them, objects without masks train no mask.
      num_samples: objects an image that are trained on, at most.
      widening: each side of an object's box is moved away from its middle, to between 1 and this many times the
        distance: a tight box would have no background outside the object to learn from.
      dilation: how many cells of a region's grid away the neighbours are that should be of the same side.
      similarity: of the colours of two neighbours, from which they should be.
      projection_weight: factor of the projection loss.
      pairwise_weight: factor of the pairwise loss.
      background_weight: factor of the cross-entropy of cells outside the box, which are background. Where all of a
        region has become object the other two have no gradient, and this one alone brings it back.
      warmup_steps: steps in which the weight of the pairwise loss rises from 0: before masks have found their objects
        it makes them all object or all background.
    """

    enabled: bool = False
    num_samples: int = 32
    widening: float = 1.2
    dilation: int = 1
    similarity: float = 0.3
    projection_weight: float = 1.0
    pairwise_weight: float = 1.0
    background_weight: float = 0.3
    warmup_steps: int = 10_000

    @property
    def warmups(self) -> dict[str, int]:
        """In how many steps the weight of a part of the loss rises from 0 to 1, by its name."""
        return {"mask_pairwise": self.warmup_steps} if self.enabled and self.warmup_steps else {}

    def regions(self, batch: Batch, keys: Key[Array, "b"] | Int[Array, "b 2"]) -> RoiTargets:
        """Return the widened boxes of objects without masks, within the image as detections are.

        They are made beside the regions that the other losses are of, which stay what they are without box supervision.
        Where an image has more such objects than `num_samples`, they are drawn.
        """

        def one_image(gt: GroundTruth, size: Float[Array, "2"], key: Array) -> RoiTargets:
            draw_key, widen_key = jax.random.split(key)
            box_only = gt.valid & ~gt.is_crowd & ~gt.has_mask
            drawn = draw(draw_key, box_only, jnp.zeros_like(box_only), self.num_samples, foreground_fraction=1.0)
            # Of each object, so that it does not matter how many slots there are.
            factors = jax.random.uniform(widen_key, gt.boxes.shape, minval=1.0, maxval=self.widening)
            regions = box_ops.clip(box_ops.widen(gt.boxes, factors), size)
            used = drawn.foreground
            return RoiTargets(regions[drawn.indices], gt.labels[drawn.indices], drawn.indices, used, used)

        return per_image(one_image)(batch.ground_truth, batch.image_sizes, keys)

    def losses(self, logits: Float[Array, "b q m m"], rois: RoiTargets, batch: Batch) -> dict[str, Mean]:
        """Return the losses by name.

        mask_projection is the mean over the regions, mask_pairwise over pairs of similar colour, and mask_background
        over cells outside the boxes.

        Args:
          logits: of the masks of the regions.
          rois: the regions, as of `regions`.
          batch: the images and objects.
        """
        boxes = jnp.take_along_axis(batch.ground_truth.boxes, rois.gt_index[..., None], axis=1)
        projection, pairwise, pairs, outside = jax.vmap(self._one_image)(
            logits, boxes, rois.boxes, rois.valid, batch.images, batch.image_sizes
        )
        return {
            "mask_projection": masked_mean(self.projection_weight * projection, rois.valid),
            "mask_pairwise": masked_mean(self.pairwise_weight * pairwise, pairs),
            "mask_background": masked_mean(self.background_weight * jax.nn.softplus(logits), outside),
        }

    def _one_image(
        self,
        logits: Float[Array, "q m m"],
        boxes: Float[Array, "q 4"],
        regions: Float[Array, "q 4"],
        used: Bool[Array, "q"],
        image: UInt8[Array, "h w 3"],
        image_size: Float[Array, "2"],
    ) -> tuple[Float[Array, "q"], Float[Array, "q 8 m m"], Bool[Array, "q 8 m m"], Bool[Array, "q m m"]]:
        """Return the projection loss of regions, the pairwise loss of pairs, and which pairs and outer cells count."""
        size = logits.shape[-1]
        rows, columns = cover_cells(boxes, regions, size)
        lab = rgb_to_lab(sample_colours(image, image_size, regions, size))
        inside_box = rows[:, :, None] & columns[:, None, :]
        # Regions end where the image does: no neighbour lies in the padding.
        pairs = similar_neighbours(lab, inside_box & used[:, None, None], self.dilation, self.similarity)
        outside = ~inside_box & used[:, None, None]
        return projection_loss(logits, rows, columns), pairwise_loss(logits, self.dilation), pairs, outside
