"""Which classes keep their masks in training (A) and which are left with boxes (B)."""

import difflib
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from maskx_jax.coco.categories import VOC_NAMES, Categories

CHOICES = ("all", "annotated", "none", "voc", "nonvoc", "random(trial, num_classes)")

# The random choices of the paper: five trials for each number of classes in A, of COCO's 80.
NUM_TRIALS = 5
NUM_CLASSES_OF_TRIALS = (20, 30, 40, 50, 60)
NUM_COCO_CLASSES = 80


def mask_labels(mask_classes: str | Sequence[str], categories: Categories) -> np.ndarray:
    """Return bool `C + 1`: for each label whether masks of the class may be used; False for background.

    Args:
      mask_classes: one of
        - `all`, `annotated`: every mask that the dataset has;
        - `none`: no mask at all;
        - `voc`, `nonvoc`: the classes that PASCAL VOC has, or all others;
        - `random(trial, num_classes)`: see `random_labels`;
        - the path of a text file (with a `/` or ending in `.txt`) with one category name a line;
        - a sequence of category names.
      categories: of the dataset.

    Raises:
      ValueError: as `check`; a category name is unknown, an argument is out of range, or no class is left.
      FileNotFoundError: as `check`.
    """
    check(mask_classes)
    allowed = np.zeros(len(categories) + 1, bool)
    if not isinstance(mask_classes, str):
        allowed[_labels_of_names(mask_classes, categories, "the list of class names")] = True
    elif mask_classes in ("all", "annotated"):
        allowed[1:] = True
    elif mask_classes == "none":
        pass
    elif mask_classes in ("voc", "nonvoc"):
        is_voc = np.array([name in VOC_NAMES for name in categories.names], bool)
        allowed[1:] = is_voc if mask_classes == "voc" else ~is_voc
        if not is_voc.any():
            raise ValueError(f"{mask_classes!r}: none of the {len(categories)} categories is a class of PASCAL VOC")
        if not allowed.any():
            raise ValueError(f"{mask_classes!r} leaves no class: all {len(categories)} are classes of PASCAL VOC")
    elif arguments := _random_arguments(mask_classes):
        allowed[random_labels(*arguments, len(categories))] = True
    else:
        lines = pathlib.Path(mask_classes).read_text(encoding="utf-8-sig").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        allowed[_labels_of_names(names, categories, f"file {mask_classes}")] = True
    return allowed


def check(mask_classes: str | Sequence[str]) -> None:
    """Check what can be known of a choice without the categories of a dataset.

    Raises:
      ValueError: it is none of those that `mask_labels` takes; the message names the nearest.
      FileNotFoundError: the file does not exist.
    """
    if not isinstance(mask_classes, str) or mask_classes in CHOICES[:-1] or _random_arguments(mask_classes):
        return
    if mask_classes.startswith("random"):
        raise ValueError(
            f"the mask classes {mask_classes!r} are malformed; expected random(trial, num_classes), like random(1, 20)"
        )
    if "/" in mask_classes or mask_classes.endswith(".txt"):
        if not pathlib.Path(mask_classes).is_file():
            raise FileNotFoundError(f"found no file {mask_classes}; expected the names of the classes with masks")
        return
    nearest = difflib.get_close_matches(mask_classes, CHOICES, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown mask classes {mask_classes!r}; did you mean {nearest!r}? Known are {', '.join(CHOICES)}, "
        "the path of a text file of category names (with a / or ending in .txt), and a list of names"
    )


def random_labels(trial: int, num_classes: int, num_categories: int) -> np.ndarray:
    """Return the ascending labels of A in a random choice.

    For COCO's 80 categories, trials 1 to 5 and 20, 30, 40, 50 or 60 classes, these are the choices of the Mask^X paper,
    drawn in its order from NumPy's legacy generator with seed 3. All others are drawn independently of each other.

    Raises:
      ValueError: the trial is below 1, or A or B would be empty.
    """
    if trial < 1:
        raise ValueError(f"random mask classes: trial is {trial}; trials count from 1")
    if not 1 <= num_classes < num_categories:
        raise ValueError(f"random mask classes: num_classes is {num_classes}; expected 1 to {num_categories - 1}")
    is_of_paper = num_categories == NUM_COCO_CLASSES and trial <= NUM_TRIALS and num_classes in NUM_CLASSES_OF_TRIALS
    if not is_of_paper:
        rng = np.random.default_rng((3, trial, num_classes, num_categories))
        return 1 + np.sort(rng.choice(num_categories, num_classes, replace=False))
    # One generator for all trials: the draws before a choice are part of its definition.
    generator = np.random.RandomState(3)
    drawn = {
        (earlier, count): generator.choice(NUM_COCO_CLASSES, count, replace=False)
        for earlier in range(1, NUM_TRIALS + 1)
        for count in NUM_CLASSES_OF_TRIALS
    }
    return 1 + np.sort(drawn[trial, num_classes])


def _random_arguments(mask_classes: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"random\(\s*(\d+)\s*,\s*(\d+)\s*\)", mask_classes)
    return (int(match[1]), int(match[2])) if match else None


def _labels_of_names(names: Sequence[str], categories: Categories, where: str) -> list[int]:
    if not names:
        raise ValueError(f"{where} is empty; expected the names of the classes that keep their masks")
    try:
        return categories.labels_of_names(names)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
