"""Pictures of ground truth and predictions, side by side."""

import colorsys
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from faster_coco_eval import mask as mask_coder
from PIL import Image, ImageDraw, ImageFont

_MASK_OPACITY = 0.45
# An image is enlarged until its longer side has this many pixels, so that the words on it can be read.
_SHORTEST_PICTURE = 640
_FONT_SIZE = 14
_GAP = 8


def draw_comparison(
    image: np.ndarray,
    annotations: Sequence[Mapping],
    results: Mapping[str, Sequence[Mapping]],
    names: Mapping[int, str],
    groups: Mapping[int, str] | None = None,
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Draw the ground truth of an image on the left and what one or several models predict beside it.

    Masks are translucent, one color for each category; crowds and objects without a mask show as boxes, crowds with
    "(crowd)" after their name.

    Args:
      image: `h w 3` uint8 RGB.
      annotations: COCO annotations of this image.
      results: COCO results entries of this image, by the title of their panel.
      names: category name by category id.
      groups: a mark such as "A" or "B" by category id, drawn after the name.
      score_threshold: predictions below are left out.

    Returns:
      The picture, uint8 RGB, somewhat wider than the images side by side.

    Raises:
      ValueError: the image is not `h w 3` uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"got an image of shape {image.shape} and type {image.dtype}; expected (h, w, 3) uint8")
    panels = [_add_title(_draw_objects(image, annotations, names, groups or {}), f"ground truth: {len(annotations)}")]
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    for title, found in results.items():
        # The best goes last, on top of the others.
        shown = sorted((r for r in found if r["score"] >= score_threshold), key=lambda result: result["score"])
        panel = _draw_objects(image, shown, names, groups or {})
        panels += [gap, _add_title(panel, f"{title} with score >= {score_threshold:g}: {len(shown)}")]
    return np.concatenate(panels, axis=1)


def _draw_objects(
    image: np.ndarray, objects: Sequence[Mapping], names: Mapping[int, str], groups: Mapping[int, str]
) -> np.ndarray:
    height, width = image.shape[:2]
    scale = max(1.0, _SHORTEST_PICTURE / max(height, width))
    size = round(width * scale), round(height * scale)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    for entry in objects:
        bitmap = _bitmap(entry, height, width)
        if bitmap is None:
            continue
        # Nearest: the picture shows the pixels that are scored.
        inside = cv2.resize(bitmap, size, interpolation=cv2.INTER_NEAREST).astype(bool)
        tint = np.array(_color(entry["category_id"]))
        canvas[inside] = ((1 - _MASK_OPACITY) * canvas[inside] + _MASK_OPACITY * tint).astype(np.uint8)

    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_SIZE)
    for entry in objects:
        x, y, w, h = _box(entry, scale)
        color = _color(entry["category_id"])
        draw.rectangle((x, y, max(x, x + w - 1), max(y, y + h - 1)), outline=color, width=2)
        text = _caption(entry, names, groups)
        x1, _, x2, y2 = draw.textbbox((0, 0), text, font=font)
        # Above the box; inside of it where there is no room; never beyond the right border.
        text_x = max(0, min(x, size[0] - (x2 - x1) - 4))
        text_y = y - y2 - 2 if y >= y2 + 2 else y
        draw.rectangle((text_x, text_y, text_x + x2 - x1 + 4, text_y + y2 + 2), fill=color)
        luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        draw.text((text_x + 2 - x1, text_y), text, fill=(0, 0, 0) if luminance > 140 else (255, 255, 255), font=font)
    return np.asarray(picture)


def _bitmap(entry: Mapping, height: int, width: int) -> np.ndarray | None:
    """Return the mask of an annotation or a result, uint8 `h w`, or None if it is a crowd or has none."""
    segmentation = entry.get("segmentation")
    if not segmentation or entry.get("iscrowd"):
        return None
    if isinstance(segmentation, dict):
        encoded = segmentation
        if isinstance(segmentation["counts"], list):
            encoded = mask_coder.frPyObjects(segmentation, height, width)
    else:
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return None
        encoded = mask_coder.merge(mask_coder.frPyObjects(polygons, height, width))
    # pycocotools 2.0.11 gives the same with a deprecation warning of NumPy 2.
    return mask_coder.decode(encoded)


def _box(entry: Mapping, scale: float) -> tuple[int, int, int, int]:
    box = entry["bbox"] if "bbox" in entry else mask_coder.toBbox(entry["segmentation"])
    x, y, w, h = (round(float(value) * scale) for value in box)
    return x, y, w, h


def _caption(entry: Mapping, names: Mapping[int, str], groups: Mapping[int, str]) -> str:
    category_id = entry["category_id"]
    words = [str(names.get(category_id, f"category {category_id}"))]
    if category_id in groups:
        words.append(groups[category_id])
    if "score" in entry:
        words.append(f"{entry['score']:.2f}")
    if entry.get("iscrowd"):
        words.append("(crowd)")
    return " ".join(words)


def _color(category_id: int) -> tuple[int, int, int]:
    """Return a color that stays the same for a category; steps of the golden ratio keep neighbors apart."""
    red, green, blue = colorsys.hsv_to_rgb(category_id * 0.618034 % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _add_title(panel: np.ndarray, title: str) -> np.ndarray:
    font = ImageFont.load_default(_FONT_SIZE)
    picture = Image.new("RGB", (panel.shape[1], panel.shape[0] + _FONT_SIZE + 8), (255, 255, 255))
    picture.paste(Image.fromarray(panel), (0, _FONT_SIZE + 8))
    ImageDraw.Draw(picture).text((4, 2), title, fill=(0, 0, 0), font=font)
    return np.asarray(picture)
