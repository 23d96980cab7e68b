"""Defects to plant in a sound dataset, each with the cause that `doctor` has to name."""

import copy
import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from maskx_jax.coco import rle
from tests.doctor.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Defect:
    """`plant` changes a dataset and returns the example that must be named; `also` may be found beside `cause`."""

    plant: Callable[[Dataset], Any]
    cause: str
    also: tuple[str, ...] = ()
    pictures: bool = False
    split: str = "train"


DEFECTS: dict[str, Defect] = {}


def defect(cause: str, *also: str, pictures: bool = False, split: str = "train"):
    """Add a function to the list."""

    def add(plant: Callable[[Dataset], Any]) -> Callable[[Dataset], Any]:
        DEFECTS[plant.__name__] = Defect(plant, cause, also, pictures, split)
        return plant

    return add


def set_object(data: Dataset, place: int = 0, kind: type = list, **fields: Any) -> int:
    """Give an object other fields, take away those that are `...`; return its id."""
    annotation = data.objects(kind=kind)[place]
    for key, value in fields.items():
        if value is ...:
            annotation.pop(key, None)
        else:
            annotation[key] = value
    return annotation["id"]


def size_of(data: Dataset, annotation: dict) -> tuple[int, int]:
    return next((i["height"], i["width"]) for i in data.train["images"] if i["id"] == annotation["image_id"])


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# What follows where an object, or the name of a class, is lost.
LOST = ("class_unseen", "class_new_in_split", "image_negative", "image_crowd_only")
RENAMED = ("categories_differ", "class_new_in_split")

# The file.


@defect("file_constants", "area_filled")
def nan_in_the_json(data):
    set_object(data, area=math.nan)
    return "NaN"


@defect("section_missing", "image_negative", "class_unseen", "class_new_in_split")
def no_list_of_annotations(data):
    del data.train["annotations"]
    return "train.json"


@defect("section_invalid")
def image_that_is_a_text(data):
    data.train["images"].append("a.jpg")
    return "train.json"


@defect("image_id_invalid")
def image_id_as_text(data):
    image = data.train["images"][0]
    for annotation in data.train["annotations"]:
        if annotation["image_id"] == image["id"]:
            # As numbers they would be right again.
            annotation["image_id"] = int(image["id"])
    image["id"] = str(image["id"])
    return image["id"]


@defect("image_id_repeated")
def two_images_of_one_id(data):
    image = copy.deepcopy(data.train["images"][0])
    data.train["images"].append(image | {"file_name": data.train["images"][1]["file_name"]})
    return image["id"]


@defect("annotation_id_repeated")
def two_annotations_of_one_id(data):
    first, second = data.objects()[:2]
    second["id"] = first["id"]
    return first["id"]


@defect("annotation_id_invalid")
def annotation_without_an_id(data):
    del data.objects()[0]["id"]
    return None


@defect("reference_invalid")
def image_id_of_an_annotation_as_text(data):
    return set_object(data, image_id=str(data.objects()[0]["image_id"]))


@defect("unknown_image", *LOST)
def annotation_of_no_image(data):
    return set_object(data, image_id=987654321)


@defect("unknown_category", "class_unseen", "class_new_in_split")
def annotation_of_no_category(data):
    return set_object(data, category_id=9999)


@defect("category_invalid", *RENAMED)
def category_without_a_name(data):
    del data.train["categories"][0]["name"]
    return data.train["categories"][0]["id"]


@defect("category_repeated", *RENAMED)
def two_categories_of_one_name(data):
    data.train["categories"][1]["name"] = data.train["categories"][0]["name"]
    return data.train["categories"][1]["id"]


@defect("category_alike", "categories_differ", "class_unseen")
def categories_that_differ_in_case(data):
    name = data.train["categories"][0]["name"].upper()
    data.train["categories"].append({"id": data.train["categories"][-1]["id"] + 1, "name": name})
    return name


@defect("category_negative", "categories_differ", "category_gaps", "class_unseen")
def category_of_a_negative_id(data):
    data.train["categories"].append({"id": -3, "name": "odd"})
    return -3


@defect("category_zero", "categories_differ", "class_unseen")
def category_of_id_0(data):
    data.train["categories"].append({"id": 0, "name": "odd"})
    return 0


