"""Which classes keep their masks (A) and which are left with boxes (B)."""

import difflib
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from maskx_jax.coco.categories import VOC_NAMES, Categories

SPLITS = ("all", "annotated", "voc", "nonvoc", "random(trial, num_classes)")

# The random splits of the paper: five trials for each number of classes in A, of COCO's 80.
NUM_TRIALS = 5
NUM_CLASSES_OF_TRIALS = (20, 30, 40, 50, 60)
NUM_COCO_CLASSES = 80


def mask_labels(split: str | Sequence[str], categories: Categories) -> np.ndarray:
    """Return bool `C + 1`: for each label whether masks of the class may be used; False for background.

    Args:
      split: one of
        - `all`, `annotated`: every mask that the dataset has;
        - `voc`, `nonvoc`: the classes that PASCAL VOC has, or all others;
        - `random(trial, num_classes)`: see `random_labels`;
        - the path of a text file (with a `/` or ending in `.txt`) with one category name a line;
        - a sequence of category names.
      categories: of the dataset.

    Raises:
      ValueError: the split or a category name is unknown, an argument is malformed, or no class is left.
      FileNotFoundError: the file does not exist.
    """
    allowed = np.zeros(len(categories) + 1, bool)
    if not isinstance(split, str):
        allowed[_labels_of_names(split, categories, "the list of class names")] = True
    elif split in ("all", "annotated"):
        allowed[1:] = True
    elif split in ("voc", "nonvoc"):
        is_voc = np.array([name in VOC_NAMES for name in categories.names], bool)
        allowed[1:] = is_voc if split == "voc" else ~is_voc
        if not is_voc.any():
            raise ValueError(f"split {split!r}: none of the {len(categories)} categories is a class of PASCAL VOC")
        if not allowed.any():
            raise ValueError(f"split {split!r} leaves no class: all {len(categories)} are classes of PASCAL VOC")
    elif split.startswith("random"):
        match = re.fullmatch(r"random\(\s*(\d+)\s*,\s*(\d+)\s*\)", split)
        if match is None:
            raise ValueError(f"split {split!r} is malformed; expected random(trial, num_classes), like random(1, 20)")
        allowed[random_labels(int(match[1]), int(match[2]), len(categories))] = True
    elif "/" in split or split.endswith(".txt"):
        lines = pathlib.Path(split).read_text(encoding="utf-8-sig").splitlines()
        allowed[_labels_of_names([line.strip() for line in lines if line.strip()], categories, f"file {split}")] = True
    else:
        nearest = difflib.get_close_matches(split, SPLITS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown split {split!r}; did you mean {nearest!r}? Known are {', '.join(SPLITS)}, "
            "the path of a text file of category names (with a / or ending in .txt), and a list of names"
        )
    return allowed


def random_labels(trial: int, num_classes: int, num_categories: int) -> np.ndarray:
    """Return the ascending labels of A in a random split.

    For COCO's 80 categories, trials 1 to 5 and 20, 30, 40, 50 or 60 classes, these are the splits of the Mask^X paper,
    drawn in its order from NumPy's legacy generator with seed 3. All others are drawn independently of each other.

    Raises:
      ValueError: the trial is below 1, or A or B would be empty.
    """
    if trial < 1:
        raise ValueError(f"random split: trial is {trial}; trials count from 1")
    if not 1 <= num_classes < num_categories:
        raise ValueError(f"random split: num_classes is {num_classes}; expected 1 to {num_categories - 1}")
    of_paper = num_categories == NUM_COCO_CLASSES and trial <= NUM_TRIALS and num_classes in NUM_CLASSES_OF_TRIALS
    if not of_paper:
        rng = np.random.default_rng((3, trial, num_classes, num_categories))
        return 1 + np.sort(rng.choice(num_categories, num_classes, replace=False))
    # One generator for all trials: the draws before a split are part of its definition.
    generator = np.random.RandomState(3)
    drawn = {
        (earlier, count): generator.choice(NUM_COCO_CLASSES, count, replace=False)
        for earlier in range(1, NUM_TRIALS + 1)
        for count in NUM_CLASSES_OF_TRIALS
    }
    return 1 + np.sort(drawn[trial, num_classes])


def _labels_of_names(names: Sequence[str], categories: Categories, where: str) -> list[int]:
    if not names:
        raise ValueError(f"{where} is empty; expected the names of the classes that keep their masks")
    try:
        return categories.labels_of_names(names)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
