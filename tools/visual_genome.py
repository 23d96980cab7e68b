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
import dataclasses
import itertools
import json
import pathlib
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from maskx_jax import errors, files
from maskx_jax.coco.categories import COCO_IDS
from maskx_jax.coco.garbage import no_garbage_collection
from maskx_jax.data.coco.annotations import Instances, is_box
from maskx_jax.data.coco.report import Report
from maskx_jax.data.coco.streaming import open_instances, read_list

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


def coco_entries(
    coco: Instances, synsets: Mapping[str, str], ids: Mapping[str, int], prefix: str, first_id: int
) -> Iterator[tuple[dict, list[dict]]]:
    """Yield COCO's images, each with its annotations and their masks, under ids of their own.

    Args:
      coco: an instances file.
      synsets: by the name of COCO's class.
      ids: category by synset.
      prefix: folder of COCO's images, beside those of Visual Genome.
      first_id: from which on no image and no annotation of Visual Genome is numbered.

    Raises:
      ValueError: COCO's categories are others than its 80.
    """
    if unknown := [name for name in coco.categories.names if name not in COCO_IDS]:
        raise ValueError(f"expected COCO's categories; found {unknown[:5]}")
    names = dict(zip(coco.categories.ids, coco.categories.names, strict=True))
    numbers = itertools.count(first_id)
    for new_id, image in enumerate(coco.images, first_id):
        of_image = [
            {
                **annotation,
                "id": next(numbers),
                "image_id": new_id,
                "category_id": ids[synsets[names[annotation["category_id"]]]],
            }
            for annotation in coco.annotations[image["id"]]
        ]
        yield {**image, "id": new_id, "file_name": f"{prefix}/{image['file_name']}"}, of_image


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


def check_entries(entries: list[Any], where: str, first: int = 0, **fields: Any) -> None:
    """Check that all entries of a list are objects, with fields of these types by name.

    Args:
      entries: to check.
      where: the list is.
      first: the place of the first of them.
      fields: types by name.

    Raises:
      ValueError: one is not; the message begins with `where` and names its place.
    """
    for place, entry in enumerate(entries, first):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: entry {place} is a {type(entry).__name__}; expected an object")
        for name, kind in fields.items():
            if not isinstance(value := entry.get(name), kind):
                expected = getattr(kind, "__name__", kind)
                raise ValueError(f"{where}: entry {place} has {name} {reprlib.repr(value)}; expected {expected}")


def read_objects(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield the images of Visual Genome's objects.json, one after the other; errors as of `read_entries`."""
    seen: set[int] = set()
    for place, image in enumerate(read_list(path)):
        check_entries([image], str(path), place, image_id=int, objects=list, image_url=str | None)
        where = f"{path}: image {image['image_id']}"
        if image["image_id"] in seen:
            raise ValueError(f"{where}: it is there twice; expected each image once")
        seen.add(image["image_id"])
        check_entries(image["objects"], where, object_id=int, synsets=list)
        for entry in image["objects"]:
            box = [entry.get(name) for name in "xywh"]
            if not is_box(box) or not all(isinstance(name, str) for name in entry["synsets"]):
                raise ValueError(
                    f"{where}: object {entry['object_id']} has x, y, w, h {reprlib.repr(box)} and synsets "
                    f"{reprlib.repr(entry['synsets'])}; expected finite numbers and text"
                )
        yield image


@dataclasses.dataclass
class Content:
    """A COCO file that is made, its entries as JSON: dicts would take several times the memory.

    Attributes:
      num_objects: those of Visual Genome that were looked at.
    """

    images: list[bytes] = dataclasses.field(default_factory=list)
    annotations: list[bytes] = dataclasses.field(default_factory=list)
    num_objects: int = 0

    def add(self, image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> None:
        """Add an image and what is in it."""
        self.images.append(json.dumps(image).encode())
        self.annotations += [json.dumps(annotation).encode() for annotation in annotations]

    def write(self, path: pathlib.Path, header: Mapping[str, Any]) -> None:
        """Write the file, what is the same in all of them first."""
        parts = [json.dumps(header).encode()[:-1]]
        for name, entries in (("images", self.images), ("annotations", self.annotations)):
            parts.append(f', "{name}": ['.encode())
            parts += [b", " + entry if place else entry for place, entry in enumerate(entries)]
            parts.append(b"]")
        files.write_parts(path, [*parts, b"}"])


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

    data = {}
    if options.image_data:
        entries = read_entries(options.image_data, image_id=int, url=str | None, coco_id=int | None)
        data = {entry["image_id"]: entry for entry in entries}
    minival = set()
    if options.minival:
        minival = {image["id"] for image in read_entries(options.minival, "images", id=int)}
    coco = open_instances(options.coco, Report("coco")) if options.coco else None
    # Once to know what is frequent, once to convert: the objects take gigabytes as dicts.
    counts: collections.Counter[str] = collections.Counter()
    image_ids, last_id = [], 0
    with no_garbage_collection():
        for image in read_objects(options.objects):
            image_ids.append(image["image_id"])
            last_id = max([last_id, image["image_id"], *(entry["object_id"] for entry in image["objects"])])
            counts.update(count_synsets([image]))
    categories, ids = make_categories(counts, options.num_synsets)
    coco_ids = {image_id: entry.get("coco_id") for image_id, entry in data.items()}
    splits = choose_splits(image_ids, coco_ids, minival, options.num_test)
    split_of = {image_id: name for name, members in splits.items() for image_id in members}
    contents = {name: Content() for name in splits}
    with no_garbage_collection():
        for image in read_objects(options.objects):
            content = contents[split_of[image["image_id"]]]
            content.add(*convert_image(image, ids, data.get(image["image_id"], {})))
            content.num_objects += len(image["objects"])
    synsets = synset_of_coco(counts, COCO_IDS)
    kept = {name: len(content.annotations) for name, content in contents.items()}
    if coco:
        for image, annotations in coco_entries(coco, synsets, ids, options.coco_prefix, last_id + 1):
            contents["train"].add(image, annotations)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        content.write(options.output / f"{name}.json", {"categories": categories, "synset_of_coco": synsets})
        print(
            f"{name}: {len(splits[name])} images, {kept[name]} of {content.num_objects} objects (the others have no "
            f"synset, several, or a rare one), {len(categories)} classes; {len(content.annotations) - kept[name]} "
            "annotations of COCO joined"
        )


if __name__ == "__main__":
    errors.run(main)