@defect("categories_differ", *RENAMED, split="val")
def splits_with_other_ids(data):
    first, second = data.val["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    return "val"


@defect("class_new_in_split", "class_unseen", split="val")
def class_that_only_val_has(data):
    used = {annotation["category_id"] for annotation in data.val["annotations"]}
    category = next(c for c in data.train["categories"] if c["id"] in used)
    data.train["annotations"] = [a for a in data.train["annotations"] if a["category_id"] != category["id"]]
    return category["name"]


@defect("class_unseen", split="train")
def class_without_an_object(data):
    for content in data.contents.values():
        content["categories"].append({"id": content["categories"][-1]["id"] + 1, "name": "unicorn"})
    return "unicorn"


@defect("file_name_invalid")
def image_without_a_file_name(data):
    # Without annotations, which would be lost with it.
    data.train["images"].append({"id": 77_777, "height": 10, "width": 10})
    return 77_777


@defect("file_name_outside")
def image_file_outside_of_the_folder(data):
    image = data.train["images"][0]
    image["file_name"] = "../" + image["file_name"]
    return image["id"]


@defect("image_same_file")
def two_images_of_one_file(data):
    image = data.train["images"][1]
    image["file_name"] = data.train["images"][0]["file_name"]
    return image["id"]


@defect("image_size_invalid", "object_unchecked", *LOST)
def image_of_no_height(data):
    image = data.train["images"][0]
    image["height"] = 0
    return image["id"]


@defect(
    "image_size_swapped",
    *("box_outside", "box_clipped", "box_maybe_corners", "mask_empty", "mask_leaves_image", "mask_leaves_box"),
)
def width_and_height_exchanged(data):
    wide = {i["id"]: i for i in data.train["images"] if i["width"] > 1.2 * i["height"]}
    right = [a for a in data.objects() if a["image_id"] in wide]
    image = wide[max(right, key=lambda a: (a["bbox"][0] + a["bbox"][2]) / wide[a["image_id"]]["width"])["image_id"]]
    image["height"], image["width"] = image["width"], image["height"]
    return image["id"]


@defect("iscrowd_filled")
def annotation_without_iscrowd(data):
    return set_object(data, iscrowd=...)


@defect("iscrowd_invalid")
def iscrowd_that_is_a_text(data):
    return set_object(data, iscrowd="0")


@defect("ignore_as_crowd", "image_crowd_only", "class_unseen", "class_new_in_split")
def annotation_to_ignore(data):
    return set_object(data, ignore=1)


@defect("area_filled")
def annotation_without_an_area(data):
    return set_object(data, area=...)


@defect("area_repaired")
def area_of_zero(data):
    return set_object(data, area=0)


# Boxes.


@defect("box_empty", *LOST)
def box_without_a_width(data):
    x, y, _, height = data.objects()[0]["bbox"]
    return set_object(data, bbox=[x, y, 0, height])


@defect("box_empty", *LOST)
def box_of_negative_height(data):
    x, y, width, height = data.objects()[0]["bbox"]
    return set_object(data, bbox=[x, y + height, width, -height])


@defect("box_invalid", "file_constants", *LOST)
def box_that_is_not_finite(data):
    return set_object(data, bbox=[1.0, math.inf, 5.0, 5.0])


@defect("box_invalid", *LOST)
def box_of_five_numbers(data):
    return set_object(data, bbox=[*data.objects()[0]["bbox"], 1.0])


@defect("box_filled")
def annotation_without_a_box(data):
    return set_object(data, bbox=...)


@defect("box_outside", *LOST)
def box_outside_of_the_image(data):
    return set_object(data, bbox=[9000, 9000, 50, 50])


@defect("box_clipped", "box_loose", "mask_box_differ", "area_repaired")
def box_partly_outside(data):
    annotation = data.objects()[1]
    x, y, _, height = annotation["bbox"]
    return set_object(data, 1, bbox=[x, y, size_of(data, annotation)[1] - x + 20, height])


@defect("box_maybe_corners", "box_clipped", "box_loose", "mask_box_differ")
def one_box_as_corners(data):
    wide = [
        a for a in data.objects() if 2 * a["bbox"][0] + a["bbox"][2] > 1.2 * size_of(data, a)[1] and a["bbox"][0] > 9
    ]
    annotation = wide[0]
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x, y, x + width, y + height]
    return annotation["id"]


