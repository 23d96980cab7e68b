"""What `doctor` can find: a name, how grave it is, and what it means."""

from maskx_jax.data.coco.report import REASONS

# An error stops `prepare`, or costs it an image, an object, a mask or keypoints. A warning is probably wrong, and is
# kept. A note is worth knowing.
LEVELS = ("error", "warning", "note")

# Of `prepare`'s reasons; those that are not named here are notes.
_LEVEL_OF_REASON = {
    **dict.fromkeys(("image_skipped", "image_other_size", "unknown_category", "unknown_image"), "error"),
    **dict.fromkeys(("box_invalid", "box_empty", "box_outside", "mask_malformed", "polygon_dropped"), "error"),
    **dict.fromkeys(("polygon_none_left", "rle_other_size", "rle_corrupt", "mask_empty"), "error"),
    **dict.fromkeys(("keypoints_unnamed", "keypoints_number", "keypoints_invalid", "keypoints_outside"), "error"),
    **dict.fromkeys(("image_turn_ambiguous", "image_all_dropped", "box_clipped", "area_filled"), "warning"),
    **dict.fromkeys(("area_repaired", "polygon_flat", "mask_box_differ", "keypoints_count"), "warning"),
}

# What `prepare` stops at.
_STOPS = {
    "section_missing": "lists that the file does not have: taken as empty",
    "section_invalid": "lists that are none, or hold something else than objects: what is no object is left out",
    "images_empty": "there is no image",
    "categories_empty": "there is no category",
    "category_invalid": "categories without a whole number 'id' and a text 'name'",
    "category_repeated": "categories whose id or name is another's",
    "categories_differ": "splits whose categories differ in ids, names or their order",
    "image_id_invalid": "images whose id is no whole number",
    "image_id_repeated": "images whose id is another's",
    "annotation_id_invalid": "annotations whose id is no whole number",
    "annotation_id_repeated": "annotations whose id is another's",
    "reference_invalid": "annotations whose image_id or category_id is no whole number",
    "file_name_invalid": "images without a file_name that a file can have",
    "file_name_outside": "images whose file_name leads out of the image folder",
    "image_missing": "images whose file is missing, or is no regular file",
    "image_size_invalid": "images whose height and width are no whole numbers of pixels",
    "iscrowd_invalid": "annotations whose iscrowd is neither 0 nor 1",
    "ignore_invalid": "annotations whose ignore is neither 0 nor 1",
    "boxes_fractions": "files whose boxes look like fractions of the image; COCO's are in pixels",
    "boxes_corners": "files whose boxes look like x1, y1, x2, y2; COCO's are x, y, width, height",
    "keypoints_skeleton": "categories whose keypoints, skeleton, flip pairs or sigmas do not fit each other",
    "keypoints_differ": "categories with another skeleton than the first that has one",
    "keypoints_differ_in_split": "splits whose categories name other keypoints than those of the first split",
    "mask_classes_unknown": "data.mask_classes of the config does not fit the categories",
}

_WARNINGS = {
    "file_mark": "the file begins with a byte order mark: many readers refuse it",
    "file_constants": "numbers written as NaN or Infinity: they are no JSON, and many readers refuse them",
    "category_alike": "categories whose names differ in case and spaces only",
    "category_negative": "categories with a negative id: other readers refuse or misread them",
    "image_same_file": "images with the file of another",
    "image_size_swapped": "images whose boxes fit only if width and height are exchanged",
    "image_thin": "images more than 16 times as long as wide, or shorter than 16 pixels",
    "image_over_slots": "images with more objects than data.transform.num_slots: those over it are not trained on",
    "image_twice": "images with the same pixels as another one of the split",
    "image_in_splits": "images with the same pixels as one of another split: what is scored was trained on",
    "image_alike_in_splits": "images that look the same as one of another split (resized, or encoded again)",
    "class_new_in_split": "classes that only a later split has: the first, which is trained on, has no object of them",
    "class_rectangles": "classes most of whose masks are just their boxes: they teach boxes, not shapes",
    "class_without_masks": "classes that shall keep their masks (data.mask_classes), and have none",
    "box_maybe_corners": "annotations whose bbox reaches far outside the image, and fits as x1, y1, x2, y2",
    "box_twice": "annotations whose bbox is that of another of the class (IoU 0.95 or more)",
    "box_two_classes": "annotations whose bbox is that of another class' (IoU 0.98 or more)",
    "box_loose": "annotations whose bbox is larger than their mask by a tenth of a side and 4 pixels, or more",
    "mask_leaves_box": "annotations whose mask leaves their bbox by a tenth of a side and 4 pixels, or more",
    "mask_leaves_image": "annotations whose mask leaves the image by more than 2 pixels",
    "mask_crosses": "annotations with a polygon whose outline crosses itself: its corners are out of order",
    "keypoints_unpaired": "categories with a left keypoint that has no right one: flips would exchange wrong ones",
    "lvis_lists": "images without LVIS' neg_category_ids or not_exhaustive_category_ids, which others have",
}

_NOTES = {
    "category_gaps": "category ids that do not follow each other: fine here, others may take them as labels",
    "category_zero": "a category has id 0, which others take as background",
    "class_unseen": "classes without any object",
    "class_mixed": "classes of which some objects have masks and some have boxes only",
    "file_unlisted": "files of the image folder that the JSON does not name",
    "object_unchecked": "annotations of images whose size is not known: not looked at (pictures may say it)",
    "box_tiny": "annotations whose bbox is less than a pixel wide or high",
    "box_vanishes": "annotations whose bbox is smaller than data.transform.min_box_side on the canvas: not trained on",
}

MEANINGS = {**REASONS, **_STOPS, **_WARNINGS, **_NOTES}


def level_of(cause: str) -> str:
    """Return which of `LEVELS` a cause is."""
    if cause in REASONS:
        return _LEVEL_OF_REASON.get(cause, "note")
    return "error" if cause in _STOPS else "warning" if cause in _WARNINGS else "note"
