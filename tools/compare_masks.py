"""Compare masks that were made for boxes with the hidden true ones, beside the boxes themselves.

    python -m tools.compare_masks --truth=all.json --hidden=partial.json --masks=model=labelled.json \\
        --masks=GrabCut=grabcut.json --keep="random(1,50)"

For each object whose mask is in --truth and not in --hidden, or of all without --hidden, the IoU of its mask in each
file of --masks with the true one; an object without mask there counts 0. `label` and `tools.grabcut` write such files.
With --keep the objects of its classes (A) and of all others (B) get columns of their own. Intervals hold 95 % of 1,000
bootstrap draws of the images. For masks with a quality, a second table says what a threshold on it keeps.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskx_jax import errors, files
from maskx_jax.coco import mask_classes, rle
from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco.predicted import FIELD
from maskx_jax.report import bootstrap

NUM_DRAWS = 1000
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def box_mask(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Return the mask, bool `h w`, of the pixels whose middles lie in a box x, y, width, height."""
    x, y, width, height = box
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    inside = (rows >= y) & (rows < y + height), (columns >= x) & (columns < x + width)
    return inside[0][:, None] & inside[1]


def overlaps(
    truth: Mapping[str, Any], hidden: Mapping[str, Any] | None, made: Mapping[str, Any] | None
) -> dict[int, float]:
    """Return the IoU of the made mask of each object with its true one, by annotation id.

    Args:
      truth: COCO annotations with all masks.
      hidden: those that lack the masks to compare; None to compare all.
      made: those with masks made for them; None for the boxes.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    entries = [a for a in (truth if hidden is None else hidden)["annotations"] if not a.get("iscrowd")]
    missing = {a["id"] for a in entries if hidden is None or not _has_mask(a, sizes)}
    made_of_id = {} if made is None else {a["id"]: a.get("segmentation") for a in made["annotations"]}
    found = {}
    for annotation in truth["annotations"]:
        size = sizes[annotation["image_id"]]
        true = rle.of_segmentation(annotation.get("segmentation"), size)
        if annotation["id"] not in missing or true is None:
            continue
        expected = rle.decode(true)
        if made is None:
            mask = box_mask(annotation["bbox"], size)
        else:
            encoded = rle.of_segmentation(made_of_id.get(annotation["id"]), size)
            mask = np.zeros(size, bool) if encoded is None else rle.decode(encoded)
        union = (mask | expected).sum()
        found[annotation["id"]] = float((mask & expected).sum() / union) if union else 0.0
    return found


def _has_mask(annotation: Mapping[str, Any], sizes: Mapping[int, tuple[int, int]]) -> bool:
    # A list of no polygon, or of one without points, is no mask.
    image = annotation["image_id"]
    return image in sizes and rle.of_segmentation(annotation.get("segmentation"), sizes[image]) is not None


def table(rows: Mapping[str, dict[int, float]], groups: Mapping[str, set[int]], image_of_id: Mapping[int, int]) -> str:
    """Return the mean IoU of each file with its interval, and the shares above 0.5 and 0.75.

    Args:
      rows: IoU by annotation id, by title.
      groups: annotation ids by name.
      image_of_id: image ids by annotation id.
    """
    lines = ["| masks | " + " | ".join(f"{name} ({len(ids)})" for name, ids in groups.items()) + " | ≥ 0.5 | ≥ 0.75 |"]
    lines.append("|---" * (len(groups) + 3) + "|")
    for title, found in rows.items():
        cells = [_with_interval({i: found[i] for i in ids}, image_of_id) for ids in groups.values()]
        values = np.array(list(found.values()))
        shares = [f"{100 * (values >= least).mean():.0f} %" for least in (0.5, 0.75)]
        lines.append("| " + " | ".join([title, *cells, *shares]) + " |")
    return "\n".join(lines)


def quality_table(found: dict[int, float], made: Mapping[str, Any], groups: Mapping[str, set[int]]) -> str:
    """Return what each threshold on the quality keeps, and how good that is; empty without qualities."""
    quality = {a["id"]: a[FIELD]["quality"] for a in made["annotations"] if FIELD in a and a["id"] in found}
    if not quality:
        return ""
    lines = ["| quality | kept | " + " | ".join(groups) + " |", "|---" * (len(groups) + 2) + "|"]
    for threshold in THRESHOLDS:
        kept = {i for i, value in quality.items() if value >= threshold}
        if not kept:
            break
        cells = [f"{_mean([found[i] for i in kept & ids]):.3f}" for ids in groups.values()]
        lines.append(f"| ≥ {threshold} | {100 * len(kept) / len(found):.0f} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_interval(found: Mapping[int, float], image_of_id: Mapping[int, int]) -> str:
    """Return the mean of the IoUs and how far it may be off because these images were the ones compared."""
    _, image = np.unique([image_of_id[i] for i in found], return_inverse=True)
    count = np.bincount(image)
    weights = bootstrap.draws(len(count), NUM_DRAWS)
    means = weights @ np.bincount(image, list(found.values())) / np.maximum(weights @ count, 1)
    low, high = np.percentile(means, [2.5, 97.5]) if found else (float("nan"),) * 2
    return f"{_mean(list(found.values())):.3f} ({low:.3f} to {high:.3f})"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = errors.ArgumentParser(prog="python -m tools.compare_masks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--truth", required=True, type=pathlib.Path, help="COCO annotations with all masks")
    parser.add_argument("--hidden", type=pathlib.Path, help="those without the masks to compare; by default all are")
    parser.add_argument(
        "--masks", action="append", default=[], metavar="TITLE=JSON", help="repeat it for several files"
    )
    parser.add_argument("--keep", help="the classes of group A, as of data.mask_classes")
    options = parser.parse_args(arguments)
    truth = files.read_json(options.truth)
    hidden = files.read_json(options.hidden) if options.hidden else None
    rows, made = {"box": overlaps(truth, hidden, None)}, {}
    for text in options.masks:
        title, separator, path = text.partition("=")
        if not separator:
            parser.error(f"--masks: got {text!r}; expected TITLE=JSON")
        made[title] = files.read_json(path)
        rows[title] = overlaps(truth, hidden, made[title])
    groups = {"all": set(rows["box"])}
    if options.keep:
        categories = Categories.from_coco(truth["categories"])
        allowed = mask_classes.mask_labels(options.keep, categories)
        label_of_id = categories.label_of_id()
        in_a = {a["id"] for a in truth["annotations"] if allowed[label_of_id[a["category_id"]]]}
        groups |= {"A": groups["all"] & in_a, "B": groups["all"] - in_a}
    print(table(rows, groups, {a["id"]: a["image_id"] for a in truth["annotations"]}))
    for title, content in made.items():
        if qualities := quality_table(rows[title], content, groups):
            print(f"\n{title}:\n\n{qualities}")
    return 0


if __name__ == "__main__":
    errors.run(main)