@defect("boxes_corners", *LOST)
def all_boxes_as_corners(data):
    for annotation in data.train["annotations"]:
        x, y, width, height = annotation["bbox"]
        # Far enough from the corner, where corners do not differ from sides.
        annotation["bbox"] = [x, y, x + width, y + height]
    kept = [a for a in data.train["annotations"] if a["bbox"][0] > 40 and a["bbox"][1] > 40]
    sizes = {image["id"]: (image["height"], image["width"]) for image in data.train["images"]}
    outside = [
        a
        for a in kept
        if a["bbox"][0] + a["bbox"][2] > sizes[a["image_id"]][1] + 1
        or a["bbox"][1] + a["bbox"][3] > sizes[a["image_id"]][0] + 1
    ]
    data.train["annotations"] = outside
    return "train.json"


@defect("boxes_fractions")
def all_boxes_as_fractions(data):
    for annotation in data.train["annotations"]:
        height, width = size_of(data, annotation)
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x / width, y / height, w / width, h / height]
    return "train.json"


@defect("box_tiny", "class_mixed", "mask_missing")
def box_of_half_a_pixel(data):
    x, y = data.objects()[0]["bbox"][:2]
    return set_object(data, bbox=[x + 1, y + 1, 0.5, 9], area=4.5, segmentation=[])


@defect("box_loose", "mask_box_differ")
def box_larger_than_its_mask(data):
    annotation = next(a for a in data.objects() if a["bbox"][0] > 30 and a["bbox"][1] > 20)
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x / 2, y, width + x / 2, height]
    annotation["area"] = min(annotation["area"], width * height)
    return annotation["id"]


@defect("box_twice")
def object_annotated_twice(data):
    twin = copy.deepcopy(data.objects()[0]) | {"id": 4_000_000_001}
    data.train["annotations"].append(twin)
    return twin["id"]


@defect("box_twice")
def box_drawn_twice(data):
    first = data.objects()[0]
    twin = copy.deepcopy(first) | {"id": 4_000_000_001}
    x, y, width, height = first["bbox"]
    twin["bbox"] = [x + 0.01 * width, y, 0.99 * width, height]
    data.train["annotations"].append(twin)
    return twin["id"]


@defect("box_two_classes", "class_unseen")
def one_box_of_two_classes(data):
    first = data.objects()[0]
    other = next(c["id"] for c in data.val["categories"] if c["id"] != first["category_id"])
    used = {a["category_id"] for a in data.train["annotations"]} - {first["category_id"]}
    twin = copy.deepcopy(first) | {"id": 4_000_000_001, "category_id": min(used, default=other)}
    data.train["annotations"].append(twin)
    return twin["id"]


# Masks.

BOX_ONLY = ("class_mixed",)


@defect("mask_missing", *BOX_ONLY)
def object_without_a_mask(data):
    return set_object(data, segmentation=[])


@defect("mask_missing", *BOX_ONLY)
def object_whose_mask_is_null(data):
    return set_object(data, segmentation=None)


@defect("mask_malformed", *BOX_ONLY)
def mask_that_is_a_text(data):
    return set_object(data, segmentation="polygon")


@defect("polygon_flat")
def polygon_that_is_in_no_list(data):
    single = next(a for a in data.objects() if len(a["segmentation"]) == 1)
    single["segmentation"] = single["segmentation"][0]
    return single["id"]


@defect("polygon_dropped")
def polygon_of_two_points_beside_another(data):
    return set_object(data, segmentation=[*data.objects()[0]["segmentation"], [1, 1, 5, 5]])


@defect("polygon_none_left", *BOX_ONLY)
def polygon_of_two_points(data):
    return set_object(data, segmentation=[[1, 1, 5, 5]])


@defect("polygon_none_left", *BOX_ONLY)
def polygon_of_an_odd_count(data):
    return set_object(data, segmentation=[[1, 1, 5, 5, 1, 9, 3]])


@defect("polygon_none_left", "file_constants", *BOX_ONLY)
def polygon_with_nan(data):
    return set_object(data, segmentation=[[1, 1, 5, 5, 1, math.nan]])


@defect("polygon_none_left", *BOX_ONLY)
def polygon_of_texts(data):
    return set_object(data, segmentation=[["1", "1", "5", "5", "1", "9"]])


