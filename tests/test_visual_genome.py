import json

import cv2
import jax
import numpy as np
import pytest

import maskx_jax
from maskx_jax import errors
from maskx_jax.coco.categories import COCO_IDS
from maskx_jax.data.coco.builder import prepare
from maskx_jax.training import loop
from tests.models.build import tiny_config
from tools import visual_genome

# Of Visual Genome 79 classes of COCO, the things, a toothbrush and two more; of COCO one.
NUM_OBJECTS = 79 * 4 + 2921 * 3 + 1 + 2 + 1


def coco_synset(name):
    return visual_genome.SYNSETS.get(name, f"{name.replace(' ', '_')}.n.01")


def entry(number, synsets, box=(5, 6, 20, 30)):
    """Return an object as objects.json has it."""
    x, y, w, h = box
    names = [synset.split(".")[0] for synset in synsets]
    return {
        "object_id": number,
        "merged_object_ids": [],
        "synsets": synsets,
        "names": names,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
    }


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    """Write a small Visual Genome in its true format, with images, and some COCO beside it; return the folder.

    Every COCO class but "toothbrush" is frequent; 3,010 other synsets are there, of which ten are rare.
    """
    folder = tmp_path_factory.mktemp("genome")
    rng = np.random.default_rng(0)
    synsets = [coco_synset(name) for name in COCO_IDS if name != "toothbrush"] * 4
    synsets += [f"thing_{i}.n.01" for i in range(2921)] * 3 + [f"rare_{i}.n.01" for i in range(10)]
    synsets += [coco_synset("toothbrush"), "person.n.02"]
    rng.shuffle(synsets)
    objects = [entry(i + 1, [synset], (*rng.integers(0, 40, 2).tolist(), 20, 20)) for i, synset in enumerate(synsets)]
    # No synset, two known ones, a known and a rare one; boxes that reach over the image, and one outside of it.
    objects += [entry(90_001, []), entry(90_002, ["thing_1.n.01", "thing_2.n.01"])]
    objects += [
        entry(90_003, ["thing_3.n.01", "rare_1.n.01"], (50, 50, 40, 40)),
        entry(90_004, ["thing_4.n.01"], (70, 5, 9, 9)),
    ]
    images, data = [], []
    for i, own in enumerate(np.array_split(np.array(objects, dtype=object), 12), 1):
        url = f"https://cs.stanford.edu/people/rak248/VG_100K_2/{i}.jpg"
        images.append({"image_id": i, "objects": list(own), "image_url": url})
        data.append({"image_id": i, "width": 64, "height": 64, "url": url, "coco_id": 100 + i if i <= 4 else None})
        (folder / "images/VG_100K_2").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"images/VG_100K_2/{i}.jpg"), rng.integers(0, 255, (64, 64, 3)))
    (folder / "objects.json").write_text(json.dumps(images))
    (folder / "image_data.json").write_text(json.dumps(data))
    (folder / "minival.json").write_text(json.dumps({"images": [{"id": 101}, {"id": 102}, {"id": 7}]}))
    (folder / "images/train2017").mkdir()
    cv2.imwrite(str(folder / "images/train2017/9.jpg"), rng.integers(0, 255, (64, 64, 3)))
    polygon = [[10, 10, 50, 10, 50, 50, 10, 50]]
    annotation = {"id": 1, "image_id": 9, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0, "segmentation": polygon}
    coco = {
        "images": [{"id": 9, "file_name": "9.jpg", "height": 64, "width": 64}],
        "categories": [{"id": i, "name": name} for name, i in COCO_IDS.items()],
        "annotations": [{**annotation, "category_id": COCO_IDS["toothbrush"]}],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    options = {"objects": "objects", "image_data": "image_data", "minival": "minival", "coco": "coco"}
    arguments = [f"--{name}={folder / file}.json" for name, file in options.items()]
    visual_genome.main([*arguments, "--coco_prefix=train2017", "--num_test=3", f"--output={folder / 'converted'}"])
    return folder


def read(genome, split):
    return json.loads((genome / f"converted/{split}.json").read_text())


def test_classes_are_coco_first_and_then_the_frequent_synsets_in_order(genome):
    names = [category["name"] for category in read(genome, "train")["categories"]]
    assert names[:80] == [coco_synset(name) for name in COCO_IDS]
    assert names[80:] == sorted(names[80:]) and not any("rare" in name for name in names)
    # Toothbrushes are too rare for the 3,000, and a class of COCO all the same.
    assert len(names) == len(set(names)) == 3001


def test_splits_are_minival_the_last_images_and_the_rest(genome):
    ids = {split: [image["id"] for image in read(genome, split)["images"]] for split in ("train", "val", "test")}
    assert ids == {"val": [1, 2], "test": [10, 11, 12], "train": [3, 4, 5, 6, 7, 8, 9, 90_005]}
    assert read(genome, "val")["images"][0] == {"id": 1, "file_name": "VG_100K_2/1.jpg", "width": 64, "height": 64}
    assert read(genome, "train")["images"][-1]["file_name"] == "train2017/9.jpg"


def test_objects_count_if_exactly_one_of_their_synsets_is_a_class(genome):
    found = {a["id"]: a for split in ("train", "val", "test") for a in read(genome, split)["annotations"]}
    assert 90_001 not in found and 90_002 not in found
    assert found[90_003]["bbox"] == [50, 50, 40, 40] and found[90_003]["segmentation"] == []
    # All others but the ten rare ones and another sense of "person"; and one of COCO, with its mask.
    assert len(found) == NUM_OBJECTS
    names = {category["id"]: category["name"] for category in read(genome, "train")["categories"]}
    (masked,) = [a for a in found.values() if a["segmentation"]]
    assert names[masked["category_id"]] == "toothbrush.n.01" and masked["image_id"] == 90_005


def test_a_class_of_coco_takes_the_most_frequent_sense():
    counts = {"dog.n.03": 2, "dog.n.01": 9, "hot_dog.n.01": 4}
    assert visual_genome.synset_of_coco(counts, ["dog"]) == {"dog": "dog.n.01"}
    assert visual_genome.synset_of_coco(counts, ["hot dog"]) == {"hot dog": "hotdog.n.01"}
    with pytest.raises(ValueError, match=r"1 classes of COCO have no synset among the objects, such as \['zebra'\]"):
        visual_genome.synset_of_coco(counts, ["dog", "zebra"])


OBJECT = {"object_id": 1, "synsets": ["dog.n.01"], "x": 1, "y": 1, "w": 5, "h": 5}
BAD_FILES = {
    "numbers": ("objects", [1], "objects.json: entry 0 is a int"),
    "an object": ("objects", {}, "objects.json: got a dict at the top"),
    "image id a list": ("objects", [{"image_id": [1]}], "entry 0 has image_id [1]; expected int"),
    "no objects": ("objects", [{"image_id": 1}], "entry 0 has objects None; expected list"),
    "objects of numbers": ("objects", [{"image_id": 1, "objects": [1]}], "image 1: entry 0 is a int"),
    "a box of text": ("objects", [{"image_id": 1, "objects": [OBJECT | {"w": "5"}]}], "image 1: object 1 has x, y, w"),
    "no box": ("objects", [{"image_id": 1, "objects": [OBJECT | {"x": None}]}], "object 1 has x, y, w, h [None, 1"),
    "synsets nested": ("objects", [{"image_id": 1, "objects": [OBJECT | {"synsets": [[]]}]}], "synsets [[]]; expected"),
    "an address that is none": ("objects", [{"image_id": 1, "objects": [], "image_url": 3}], "has image_url 3"),
    "an image twice": ("objects", [{"image_id": 1, "objects": []}] * 2, "image 1: it is there twice; expected each"),
    "no end": ("objects", '[{"image_id": 1, "objects": []}', "objects.json: not JSON: "),
    "nested": ("objects", "[" * 100_000, "objects.json: not usable JSON: nested too deeply"),
    "data of text": ("image_data", ["a"], "image_data.json: entry 0 is a str"),
    "a COCO id in a list": (
        "image_data",
        [{"image_id": 1, "coco_id": [1]}],
        "image_data.json: entry 0 has coco_id [1]",
    ),
    "no images": ("minival", {}, "minival.json: got a dict at the top; expected a list of objects under 'images'"),
    "minival of numbers": ("minival", {"images": [1]}, "minival.json: entry 0 is a int"),
    "no annotations": ("coco", {"images": []}, "coco.json: the key 'annotations' is missing"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_by_one_line(tmp_path, capsys, name):
    bad, content, said = BAD_FILES[name]
    synsets = [coco_synset(name) for name in COCO_IDS]
    objects = [{"image_id": 1, "objects": [entry(i, [synset]) for i, synset in enumerate(synsets)]}]
    (tmp_path / "objects.json").write_text(json.dumps(objects))
    (tmp_path / f"{bad}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    arguments = [f"--{file}={tmp_path / file}.json" for file in {"objects", bad}]
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: visual_genome.main([*arguments, f"--output={tmp_path / 'out'}"]))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: ") and said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_boxes_of_3001_classes_and_masks_of_coco_train_in_one_run(genome, tmp_path):
    folder = genome / "images"
    reports = prepare(
        tmp_path / "data",
        {split: (genome / f"converted/{split}.json", folder) for split in ("train", "val", "test")},
    )
    # The box outside of its image is dropped and counted, not lost.
    assert sum(report.num_objects for report in reports.values()) == NUM_OBJECTS - 1
    assert sum(report.num_masks for report in reports.values()) == 1
    config = tiny_config("size=tiny,mlp=light,masks=annotated")
    config.data.mask_classes = "annotated"
    config.data.directory = str(tmp_path / "data")
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64)
    config.train.update(num_steps=2, eval_every=0, checkpoint_every=2, log_every=1)
    loop.train(config, str(tmp_path / "run"))
    run = maskx_jax.load(tmp_path / "run")
    assert run.variables["params"]["box_head"]["classification"]["kernel"].shape[1] == 3002
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["train/total"]) for line in losses)
    detections = jax.eval_shape(
        lambda v, i, s: run.model.apply(v, i, s, method="detect"),
        run.variables,
        jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8),
        jax.ShapeDtypeStruct((1, 2), np.float32),
    )
    assert detections.masks is not None
