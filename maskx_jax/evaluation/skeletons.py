"""Which classes of a ground truth have keypoints, and what OKS needs to know of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskx_jax.coco.keypoints import Skeleton


def skeletons_of(categories: Sequence[Mapping]) -> dict[Any, Skeleton]:
    """Return the skeleton of each class that has keypoints, by the id that the category has.

    Args:
      categories: of a COCO file.

    Raises:
      ValueError: what a category says of its keypoints is wrong.
    """
    found = {}
    for index, category in enumerate(categories):
        try:
            skeleton = Skeleton.from_coco(category)
        except (TypeError, ValueError) as error:
            raise ValueError(f"ground truth, categories[{index}], {category['name']!r}: {error}") from None
        if skeleton is not None:
            found[category["id"]] = skeleton
    return found


def common_sigmas(categories: Sequence[Mapping]) -> tuple[float, ...]:
    """Return the constants of OKS that all classes with keypoints share.

    Raises:
      ValueError: no class has keypoints, one of them has no sigmas, or two differ; see also `skeletons_of`.
    """
    skeletons = skeletons_of(categories)
    names = {category["id"]: category["name"] for category in categories}
    if not skeletons:
        raise ValueError("ground truth: no category has keypoints; expected the names of one's under 'keypoints'")
    for category_id, skeleton in skeletons.items():
        if skeleton.sigmas is None:
            raise ValueError(
                f"ground truth: the keypoints of category {names[category_id]!r} have no sigmas, without which OKS is "
                f"not defined; give them as its 'keypoint_sigmas': {len(skeleton.names)} numbers"
            )
    (first, skeleton), *others = skeletons.items()
    assert skeleton.sigmas is not None
    for other, another in others:
        if another.sigmas != skeleton.sigmas:
            raise ValueError(
                f"ground truth: categories {names[first]!r} and {names[other]!r} differ in the sigmas of their "
                "keypoints; expected the same"
            )
    return skeleton.sigmas
