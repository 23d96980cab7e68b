"""Turn Visual Genome's objects into a COCO file of 3,000 classes with boxes, with or without COCO's masks.

    python -m tools.visual_genome --objects=objects.json --image_data=image_data.json --output=FOLDER \\
        --minival=instances_val2017.json --coco=instances_train2017.json --coco_prefix=train2017

It writes train.json, val.json and test.json, which `prepare` reads like any COCO file; training with the split
`annotated` then uses whatever has masks. The paper's large-scale experiment: the most frequent synsets are the classes,
an object counts if exactly one of its synsets is among them, and the 80 classes of COCO come first, each as its synset,
whether or not that is frequent enough.

The images that COCO's minival has make val; the last `--num_test` images that are not COCO's make test; the rest is
train. COCO's annotations, with their masks, join train: its categories are known by name. An image of COCO says nothing
of the other classes, so their objects count as background there.
"""

import collections
import json
import pathlib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskx_jax import errors, files
from maskx_jax.coco.categories import COCO_IDS
from maskx_jax.data.coco.annotations import is_box, read_instances
from maskx_jax.data.coco.report import Report

# COCO's names that are not a synset's lemma, or of which another sense is meant. "water_faucet.n.01" is no mistake
# here: it is what Visual Genome calls hydrants.
SYNSETS = {
    "cell phone": "cellular_telephone.n.01",
    "couch": "sofa.n.01",
    "dining table": "dinner_table.n.01",
    "donut": "doughnut.n.02",
    "fire hydrant": "water_faucet.n.01",
    "hair drier": "hand_blower.n.01",
    "handbag": "bag.n.04",
    "hot dog": "hotdog.n.01",
    "orange": "orange.n.01",
    "potted plant": "plant.n.01",
    "remote": "remote_control.n.01",
    "skis": "ski.n.01",
    "sports ball": "ball.n.01",
    "stop sign": "sign.n.02",
    "suitcase": "bag.n.06",
    "teddy bear": "teddy.n.01",
    "tv": "television.n.01",
    "wine glass": "wineglass.n.01",
}


def count_synsets(images: Iterable[Mapping[str, Any]]) -> collections.Counter[str]:
    """Return how many objects name each synset."""
    return collections.Counter(name for image in images for entry in image["objects"] for name in entry["synsets"])


def synset_of_coco(counts: Mapping[str, int], names: Iterable[str]) -> dict[str, str]:
    """Return the synset of each COCO class: the most frequent one of that lemma, or the one of `SYNSETS`.

    Raises:
      ValueError: there is none for a class.
    """
    of_lemma: dict[str, str] = {}
    for synset in sorted(counts, key=lambda name: (-counts[name], name)):
        of_lemma.setdefault(synset.rsplit(".", 2)[0].replace("_", " "), synset)
    found = {name: SYNSETS.get(name) or of_lemma.get(name) for name in names}
    if missing := [name for name, synset in found.items() if synset is None]:
        raise ValueError(f"{len(missing)} classes of COCO have no synset among the objects, such as {missing[:3]}")
    return {name: synset for name, synset in found.items() if synset is not None}


