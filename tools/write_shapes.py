"""Write the synthetic set as pictures and COCO annotations, whole and with masks taken away.

    python -m tools.write_shapes --output=FOLDER --num_images=4000 --hide=0.5

FOLDER/images has the pictures, FOLDER/all.json all masks; in FOLDER/partial.json masks are missing: of each class the
share `--hide`, drawn at random, and all of the classes that `--keep` does not name. The images are those that a run
with `data.source = "shapes"` trains on where `--seed` is twice its seed, and evaluates on where it is one more.
"""

import pathlib
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from maskx_jax import errors, files
from maskx_jax.coco import mask_classes
from maskx_jax.data.shapes.source import ShapesSource


def hide_masks(content: dict[str, Any], share: float, kept_ids: set[int], seed: int) -> dict[str, Any]:
    """Return COCO annotations without the masks of a share of the objects of each class.

    Args:
      content: the annotations, which stay as they are.
      share: of the objects of each class, crowds not counted, rounded down.
      kept_ids: the classes that keep the others; those not named lose all.
      seed: of the choice.
    """
    rng = np.random.default_rng((seed, 3))
    hidden: set[int] = set()
    for category in content["categories"]:
        own = [a["id"] for a in content["annotations"] if a["category_id"] == category["id"] and not a["iscrowd"]]
        drawn = rng.permutation(own)[: int(share * len(own))].tolist()
        hidden.update(drawn if category["id"] in kept_ids else own)
    annotations = [a | {"segmentation": []} if a["id"] in hidden else a for a in content["annotations"]]
    return content | {"annotations": annotations}


def main(arguments: list[str] | None = None) -> int:
    """Write what the arguments say; return the exit code."""
    parser = errors.ArgumentParser(prog="python -m tools.write_shapes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write to")
    parser.add_argument("--num_images", type=int, default=4000)
    parser.add_argument("--num_hues", type=int, default=10)
    parser.add_argument("--num_textures", type=int, default=6)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--keypoints", action="store_true", help="mark keypoints, and annotate them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hide", type=float, default=0.5, help="share of the masks of each class, 0 to 1")
    parser.add_argument("--keep", default="all", help="classes that keep the others: all, random(1,50), a file...")
    options = parser.parse_args(arguments)
    if not 0 <= options.hide <= 1:
        parser.error(f"--hide: got {options.hide}; expected a share from 0 to 1")
    sizes = options.image_size, options.num_hues, options.num_textures
    source = ShapesSource(options.num_images, options.seed, *sizes, keypoints=options.keypoints)
    allowed = mask_classes.mask_labels(options.keep, source.categories)
    kept_ids = {i for i, label in source.categories.label_of_id().items() if allowed[label]}
    content = source.coco_ground_truth()
    folder = files.folder_in(options.output, "images")
    for index, image in enumerate(tqdm(content["images"], unit="image", disable=None)):
        picture = source[index].image
        assert isinstance(picture, np.ndarray)
        _, encoded = cv2.imencode(".png", picture[..., ::-1])
        files.write_bytes(folder / image["file_name"], encoded.tobytes())
    partial = hide_masks(content, options.hide, kept_ids, options.seed)
    for name, annotations in (("all", content), ("partial", partial)):
        files.write_json(options.output / f"{name}.json", annotations, indent=None)
    missing = sum(not a["segmentation"] for a in partial["annotations"])
    print(f"wrote {options.output}: {len(source)} images, {missing} of {len(partial['annotations'])} masks hidden")
    return 0


if __name__ == "__main__":
    errors.run(main)
