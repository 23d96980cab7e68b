"""How regions are pooled: RoIAlign, and what Mask R-CNN compares it with (table 2c)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from maskx_jax.limits import Check, number, one_of
from maskx_jax.ops import roi_align, roi_pool
from maskx_jax.ops.per_image import per_image

# The op on one image, and what makes one of a batch of it: RoIPool's loop ends sooner or later in each image.
OPERATIONS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "roi_align": (roi_align.roi_align, jax.vmap),
    "roi_align_max": (roi_pool.roi_align_max, jax.vmap),
    "roi_warp": (roi_pool.roi_warp, jax.vmap),
    "roi_warp_max": (roi_pool.roi_warp_max, jax.vmap),
    "roi_pool": (roi_pool.roi_pool, per_image),
}

LIMITS: Mapping[str, Check] = {
    "operation": one_of(*OPERATIONS),
    "convention": one_of(*roi_align.CONVENTIONS),
    "sampling_ratio": number(0, 8),
}


@dataclasses.dataclass(frozen=True)
class RoIAlign:
    """How regions are pooled, see `ops.roi_align.roi_align` and `ops.roi_pool`.

    Attributes:
      operation: "roi_align", or what Mask R-CNN's paper compares it with: "roi_align_max" (the largest of a bin's
        points), "roi_warp" and "roi_warp_max" (points in boxes of whole feature pixels) or "roi_pool" (the largest of
        the feature pixels).
      convention: the code base whose rule it is.
      sampling_ratio: points along each side of a bin; 0 is adaptive, for means only. RoIPool has none.
    """

    operation: str = "roi_align"
    convention: str = "detectron2"
    sampling_ratio: int = 2

    def __post_init__(self) -> None:
        if self.operation.endswith("_max") and self.sampling_ratio < 1:
            raise ValueError(
                f"rcnn.roi_align.sampling_ratio is {self.sampling_ratio}; expected 1 or more for {self.operation}"
            )

    def __call__(
        self, maps: dict[int, Float[Array, "b _ _ c"]], boxes: Float[Array, "b r 4"], size: int
    ) -> Float[Array, "b r size size c"]:
        """Return the features of regions, each pooled from its level into `size` x `size` bins."""
        operation, of_batch = OPERATIONS[self.operation]
        # Each image gathers from its own maps, so that a batch split over devices needs no communication.
        return of_batch(lambda maps, boxes: operation(maps, boxes, size, self.sampling_ratio, self.convention))(
            maps, boxes
        )
