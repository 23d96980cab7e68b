"""Which areas of annotations are believed: the area decides whether an object counts as small, medium or large.

Exporters write 0, the image's area, or that of a wrong formula.
"""

import math
from collections.abc import Sequence
from typing import Any

# Of 6,200 objects of COCO the given area is 0.83 to 1.8 times that of the mask, and never larger than the box:
# overlapping polygons count twice in one of the two.
_FACTOR = 1.9
_SLACK = 4.0


def is_plausible(given: Any, box_area: float, mask_areas: Sequence[float] = ()) -> bool:
    """Return whether an area can be that of an object: no larger than its box or mask, and about that of its mask.

    Args:
      given: what an annotation has for its area: anything.
      box_area: width times height of its box, in pixels.
      mask_areas: of its mask, by each formula in use; none for an object without mask.
    """
    try:
        area = float(given)
    except (TypeError, ValueError, OverflowError):
        return False
    if isinstance(given, str) or not (
        math.isfinite(area) and 0 < area <= 1.05 * max(box_area, *mask_areas, 0) + _SLACK
    ):
        return False
    if not mask_areas:
        return True
    return min(mask_areas) / _FACTOR - _SLACK <= area <= max(mask_areas) * _FACTOR + _SLACK