def make_categories(counts: Mapping[str, int], num_synsets: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the categories, COCO's first and the other frequent synsets sorted, and the id of each synset.

    Args:
      counts: see `count_synsets`.
      num_synsets: how many, the most frequent; COCO's that are not among them are added.
    """
    coco = synset_of_coco(counts, COCO_IDS)
    frequent = sorted(counts, key=lambda name: (-counts[name], name))[:num_synsets]
    names = [*coco.values(), *sorted(set(frequent) - set(coco.values()))]
    ids = {synset: i for i, synset in enumerate(names, 1)}
    return [{"id": i, "name": synset} for synset, i in ids.items()], ids


def convert_image(image: Mapping[str, Any], ids: Mapping[str, int], data: Mapping[str, Any]) -> tuple[dict, list[dict]]:
    """Return COCO's image and annotations of an image of Visual Genome.

    Args:
      image: of objects.json.
      ids: category by synset.
      data: of image_data.json, or empty: then the size is found by `prepare`.
    """
    url = image.get("image_url") or data.get("url") or f"VG_100K/{image['image_id']}.jpg"
    converted = {"id": image["image_id"], "file_name": "/".join(url.split("/")[-2:])}
    if "width" in data:
        converted |= {"width": data["width"], "height": data.get("height")}
    annotations = []
    for entry in image["objects"]:
        known = [name for name in entry["synsets"] if name in ids]
        if len(known) != 1:
            continue
        annotations.append(
            {
                "id": entry["object_id"],
                "image_id": image["image_id"],
                "category_id": ids[known[0]],
                "bbox": [entry["x"], entry["y"], entry["w"], entry["h"]],
                "area": entry["w"] * entry["h"],
                "segmentation": [],
                "iscrowd": 0,
            }
        )
    return converted, annotations


def choose_splits(
    image_ids: Sequence[int], coco_ids: Mapping[int, int | None], minival: set[int], num_test: int
) -> dict[str, list[int]]:
    """Return the image ids of val (those of COCO's minival), test (the last that are not COCO's) and train."""
    val = [i for i in image_ids if coco_ids.get(i) in minival]
    others = [i for i in image_ids if coco_ids.get(i) is None]
    test = others[max(len(others) - num_test, 0) :] if num_test else []
    taken = {*val, *test}
    return {"train": [i for i in image_ids if i not in taken], "val": val, "test": test}


def join_coco(
    content: dict[str, Any], coco: Mapping[str, Any], ids: Mapping[str, int], prefix: str, first_id: int
) -> None:
    """Add COCO's images and annotations, with their masks, to a converted file, under ids of their own.

    Args:
      content: changed in place.
      coco: an instances file.
      ids: category by synset.
      prefix: folder of COCO's images, beside those of Visual Genome.
      first_id: from which on no image and no annotation of Visual Genome is numbered.

    Raises:
      ValueError: COCO's categories are others than its 80.
    """
    if unknown := [c["name"] for c in coco["categories"] if c["name"] not in COCO_IDS]:
        raise ValueError(f"expected COCO's categories; found {unknown[:5]}")
    synsets = {category["id"]: content["synset_of_coco"][category["name"]] for category in coco["categories"]}
    new_id = {image["id"]: first_id + i for i, image in enumerate(coco["images"])}
    for image in coco["images"]:
        content["images"].append({**image, "id": new_id[image["id"]], "file_name": f"{prefix}/{image['file_name']}"})
    for i, annotation in enumerate(coco["annotations"]):
        content["annotations"].append(
            {
                **annotation,
                "id": first_id + i,
                "image_id": new_id[annotation["image_id"]],
                "category_id": ids[synsets[annotation["category_id"]]],
            }
        )


def read_entries(path: pathlib.Path, key: str | None = None, **fields: Any) -> list[dict[str, Any]]:
    """Read a JSON file that holds a list of objects.

    Args:
      path: the file.
      key: under which it holds them; None where the list is all.
      fields: see `check_entries`.

    Raises:
      OSError: the file cannot be read.
      ValueError: it holds something else; the message names the first place.
    """
    entries = content = files.read_json(path)
    if key is not None:
        entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        found = f"{type(content).__name__} at the top" if key is None or entries is None else type(entries).__name__
        raise ValueError(f"{path}: got a {found}; expected a list of objects{f' under {key!r}' if key else ''}")
    check_entries(entries, str(path), **fields)
    return entries


def check_entries(entries: list[Any], where: str, **fields: Any) -> None:
    """Check that all entries of a list are objects, with fields of these types by name.

    Raises:
      ValueError: one is not; the message begins with `where` and names its place.
    """
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: entry {place} is a {type(entry).__name__}; expected an object")
        for name, kind in fields.items():
            if not isinstance(value := entry.get(name), kind):
                expected = getattr(kind, "__name__", kind)
                raise ValueError(f"{where}: entry {place} has {name} {reprlib.repr(value)}; expected {expected}")


def read_objects(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read Visual Genome's objects.json; errors as of `read_entries`."""
    images = read_entries(path, image_id=int, objects=list, image_url=str | None)
    for image in images:
        where = f"{path}: image {image['image_id']}"
        check_entries(image["objects"], where, object_id=int, synsets=list)
        for entry in image["objects"]:
            box = [entry.get(name) for name in "xywh"]
            if not is_box(box) or not all(isinstance(name, str) for name in entry["synsets"]):
                raise ValueError(
                    f"{where}: object {entry['object_id']} has x, y, w, h {reprlib.repr(box)} and synsets "
                    f"{reprlib.repr(entry['synsets'])}; expected finite numbers and text"
                )
    return images


def main(arguments: list[str] | None = None) -> None:
    """Convert what the arguments say."""
    parser = errors.ArgumentParser(prog="python -m tools.visual_genome", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", required=True, type=pathlib.Path, help="objects.json of Visual Genome 1.4")
    parser.add_argument(
        "--image_data", type=pathlib.Path, help="its image_data.json: sizes, and which images are COCO's"
    )
    parser.add_argument("--minival", type=pathlib.Path, help="COCO instances file whose images make val")
    parser.add_argument("--coco", type=pathlib.Path, help="COCO instances file that joins train with its masks")
    parser.add_argument("--coco_prefix", default="coco", help="folder of COCO's images beside those of Visual Genome")
    parser.add_argument("--num_synsets", type=int, default=3000)
    parser.add_argument("--num_test", type=int, default=5000)
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for train.json, val.json, test.json")
    options = parser.parse_args(arguments)

    images = read_objects(options.objects)
    data = {}
    if options.image_data:
        entries = read_entries(options.image_data, image_id=int, url=str | None, coco_id=int | None)
        data = {entry["image_id"]: entry for entry in entries}
    minival = set()
    if options.minival:
        minival = {image["id"] for image in read_entries(options.minival, "images", id=int)}
    coco = read_instances(options.coco, Report("coco")).to_coco() if options.coco else None
    counts = count_synsets(images)
    categories, ids = make_categories(counts, options.num_synsets)
    coco_ids = {image_id: entry.get("coco_id") for image_id, entry in data.items()}
    of_id = {image["image_id"]: image for image in images}
    splits = choose_splits(list(of_id), coco_ids, minival, options.num_test)
    first_id = 1 + max([*of_id, *(entry["object_id"] for image in images for entry in image["objects"])], default=0)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, members in splits.items():
        content: dict[str, Any] = {"categories": categories, "images": [], "annotations": []}
        content["synset_of_coco"] = synset_of_coco(counts, COCO_IDS)
        num_objects = 0
        for image_id in members:
            image, annotations = convert_image(of_id[image_id], ids, data.get(image_id, {}))
            content["images"].append(image)
            content["annotations"] += annotations
            num_objects += len(of_id[image_id]["objects"])
        kept = len(content["annotations"])
        if name == "train" and coco:
            join_coco(content, coco, ids, options.coco_prefix, first_id)
        (options.output / f"{name}.json").write_text(json.dumps(content))
        print(
            f"{name}: {len(members)} images, {kept} of {num_objects} objects (the others have no synset, several, or a "
            f"rare one), {len(categories)} classes; {len(content['annotations']) - kept} annotations of COCO joined"
        )


if __name__ == "__main__":
    errors.run(main)