@defect("polygon_none_left", *BOX_ONLY)
def polygon_without_an_end(data):
    return set_object(data, segmentation=[[0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]])


@defect("mask_empty", *BOX_ONLY)
def polygon_outside_of_the_image(data):
    return set_object(data, segmentation=[[9000, 9000, 9050, 9000, 9050, 9050, 9000, 9040]])


@defect("mask_empty", *BOX_ONLY)
def polygon_on_a_line(data):
    x, y, width, _ = data.objects()[0]["bbox"]
    return set_object(data, segmentation=[[x, y, x + width, y, x, y]])


@defect("mask_leaves_image", "area_repaired")
def polygon_that_leaves_the_image(data):
    annotation = data.objects()[0]
    w = annotation["bbox"][2]
    x, y, h = size_of(data, annotation)[1] - w, annotation["bbox"][1], annotation["bbox"][3]
    outline = [x, y, x + w + 30, y + h / 3, x + w + 30, y + h / 2, x, y + h]
    return set_object(data, segmentation=[outline], bbox=[x, y, w, h], area=w * h / 2)


@defect("mask_leaves_box", "area_repaired")
def mask_that_leaves_its_box(data):
    annotation = next(a for a in data.objects() if len(a["segmentation"]) == 1 and a["bbox"][2] > 60)
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x, y, 0.75 * width, height]
    annotation["area"] = min(annotation["area"], 0.7 * width * height)
    return annotation["id"]


@defect("mask_box_differ", "mask_leaves_box", "box_loose")
def mask_of_another_object(data):
    first, second = data.objects()[:2]
    x, y, *_ = second["bbox"]
    outline = [x, y, x + 20, y, x + 20, y + 12, x + 8, y + 20, x, y + 20]
    # Far from it: at the other end of its box.
    left, top, width, height = first["bbox"]
    outline = [left, top, left + width / 3, top, left + width / 3, top + height / 4, left + 3, top + height / 3]
    first["segmentation"], first["area"] = [outline], width * height / 12
    return first["id"]


@defect("class_rectangles", "mask_rectangle", "area_repaired", "mask_crosses")
def class_whose_masks_are_boxes(data):
    name = next(c["name"] for c in data.train["categories"] if c["id"] == data.objects()[0]["category_id"])
    same = [a for a in data.objects() if a["category_id"] == data.objects()[0]["category_id"]]
    for number in range(max(0, 5 - len(same))):
        twin = copy.deepcopy(same[0]) | {"id": 4_000_000_001 + number}
        twin["bbox"] = [1 + 40 * number, 1, 30, 30]
        data.train["annotations"].append(twin)
        same.append(twin)
    for annotation in same:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotation["area"] = w * h
    return name


@defect("mask_crosses", "area_repaired")
def polygon_whose_corners_are_out_of_order(data):
    x, y, w, h = data.objects()[0]["bbox"]
    outline = [x, y, x + w, y + h, x + w, y, x, y + h]
    return set_object(data, segmentation=[outline], area=w * h / 2)


def _runs(data: Dataset, annotation: dict) -> dict:
    runs = rle.draw(annotation["segmentation"], size_of(data, annotation))
    return {**runs, "counts": bytes(runs["counts"]).decode()}


@defect("rle_other_size", "rle_compressed", *BOX_ONLY)
def runs_of_another_size(data):
    runs = _runs(data, data.objects()[0])
    height, width = runs["size"]
    return set_object(data, segmentation={**runs, "size": [width + 1, height]})


@defect("rle_corrupt", "rle_compressed", *BOX_ONLY)
def runs_that_fill_too_little(data):
    annotation = data.objects()[0]
    height, width = size_of(data, annotation)
    runs = rle.encode(np.ones((height, width - 1), bool))
    return set_object(data, segmentation={**runs, "size": [height, width]})


@defect("rle_corrupt", "rle_uncompressed", *BOX_ONLY)
def list_of_runs_that_fills_too_little(data):
    return set_object(data, segmentation={"size": list(size_of(data, data.objects()[0])), "counts": [5, 6, 7]})


@defect("rle_corrupt", "rle_compressed", *BOX_ONLY)
def runs_that_are_no_runs(data):
    return set_object(data, segmentation={"size": list(size_of(data, data.objects()[0])), "counts": "oh no"})


