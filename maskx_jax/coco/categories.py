"""The bijection between a dataset's category ids and the labels 1..C that a model knows."""

import collections
import dataclasses
import difflib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from maskx_jax.coco.keypoints import Skeleton

# Category id by name of COCO's 80 classes, in label order; the ids reach 90.
COCO_IDS = {
    name: category_id
    for category_id, name in (
        *enumerate(("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"), 1),
        *((10, "traffic light"), (11, "fire hydrant"), (13, "stop sign"), (14, "parking meter"), (15, "bench")),
        *enumerate(("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"), 16),
        *((27, "backpack"), (28, "umbrella"), (31, "handbag"), (32, "tie"), (33, "suitcase")),
        *enumerate(("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"), 34),
        *((41, "skateboard"), (42, "surfboard"), (43, "tennis racket"), (44, "bottle")),
        *enumerate(("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"), 46),
        *enumerate(("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"), 55),
        *((64, "potted plant"), (65, "bed"), (67, "dining table"), (70, "toilet")),
        *enumerate(("tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster"), 72),
        *((81, "sink"), (82, "refrigerator")),
        *enumerate(("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"), 84),
    )
}

# The 20 classes of PASCAL VOC as COCO calls them.
VOC_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat", "bird", "cat", "dog", "horse"),
    *("sheep", "cow", "bottle", "chair", "couch", "potted plant", "dining table", "tv"),
)


@dataclasses.dataclass(frozen=True)
class Categories:
    """Category ids and names in label order: label `i + 1` is `ids[i]`, called `names[i]`.

    Attributes:
      ids: the dataset's.
      names: of the classes.
      skeleton: of the keypoints that a model finds in objects of any class, where it finds some.

    Raises:
      ValueError: ids or names repeat, or their numbers differ.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    skeleton: Skeleton | None = None

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names):
            raise ValueError(f"got {len(self.ids)} category ids and {len(self.names)} names; expected as many of each")
        for what, values in (("id", self.ids), ("name", self.names)):
            repeated = sorted((v for v, number in collections.Counter(values).items() if number > 1), key=str)
            if repeated:
                raise ValueError(f"category {what}s must be unique; repeated: {repeated[:5]}")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_coco(cls, categories: Iterable[dict]) -> "Categories":
        """Take the `categories` list of a COCO file, in order of ascending id (as pycocotools does)."""
        listed = sorted(categories, key=lambda category: category["id"])
        return cls(tuple(int(c["id"]) for c in listed), tuple(str(c["name"]) for c in listed))

    @classmethod
    def in_label_order(cls, categories: Iterable[dict]) -> "Categories":
        """Take back what `to_coco` returned: such a list whose order is that of the labels."""
        listed = list(categories)
        skeleton = next(filter(None, map(Skeleton.from_coco, listed)), None)
        return cls(tuple(int(c["id"]) for c in listed), tuple(str(c["name"]) for c in listed), skeleton)

    def to_coco(self) -> list[dict]:
        """Return the `categories` list of a COCO file, in label order."""
        said = self.skeleton.to_coco() if self.skeleton else {}
        return [{"id": i, "name": name, **said} for i, name in zip(self.ids, self.names, strict=True)]

    def label_of_id(self) -> dict[int, int]:
        """Return the mapping from category id to label."""
        return {category_id: index + 1 for index, category_id in enumerate(self.ids)}

    def id_of_label(self) -> np.ndarray:
        """Return int64 `C + 1`: the category id of each label; entry 0 (background) is 0 and has no meaning."""
        return np.array([0, *self.ids], np.int64)

    def labels_of_names(self, names: Sequence[str]) -> list[int]:
        """Translate category names into labels.

        Raises:
          ValueError: a name is unknown; the message names the closest known one.
        """
        label_of_name = {name: index + 1 for index, name in enumerate(self.names)}
        for name in names:
            if name not in label_of_name:
                close = difflib.get_close_matches(name, self.names, n=1, cutoff=0.0)
                raise ValueError(f"unknown category name {name!r}; the nearest of {len(self)} known names is {close}")
        return [label_of_name[name] for name in names]

    def ids_of_names(self, names: Sequence[str]) -> list[int]:
        """Translate category names into the dataset's ids; raises as `labels_of_names`."""
        return [self.ids[label - 1] for label in self.labels_of_names(names)]


def same_classes(found: Categories, expected: Categories, what: str, *, same_ids: bool = False) -> None:
    """Check that two places name the same classes in the same order.

    Args:
      found: the classes of one place.
      expected: those of the other.
      what: both places in this order, such as "the dataset and the checkpoint".
      same_ids: whether their ids must be the same too: where annotations of both are read by one table.

    Raises:
      ValueError: they differ; the message names both sides and the first label that differs.
    """
    sides = [
        [f"{name!r} (id {i})" if same_ids else repr(name) for i, name in zip(side.ids, side.names, strict=True)]
        for side in (found, expected)
    ]
    for label, (one, other) in enumerate(itertools.zip_longest(*sides, fillvalue="no class"), start=1):
        if one != other:
            raise ValueError(
                f"{what} differ in their classes: {len(found)} and {len(expected)}; the first difference is label "
                f"{label}: {one} and {other}"
            )
