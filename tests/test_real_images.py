"""The whole path on real COCO images: prepare, train, evaluate."""

import collections
import json

import pytest

import train
from maskx_jax.data.coco_builder import prepare
from maskx_jax.data.splits import VOC_NAMES
from tests.models.build import tiny_config

# TensorFlow Datasets and what it imports.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def eight_images(coco_mini, path) -> None:
    """Write the annotations of the first eight images whose objects are few, large, and one at least of VOC."""
    content = json.loads((coco_mini / "annotations/instances_train2017.json").read_text())
    voc = {category["id"] for category in content["categories"] if category["name"] in VOC_NAMES}
    of_image = collections.defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)

    def fits(image) -> bool:
        side = max(image["height"], image["width"])
        objects = of_image[image["id"]]
        return (
            1 <= len(objects) <= 3
            and any(a["category_id"] in voc for a in objects)
            and all(not a["iscrowd"] and min(a["bbox"][2:]) > 0.2 * side for a in objects)
        )

    images = [image for image in content["images"] if fits(image)][:8]
    assert len(images) == 8
    annotations = [annotation for image in images for annotation in of_image[image["id"]]]
    path.write_text(json.dumps({**content, "images": images, "annotations": annotations}))


def test_tiny_model_learns_eight_real_images_by_heart(coco_mini, tmp_path):
    eight_images(coco_mini, tmp_path / "eight.json")
    prepare(tmp_path / "data", {"train": (tmp_path / "eight.json", coco_mini / "images/train2017")})
    config = tiny_config("backbone=tiny,mlp=light")
    config.data.directory = str(tmp_path / "data")
    config.data.mask_split = "voc"
    config.data.eval_split = "train"
    config.data.transform.flip_probability = 0.0
    config.train.update(num_steps=400, eval_every=400, checkpoint_every=400, log_every=50, best_metric="segm/A/AP")
    metrics = train.train(config, str(tmp_path / "run"))
    assert metrics["bbox"]["all"]["AP"] > 0.5
    assert metrics["segm"]["A"]["AP"] > 0.5