@defect("mask_empty", "rle_compressed", *BOX_ONLY)
def runs_without_a_pixel(data):
    size = size_of(data, data.objects()[0])
    return set_object(data, segmentation=rle.encode(np.zeros(size, bool)))


# Keypoints.


def _name_keypoints(data: Dataset, category_id: int, **category: Any) -> None:
    for content in data.contents.values():
        entry = next(entry for entry in content["categories"] if entry["id"] == category_id)
        entry |= {"keypoints": ["left eye", "right eye"], "skeleton": [[1, 2]]} | category


def _with_keypoints(data: Dataset, points: Any, number: Any = 2, **category: Any) -> int:
    _name_keypoints(data, data.objects()[0]["category_id"], **category)
    return set_object(data, keypoints=points, num_keypoints=number)


@defect("keypoints_number")
def five_numbers_for_two_keypoints(data):
    return _with_keypoints(data, [1, 1, 2, 3, 3])


@defect("keypoints_invalid")
def keypoint_of_visibility_3(data):
    return _with_keypoints(data, [1, 1, 3, 3, 3, 2])


@defect("keypoints_outside")
def keypoint_outside_of_the_image(data):
    return _with_keypoints(data, [1, 1, 2, 9000, 3, 2])


@defect("keypoints_count")
def wrong_number_of_keypoints(data):
    return _with_keypoints(data, [0, 0, 0, 0, 0, 0], 2)


@defect("keypoints_unnamed")
def keypoints_without_names(data):
    _with_keypoints(data, [1, 1, 2, 3, 3, 2], keypoints=[], skeleton=[])
    return data.objects()[0]["category_id"]


@defect("keypoints_skeleton")
def skeleton_of_unknown_keypoints(data):
    _with_keypoints(data, [1, 1, 2, 3, 3, 2], skeleton=[[1, 3]])
    return data.objects()[0]["category_id"]


@defect("keypoints_differ")
def categories_with_different_skeletons(data):
    first, other = data.train["categories"][:2]
    _name_keypoints(data, first["id"])
    _name_keypoints(data, other["id"], keypoints=["left eye", "right eye", "nose"])
    return other["id"]


@defect("keypoints_differ_in_split", split="val")
def keypoints_of_one_split_only(data):
    _name_keypoints(data, data.train["categories"][0]["id"])
    data.contents["val"]["categories"][0]["skeleton"] = []
    return "val"


@defect("keypoints_skeleton")
def names_of_keypoints_that_repeat(data):
    _with_keypoints(data, [1, 1, 2, 3, 3, 2], keypoints=["eye", "eye"])
    return data.objects()[0]["category_id"]


@defect("keypoints_unpaired")
def left_without_right(data):
    _with_keypoints(data, [1, 1, 2, 3, 3, 2], keypoints=["left eye", "nose"])
    return data.objects()[0]["category_id"]


# Sets.


@defect("image_negative", *LOST)
def image_without_annotations(data):
    image_id = data.objects()[0]["image_id"]
    data.train["annotations"] = [a for a in data.train["annotations"] if a["image_id"] != image_id]
    return image_id


@defect("image_crowd_only", *LOST)
def image_with_crowds_only(data):
    image_id = data.objects()[0]["image_id"]
    for annotation in data.train["annotations"]:
        if annotation["image_id"] == image_id:
            annotation["iscrowd"] = 1
    return image_id


# Pictures.

SKIPPED = ("annotation_image_skipped", "file_unlisted", *LOST)


@defect("image_missing", *SKIPPED, pictures=True)
def picture_that_is_missing(data):
    data.picture().unlink()
    return data.train["images"][0]["id"]


@defect("image_skipped", *SKIPPED, pictures=True)
def picture_of_zero_bytes(data):
    data.write(data.picture(), b"")
    return data.train["images"][0]["id"]


