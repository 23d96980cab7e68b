"""The whole path on real COCO images: prepare, train, evaluate."""

import collections
import json

import pytest

from configs import embedmask, maskx_rcnn, paper
from maskx_jax.coco.categories import VOC_NAMES
from maskx_jax.data.coco.builder import prepare
from maskx_jax.training import loop
from tests.compilation import optimized

# Rows that are one experiment at the small size are trained once. GloVe's config is that of random vectors. The
# annotations have no keypoints.
ROWS = [name for name, row in paper.ROWS.items() if not row.people]
EXPERIMENTS = [*dict.fromkeys(paper.same_experiment(row, "tiny") for row in ROWS), "1a/glove"]
# A stage-wise row, which begins with a detector, and the whole system.
USUAL = ("1a/glove", "2/r50_maskx")

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


@pytest.mark.long
@pytest.mark.parametrize(
    "config",
    [
        maskx_rcnn.get_config("size=tiny,mlp=light"),
        embedmask.get_config("size=tiny,form=ijcai"),
        embedmask.get_config("size=tiny,form=arxiv"),
    ],
    ids=["Mask^X R-CNN", "EmbedMask of IJCAI", "EmbedMask of arXiv"],
)
def test_tiny_model_learns_eight_real_images_by_heart(config, coco_mini, tmp_path):
    eight_images(coco_mini, tmp_path / "eight.json")
    prepare(tmp_path / "data", {"train": (tmp_path / "eight.json", coco_mini / "images/train2017")})
    config.data.directory = str(tmp_path / "data")
    config.data.mask_classes = "voc"
    config.data.eval_split = "train"
    config.data.transform.flip_probability = 0.0
    config.train.update(num_steps=400, eval_every=400, checkpoint_every=400, log_every=50, best_metric=("segm/A/AP",))
    with optimized():
        metrics = loop.train(config, str(tmp_path / "run"))
    assert metrics["bbox"]["all"]["AP"] > 0.5
    assert metrics["segm"]["A"]["AP"] > 0.5


def row_config(row, data):
    """Return the config of a row of the paper at the small size, for two steps on prepared COCO images."""
    config = paper.get_config(f"row={row},size=tiny")
    # The oracle keeps all masks.
    config.evaluation.mask_classes = "voc"
    if config.data.mask_classes != "all":
        config.data.mask_classes = "voc"
    config.data.source, config.data.directory = "prepared", str(data)
    config.train.update(num_steps=2, eval_every=0, log_every=1, checkpoint_every=2)
    return config


@pytest.fixture(scope="module")
def prepared(coco_mini, tmp_path_factory):
    """Return the prepared training images, whose masks and boxes are of all 80 classes."""
    folder = tmp_path_factory.mktemp("coco_mini") / "data"
    annotations = coco_mini / "annotations"
    splits = {
        "train": (annotations / "instances_train2017.json", coco_mini / "images/train2017"),
        "val": (annotations / "instances_val2017.json", coco_mini / "images/val2017"),
    }
    prepare(folder, splits)
    return folder


@pytest.fixture(scope="module")
def detector(prepared, tmp_path_factory):
    """Return the run of a detector without masks, which stage-wise rows begin with."""
    workdir = tmp_path_factory.mktemp("detector")
    loop.train(row_config(paper.DETECTOR, prepared), str(workdir))
    return workdir


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[] if row in USUAL else pytest.mark.long) for row in EXPERIMENTS]
)
def test_every_row_of_the_paper_trains_on_real_images(row, prepared, detector, coco_mini, tmp_path):
    config = row_config(row, prepared)
    if paper.ROWS[row].stage_wise:
        config.initialize.path = str(detector)
    if row == "1a/glove":
        config.embedding.path = str(coco_mini.parent / "coco80_word_vectors.npz")
    # A loss that is not finite raises.
    loop.train(config, str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    loss = "train/box" if paper.ROWS[row].predictor == "none" else "train/mask"
    assert all(line[loss] > 0 for line in lines)
    # What is trained has changed: the loss is another one at the second step.
    assert lines[0][loss] != lines[1][loss]
