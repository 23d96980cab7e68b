"""Pictures of ground truth and predictions, side by side."""

import colorsys
import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskx_jax.coco import rle
from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.evaluation.skeleton_drawing import draw_skeleton

_MASK_OPACITY = 0.45
# Images whose longer side lies outside this range are resized to it, so that the captions can be read.
_SHORTEST_PICTURE = 640
_LONGEST_PICTURE = 1600
_FONT_SIZE = 14
_GAP = 8


def draw_comparison(
    image: np.ndarray,
    annotations: Sequence[Mapping],
    results: Mapping[str, Sequence[Mapping]],
    names: Mapping[int, str],
    groups: Mapping[int, str] | None = None,
    score_threshold: float = 0.5,
    pictures: Mapping[str, np.ndarray] | None = None,
    skeletons: Mapping[int, Skeleton] | None = None,
) -> np.ndarray:
    """Draw the ground truth of an image on the left and what one or several models predict next to it.

    Masks are translucent, one color for each category; crowds and objects without a mask show as boxes, crowds with
    "(crowd)" after their name. Characters that the font lacks show as "?", with the category's id after them. Keypoints
    are joined as their skeleton says; see `skeleton_drawing`.

    Args:
      image: `h w 3` uint8 RGB.
      annotations: COCO annotations of this image.
      results: COCO results entries of this image, by the title of their panel.
      names: category name by category id.
      groups: a mark such as "A" or "B" by category id, drawn after the name.
      score_threshold: predictions below are left out.
      pictures: other pictures of the same image, uint8 RGB of any size, by the title of their panel; on the right.
      skeletons: of the classes that have keypoints, by category id.

    Returns:
      The picture, uint8 RGB, somewhat wider than the images side by side.

    Raises:
      ValueError: the image is not `h w 3` uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"got an image of shape {image.shape} and type {image.dtype}; expected (h, w, 3) uint8")
    truth = draw_objects(image, annotations, names, groups, skeletons)
    panels = [_add_title(truth, f"ground truth: {len(annotations)}")]
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    for title, found in results.items():
        # The best goes last, on top of the others.
        shown = sorted((r for r in found if r["score"] >= score_threshold), key=lambda result: result["score"])
        panel = draw_objects(image, shown, names, groups, skeletons)
        panels += [gap, _add_title(panel, f"{title} with score >= {score_threshold:g}: {len(shown)}")]
    for title, picture in (pictures or {}).items():
        # Each of its pixels shows as a square.
        panels += [gap, _add_title(cv2.resize(picture, truth.shape[1::-1], interpolation=cv2.INTER_NEAREST), title)]
    return np.concatenate(panels, axis=1)


def draw_objects(
    image: np.ndarray,
    objects: Sequence[Mapping],
    names: Mapping[int, str],
    groups: Mapping[int, str] | None = None,
    skeletons: Mapping[int, Skeleton] | None = None,
) -> np.ndarray:
    """Draw objects on an image, the later ones on top of the earlier; see `draw_comparison`.

    Args:
      image: `h w 3` uint8 RGB.
      objects: COCO annotations or results entries of this image.
      names: category name by category id.
      groups: a mark by category id, drawn after the name.
      skeletons: of the classes that have keypoints, by category id.

    Returns:
      The picture, uint8 RGB; its longer side has 640 to 1,600 pixels.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = float(np.clip(longest, _SHORTEST_PICTURE, _LONGEST_PICTURE)) / longest
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    canvas = cv2.resize(image, size, interpolation=interpolation) if scale != 1 else image.copy()
    for entry in objects:
        encoded = _mask(entry, height, width)
        if encoded is not None:
            _tint(canvas, encoded, _color(entry["category_id"]))
    for entry in objects:
        if skeleton := (skeletons or {}).get(entry["category_id"]):
            draw_skeleton(canvas, entry, skeleton, scale)

    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = _font()
    for entry in objects:
        x, y, w, h = _box(entry, scale)
        color = _color(entry["category_id"])
        draw.rectangle((x, y, max(x, x + w - 1), max(y, y + h - 1)), outline=color, width=2)
        text = _caption(entry, names, groups or {})
        x1, _, x2, y2 = draw.textbbox((0, 0), text, font=font)
        # Above the box; inside of it where there is no room; never beyond the right border.
        text_x = max(0, min(x, size[0] - (x2 - x1) - 4))
        text_y = y - y2 - 2 if y >= y2 + 2 else y
        draw.rectangle((text_x, text_y, text_x + x2 - x1 + 4, text_y + y2 + 2), fill=color)
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        draw.text((text_x + 2 - x1, text_y), text, fill=(0, 0, 0) if luminance > 140 else (255, 255, 255), font=font)
    return np.asarray(picture)