@defect("image_skipped", *SKIPPED, pictures=True)
def picture_that_is_cut_off(data):
    content = data.picture().read_bytes()
    data.write(data.picture(), content[: len(content) // 2])
    return data.train["images"][0]["id"]


@defect("image_skipped", *SKIPPED, pictures=True)
def text_that_is_called_a_picture(data):
    data.write(data.picture(), b"<html>404</html>")
    return data.train["images"][0]["id"]


@defect("image_missing", *SKIPPED, pictures=True)
def name_in_other_case(data):
    image = data.train["images"][0]
    image["file_name"] = image["file_name"].upper()
    return image["id"]


@defect("image_missing", *SKIPPED, pictures=True)
def link_to_itself(data):
    path = data.picture()
    path.unlink()
    path.symlink_to(path)
    return data.train["images"][0]["id"]


@defect("image_skipped", *SKIPPED, pictures=True)
def picture_of_too_many_pixels(data):
    # A header is enough.
    header = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    header[16:24] = np.array([60_000, 60_000], ">u4").tobytes()
    data.write(data.picture(), bytes(header))
    return data.train["images"][0]["id"]


@defect("image_other_size", *LOST, pictures=True)
def picture_that_was_resized(data):
    with Image.open(data.picture()) as image:
        half = image.convert("RGB").resize((image.width // 2, image.height // 2))
    data.write(data.picture(), encoded(half, "PNG"))
    return data.train["images"][0]["id"]


@defect("image_other_size", pictures=True)
def picture_that_was_turned(data):
    with Image.open(data.picture()) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    data.write(data.picture(), encoded(turned, "PNG"))
    return data.train["images"][0]["id"]


@defect("image_turned", pictures=True)
def picture_turned_by_exif(data):
    with Image.open(data.picture()) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    data.write(data.picture(), encoded(turned, "JPEG", exif=exif))
    return data.train["images"][0]["id"]


@defect("image_turn_ambiguous", pictures=True)
def picture_turned_upside_down_by_exif(data):
    with Image.open(data.picture()) as image:
        exif = Image.Exif()
        exif[0x0112] = 3
        data.write(data.picture(), encoded(image.convert("RGB"), "JPEG", exif=exif))
    return data.train["images"][0]["id"]


@defect("image_converted", pictures=True)
def picture_in_cmyk(data):
    with Image.open(data.picture()) as image:
        data.write(data.picture(), encoded(image.convert("CMYK"), "JPEG"))
    return data.train["images"][0]["id"]


@defect("image_converted", pictures=True)
def picture_of_16_bits(data):
    with Image.open(data.picture()) as image:
        gray = np.asarray(image.convert("L")).astype(np.uint16) << 8
    data.write(data.picture(), encoded(Image.fromarray(gray), "PNG"))
    return data.train["images"][0]["id"]


@defect("image_size_filled", pictures=True)
def image_whose_size_the_json_lacks(data):
    image = data.train["images"][0]
    del image["height"], image["width"]
    return image["id"]


@defect("image_thin", *LOST, pictures=True)
def picture_of_a_line(data):
    image = {"id": 77_777, "file_name": "line.png", "height": 1, "width": 500}
    data.train["images"].append(image)
    data.write(data.root / "train" / "line.png", encoded(Image.new("RGB", (500, 1)), "PNG"))
    return image["id"]


@defect("image_twice", *LOST, pictures=True)
def picture_that_comes_twice(data):
    first, second = data.train["images"][:2]
    second |= {key: first[key] for key in ("height", "width")}
    data.train["annotations"] = [a for a in data.train["annotations"] if a["image_id"] != second["id"]]
    data.write(data.picture(1), data.picture(0).read_bytes())
    return second["id"]


@defect("image_in_splits", *LOST, pictures=True, split="val")
def picture_of_both_splits(data):
    first, second = data.train["images"][0], data.val["images"][0]
    second |= {key: first[key] for key in ("height", "width")}
    data.val["annotations"] = [a for a in data.val["annotations"] if a["image_id"] != second["id"]]
    data.write(data.picture(0, "val"), data.picture(0).read_bytes())
    return second["id"]


@defect("image_alike_in_splits", *LOST, pictures=True, split="val")
def picture_of_both_splits_encoded_again(data):
    first, second = data.train["images"][0], data.val["images"][0]
    second |= {key: first[key] for key in ("height", "width")}
    data.val["annotations"] = [a for a in data.val["annotations"] if a["image_id"] != second["id"]]
    with Image.open(data.picture()) as image:
        data.write(data.picture(0, "val"), encoded(image.convert("RGB"), "JPEG", quality=60))
    return second["id"]


@defect("file_unlisted", pictures=True)
def file_that_the_json_does_not_name(data):
    data.write(data.root / "train" / "more.png", encoded(Image.new("RGB", (32, 32)), "PNG"))
    return "more.png"
