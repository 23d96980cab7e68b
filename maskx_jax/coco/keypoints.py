"""What COCO's file says of the keypoints of a category: names, the lines between them, left and right, sigmas."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# Constants of OKS by name, for COCO's person (cocodataset.org/#keypoints-eval): how exactly people place a keypoint,
# relative to the square root of the object's area.
_PERSON_SIGMAS = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The keypoints of a dataset's objects, in the order of their annotations.

    Attributes:
      names: of the `k` keypoints.
      edges: pairs of indices from 0 that a picture joins by a line.
      flip: for each keypoint the index of the one whose place it takes in a mirrored image: itself, or its partner on
        the other side.
      sigmas: of OKS for each keypoint, or None where they are not known: then no OKS can be computed.

    Raises:
      ValueError: names repeat or are missing, an index is out of range, or `flip` is not its own inverse.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    flip: tuple[int, ...]
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count or len(set(self.names)) != count:
            raise ValueError(f"got keypoints {self.names}; expected one or more names, each once")
        if wrong := [index for index in itertools.chain(*self.edges) if not 0 <= index < count]:
            raise ValueError(f"an edge of the skeleton has keypoint {wrong[0]}; expected 0 to {count - 1}")
        if sorted(self.flip) != list(range(count)) or any(self.flip[self.flip[i]] != i for i in range(count)):
            raise ValueError(f"got flip {self.flip}; expected {count} indices that exchange keypoints in pairs")
        if self.sigmas is not None and (len(self.sigmas) != count or not all(sigma > 0 for sigma in self.sigmas)):
            raise ValueError(f"got sigmas {self.sigmas}; expected {count} positive numbers")

    @classmethod
    def from_coco(cls, category: Mapping) -> "Skeleton | None":
        """Take what a category of a COCO file says: `keypoints` (names) and `skeleton` (pairs of numbers from 1).

        Left and right are paired by name (`left_x` and `right_x`), or where it is given by `keypoint_flip`, pairs of
        numbers from 1; the sigmas are COCO's where the names are its person's, or `keypoint_sigmas`. These two are our
        own, written by `to_coco`.

        Returns: None if the category has no keypoints.

        Raises: ValueError as the class, or a field is of another form.
        """
        names = category.get("keypoints")
        if not names:
            return None
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"'keypoints' is {names!r:.100}; expected a list of names")
        pairs = _pairs(category, "keypoint_flip", len(names))
        flip = list(flip_by_name(names) if pairs is None else range(len(names)))
        for first, second in pairs or ():
            flip[first], flip[second] = second, first
        sigmas = category.get("keypoint_sigmas")
        if sigmas is None and set(names) == set(_PERSON_SIGMAS):
            sigmas = [_PERSON_SIGMAS[name] for name in names]
        if sigmas is not None and not (
            isinstance(sigmas, list | tuple) and all(type(value) in (int, float) for value in sigmas)
        ):
            raise ValueError(f"'keypoint_sigmas' is {sigmas!r:.100}; expected a list of numbers")
        edges = _pairs(category, "skeleton", len(names)) or ()
        return cls(tuple(names), tuple(edges), tuple(flip), None if sigmas is None else tuple(sigmas))

    def to_coco(self) -> dict:
        """Return what `from_coco` reads, for an entry of `categories`."""
        made: dict = {
            "keypoints": list(self.names),
            "skeleton": [[first + 1, second + 1] for first, second in self.edges],
        }
        if self.flip != flip_by_name(self.names):
            made["keypoint_flip"] = [[place + 1, other + 1] for place, other in enumerate(self.flip) if place < other]
        return made if self.sigmas is None else made | {"keypoint_sigmas": list(self.sigmas)}


def skeletons_of(categories: Iterable[Mapping]) -> dict[int, Skeleton]:
    """Return the skeleton of each category of a COCO file that has keypoints, by its id; they are all the same.

    Raises:
      ValueError: one is malformed, or two differ; the message names the categories.
    """
    found: dict[int, Skeleton] = {}
    first = None
    for category in categories:
        try:
            skeleton = Skeleton.from_coco(category)
        except ValueError as error:
            raise ValueError(f"category {category['name']!r}: {error}") from None
        if skeleton is None:
            continue
        first = first or (category["name"], skeleton)
        if skeleton != first[1]:
            raise ValueError(
                f"the categories {first[0]!r} and {category['name']!r} have different keypoints or skeletons; expected "
                "the same for all that have any"
            )
        found[category["id"]] = skeleton
    return found


def same_skeletons(found: Mapping[int, Skeleton], expected: Mapping[int, Skeleton], what: str) -> None:
    """Check that two files name the same keypoints of the same categories.

    Args:
      found: of one file, by category id; see `skeletons_of`.
      expected: of the other.
      what: both files in this order.

    Raises:
      ValueError: they differ; the message says of both what they name first.
    """
    if found == expected:
        return
    sides = []
    for skeletons in (found, expected):
        named = (f"{len(one.names)} of category {i} ({', '.join(one.names[:3])}...)" for i, one in skeletons.items())
        sides.append(next(named, "none"))
    raise ValueError(f"{what} differ in the keypoints or skeletons of their categories: {sides[0]} and {sides[1]}")


def _pairs(category: Mapping, key: str, count: int) -> list[tuple[int, int]] | None:
    """Return pairs of indices from 0 out of a field with pairs of numbers from 1; None where there is no such field."""
    given = category.get(key)
    if given is None:
        return None
    numbers = range(1, count + 1)
    for pair in given if isinstance(given, list | tuple) else [given]:
        if not (
            isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int and n in numbers for n in pair)
        ):
            raise ValueError(f"{key!r} has {pair!r:.100}; expected pairs of numbers from 1 to {count}")
    return [(first - 1, second - 1) for first, second in given]


def to_annotation(points: np.ndarray, labelled: np.ndarray, visible: np.ndarray) -> dict:
    """Return `keypoints` and `num_keypoints` of a COCO annotation.

    Args:
      points: `k 2`, (x, y) in continuous pixels; COCO's are indices of pixels, less by one half.
      labelled: bool `k`; what is not is written as zeros.
      visible: bool `k`.
    """
    flat = np.zeros((len(points), 3))
    flat[labelled, :2] = points[labelled] - 0.5
    flat[:, 2] = labelled.astype(int) + visible
    return {"keypoints": flat.ravel().tolist(), "num_keypoints": int(labelled.sum())}


def flip_by_name(names: Sequence[str]) -> tuple[int, ...]:
    """Return `Skeleton.flip` by the words left and right in the names; a name without partner stays itself."""
    index_of = {name: index for index, name in enumerate(names)}

    def partner(name: str) -> str:
        if "left" in name:
            return name.replace("left", "right")
        return name.replace("right", "left")

    return tuple(index_of.get(partner(name), index) for index, name in enumerate(names))


PERSON = Skeleton(
    names=tuple(_PERSON_SIGMAS),
    edges=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10)),
        *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    flip=flip_by_name(tuple(_PERSON_SIGMAS)),
    sigmas=tuple(_PERSON_SIGMAS.values()),
)
