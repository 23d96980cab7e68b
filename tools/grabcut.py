"""Make masks from boxes by GrabCut (Rother et al. 2004): the baselines that the Mask^X paper compares with.

    python -m tools.grabcut --annotations=instances_train2017.json --images=train2017 --keep=voc --output=grabcut.json
    python -m tools.grabcut --annotations=instances_val2017.json --images=val2017 --results=results.json \\
        --output=grabcut_results.json

The first replaces the masks of annotations, but for the classes to keep, by what GrabCut finds in their boxes:
`prepare` the file to train on it. The second gives masks to the detections of a box detector: score them with
`eval.py --results`. The paper does not say its settings; these are OpenCV's usual ones, 5 iterations from a rectangle.
"""

import collections
import json
import pathlib
import reprlib
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from maskx_jax import errors, files
from maskx_jax.cli.flags import add_reading_options
from maskx_jax.coco import mask_classes, rle
from maskx_jax.data.coco.annotations import is_box, read_instances
from maskx_jax.data.coco.images import UnreadableImageError, check_file
from maskx_jax.data.coco.report import Report

# Around a box as much is taken in as background as the box is wide and high.
MARGIN = 1.0
ITERATIONS = 5


def grabcut_mask(image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Return what GrabCut takes for the object of a box, all of the box where it finds nothing or nothing around it.

    Args:
      image: `h w 3` uint8.
      box: x, y, width, height in pixels, as in COCO's files.

    Returns:
      bool `h w`.
    """
    height, width = image.shape[:2]
    x, y, w, h = box
    left, top = int(np.clip(np.floor(x), 0, width - 1)), int(np.clip(np.floor(y), 0, height - 1))
    right, bottom = int(np.clip(np.ceil(x + w), left + 1, width)), int(np.clip(np.ceil(y + h), top + 1, height))
    mask = np.zeros((height, width), bool)
    outer_left, outer_right = max(int(left - MARGIN * w), 0), min(int(np.ceil(right + MARGIN * w)), width)
    outer_top, outer_bottom = max(int(top - MARGIN * h), 0), min(int(np.ceil(bottom + MARGIN * h)), height)
    crop = np.ascontiguousarray(image[outer_top:outer_bottom, outer_left:outer_right])
    rectangle = (left - outer_left, top - outer_top, right - left, bottom - top)
    if rectangle[2:] == crop.shape[1::-1]:
        # Nothing is known to be background.
        mask[top:bottom, left:right] = True
        return mask
    labels = np.zeros(crop.shape[:2], np.uint8)
    # GrabCut draws its initial clusters at random; the same box gives the same mask.
    cv2.setRNGSeed(0)
    cv2.grabCut(crop, labels, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), ITERATIONS, cv2.GC_INIT_WITH_RECT)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    mask[outer_top:outer_bottom, outer_left:outer_right] = found
    if not found.any():
        mask[top:bottom, left:right] = True
    return mask


def add_masks(entries: list[dict[str, Any]], images: dict[int, dict[str, Any]], folder: pathlib.Path) -> None:
    """Set the segmentation of annotations or results, image by image, in place.

    Args:
      entries: with image_id and bbox.
      images: COCO's, by id.
      folder: of the image files.

    Raises:
      ValueError: an entry is no object, has no sound bbox or is of an unknown image, or an image cannot be read.
    """
    per_image: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"entry {place} is a {type(entry).__name__}; expected an object with image_id and bbox")
        image_id, box = entry.get("image_id"), entry.get("bbox")
        if not isinstance(image_id, int) or image_id not in images:
            raise ValueError(
                f"entry {place} has image_id {reprlib.repr(image_id)}; expected one of {len(images)} of the annotations"
            )
        if not is_box(box) or min(box[2:]) <= 0:
            raise ValueError(
                f"entry {place} has bbox {reprlib.repr(box)}; expected 4 finite numbers, width and height above 0"
            )
        per_image[image_id].append(entry)
    for image_id, own in tqdm(per_image.items(), unit="image", disable=None):
        path = folder / images[image_id]["file_name"]
        check_file(path)
        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise UnreadableImageError(f"image {image_id}: {path} cannot be read as an image")
        for entry in own:
            mask = grabcut_mask(image, entry["bbox"])
            entry["segmentation"] = rle.encode(mask)
            if "area" in entry:
                entry["area"] = int(mask.sum())


def main(arguments: list[str] | None = None) -> None:
    """Make masks as the arguments say."""
    parser = errors.ArgumentParser(prog="python -m tools.grabcut", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotations", required=True, type=pathlib.Path, help="COCO instances file")
    parser.add_argument("--images", required=True, type=pathlib.Path, help="folder of its images")
    parser.add_argument("--keep", help="classes that keep their masks: voc, nonvoc, a file of names...")
    parser.add_argument(
        "--results", type=pathlib.Path, help="COCO results to give masks to, instead of the annotations"
    )
    parser.add_argument("--output", required=True, type=pathlib.Path)
    add_reading_options(parser)
    options = parser.parse_args(arguments)
    # Before an hour of work.
    if not options.output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {options.output.parent} for --output")
    report = Report("annotations")
    instances = read_instances(options.annotations, report, options.drop_unknown, options.allow_outside)
    for line in report.findings():
        print(line)
    images = {image["id"]: image for image in instances.images}
    content: Any
    if options.results:
        entries = content = files.read_json(options.results)
        if not isinstance(content, list):
            raise ValueError(
                f"{options.results}: got a {type(content).__name__} at the top; expected a list of results"
            )
    else:
        content = instances.to_coco()
        kept: set[int] = set()
        if options.keep:
            allowed = mask_classes.mask_labels(options.keep, instances.categories)
            kept = {i for i, label in instances.categories.label_of_id().items() if allowed[label]}
        entries = [a for a in content["annotations"] if a["category_id"] not in kept and not a.get("iscrowd")]
    add_masks(entries, images, options.images)
    options.output.write_text(json.dumps(content))
    print(f"wrote {options.output}: {len(entries)} masks by GrabCut")


if __name__ == "__main__":
    errors.run(main)