def _tint(canvas: np.ndarray, encoded: dict, color: tuple[int, int, int]) -> None:
    """Color the pixels of a mask in a picture of its image, of any size."""
    x, y, w, h = rle.tight_box(encoded)
    height, width = encoded["size"]
    # The centre of each pixel of the picture lies in one of the image: what is shown is what is scored.
    rows, columns = (
        np.minimum(((np.arange(length) + 0.5) * full / length).astype(int), full - 1)
        for length, full in zip(canvas.shape[:2], (height, width), strict=True)
    )
    top, bottom = np.searchsorted(rows, [y, y + h])
    left, right = np.searchsorted(columns, [x, x + w])
    inside = rle.decode(encoded)[rows[top:bottom, None], columns[left:right]]
    part = canvas[top:bottom, left:right]
    part[inside] = ((1 - _MASK_OPACITY) * part[inside] + _MASK_OPACITY * np.array(color)).astype(np.uint8)


def _mask(entry: Mapping, height: int, width: int) -> dict | None:
    """Return the compressed mask of an annotation or a result, or None if it is a crowd or has none."""
    return None if entry.get("iscrowd") else rle.of_segmentation(entry.get("segmentation"), (height, width))


def _box(entry: Mapping, scale: float) -> tuple[int, int, int, int]:
    if "bbox" in entry:
        box = entry["bbox"]
    elif "segmentation" in entry:
        box = rle.tight_box(entry["segmentation"])
    else:
        points = np.array(entry["keypoints"], np.float64).reshape(-1, 3)[:, :2] + 0.5
        box = [*points.min(axis=0), *np.ptp(points, axis=0)]
    x, y, w, h = (round(float(value) * scale) for value in box)
    return x, y, w, h


def _caption(entry: Mapping, names: Mapping[int, str], groups: Mapping[int, str]) -> str:
    category_id = entry["category_id"]
    name = str(names.get(category_id, ""))
    words = [_shown(name)] if name else []
    if not name or _shown(name) != name:
        words.append(f"category {category_id}")
    if category_id in groups:
        words.append(groups[category_id])
    if "score" in entry:
        words.append(f"{entry['score']:.2f}")
    if entry.get("iscrowd"):
        words.append("(crowd)")
    return " ".join(words)


def _shown(text: str) -> str:
    """Return a text with "?" for every character that the font has no glyph for."""
    return "".join(character if _has_glyph(character) else "?" for character in text)


@functools.cache
def _has_glyph(character: str) -> bool:
    # No font has this one: it shows as the box that stands for a missing glyph.
    missing, drawn = (_font().getmask(text) for text in ("\U0010ffff", character))
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _color(category_id: int) -> tuple[int, int, int]:
    """Return a color that stays the same for a category; steps of the golden ratio keep neighbors apart."""
    red, green, blue = colorsys.hsv_to_rgb(category_id % 2**16 * 0.618034 % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _add_title(panel: np.ndarray, title: str) -> np.ndarray:
    font = _font()
    picture = Image.new("RGB", (panel.shape[1], panel.shape[0] + _FONT_SIZE + 8), (255, 255, 255))
    picture.paste(Image.fromarray(panel), (0, _FONT_SIZE + 8))
    ImageDraw.Draw(picture).text((4, 2), _shown(title), fill=(0, 0, 0), font=font)
    return np.asarray(picture)
