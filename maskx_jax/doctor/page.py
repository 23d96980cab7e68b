"""What was found as one HTML page that needs no other file, server or network."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from maskx_jax.data.coco.annotations import image_faults
from maskx_jax.data.coco.images import UnreadableImageError, read_pixels
from maskx_jax.doctor.advice import value_text
from maskx_jax.doctor.causes import LEVELS, MEANINGS
from maskx_jax.doctor.examination import Examination
from maskx_jax.doctor.findings import Finding
from maskx_jax.doctor.structure import Split
from maskx_jax.evaluation.drawing import draw_objects

# Of each cause, and their longer side.
_NUM_PICTURES, _PICTURE_SIDE = 3, 320
# A picture shows this many times the sides of its object.
_AROUND = 2.0

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7dbd; --error: #c62828; --warning: #b26a00; --note: #5c6b7a }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem; margin-top: 1.5rem }
table { border-collapse: collapse; width: 100% } .wide { overflow-x: auto }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top }
th { font-weight: 600 } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.error { color: var(--error) } .warning { color: var(--warning) } .note { color: var(--note) }
.level { font-weight: 600 } code { font-size: .9em; overflow-wrap: anywhere }
td:first-child code { white-space: nowrap }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0 } figure { margin: 0 }
figure img { display: block; max-width: 20rem; max-height: 16rem } figcaption { font-size: .8rem }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15rem .5rem; max-width: 34rem }
.bars div { background: var(--bar); height: .9rem; } .bars span { font-variant-numeric: tabular-nums }
summary { cursor: pointer } ul { margin: .3rem 0; padding-left: 1.2rem }
"""


def render(found: Examination) -> str:
    """Return the page; pictures of examples are in it where the pictures were looked at."""
    totals = ", ".join(_count(found.count(level), level) for level in LEVELS)
    parts = [
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'><title>maskx_jax doctor</title>",
        f"<style>{_STYLE}</style></head><body><main><h1>Doctor</h1><p>{totals}</p>",
        "<p>An error stops <code>prepare</code>, or costs it an image, an object or a mask. A warning is probably "
        "wrong, and is kept as it is. A note is worth knowing.</p>",
        *_advice(found),
    ]
    for name, split in found.splits.items():
        parts += _split(name, split, found.statistics[name])
    return "\n".join([*parts, "</main></body></html>\n"])


def _count(number: int, level: str) -> str:
    return f"<span class='{level}'><span class='level'>{number}</span> {level}{'s' * (number != 1)}</span>"


def _advice(found: Examination) -> list[str]:
    parts = []
    if found.advice:
        rows = [
            [_code(a.field), _code(value_text(a.now)), _code(value_text(a.value)), _text(a.reason)]
            for a in found.advice
        ]
        parts += ["<h2>Advice on the config</h2>", _table(("field", "now", "advised", "reason"), rows)]
    if found.canvas:
        sentences = [
            f"Images are shown {found.canvas['scale']} times as large; {found.canvas['padding']:.0%} is padding."
        ]
        if "anchors" in found.canvas:
            anchors = found.canvas["anchors"]
            sentences.append(
                f"An object's best anchor overlaps it by {anchors['mean_overlap']} in the mean (IoU on one centre); "
                f"{anchors['below_half']:.1%} of the objects have none of 0.5 or more."
            )
        bars = _bars("Sides of boxes on the canvas", found.canvas["box_sides"])
        parts += ["<h2>On the canvas of the config</h2>", f"<p>{_text(' '.join(sentences))}</p>", bars]
    return parts


def _split(name: str, split: Split, statistics: Mapping[str, Any]) -> list[str]:
    where = "not looked at" if split.folder is None else f"in {split.folder}"
    counts = ", ".join(_count(split.findings.count(level), level) for level in LEVELS)
    spread = statistics["objects_per_image"]
    an_image = (
        f" An image has {spread['median']:g} objects in the median, {spread['most']:g} at most." if spread else ""
    )
    return [
        f"<h2>Split {_text(name)}</h2>",
        f"<p><code>{_text(split.path)}</code>, pictures {_text(where)}: {len(split.images)} images, "
        f"{statistics['num_objects']} objects, {statistics['num_masks']} of them with a mask, "
        f"crowd regions: {statistics['num_crowds']}.{an_image} {counts}.</p>",
        "<h3>Findings</h3>",
        *_findings(split),
        "<h3>Classes</h3>",
        _classes(statistics["classes"]),
        _bars("Sides of boxes", statistics["box_sides"]),
        _bars("Sides of masks", statistics["mask_sides"]),
    ]


def _findings(split: Split) -> list[str]:
    findings = list(split.findings)
    if not findings:
        return ["<p>Nothing was found.</p>"]
    annotations = {annotation["id"]: annotation for annotation in split.annotations}
    images = {image["id"]: image for image in split.images}
    rows = []
    for finding in findings:
        classes = ", ".join(f"{name} {number}" for name, number in finding.classes.most_common(8))
        more = f" and {len(finding.classes) - 8} more" if len(finding.classes) > 8 else ""
        rows.append(
            [
                f"<span class='level {finding.level}'>{finding.level}</span>",
                str(finding.count),
                f"{_text(MEANINGS[finding.cause])} <code>{finding.cause}</code>{_examples(finding)}"
                f"{_pictures(split, finding, annotations, images)}",
                _text(classes + more),
            ]
        )
    return [_table(("level", "count", "what", "classes"), rows, numbers=(1,))]


def _examples(finding: Finding) -> str:
    items = "".join(
        f"<li><code>{_text(example)}</code>{': ' * bool(found)}{_text(found)}</li>"
        for example, found in finding.examples
    )
    return f"<details><summary>examples</summary><ul>{items}</ul></details>"


def _pictures(split: Split, finding: Finding, annotations: Mapping[Any, dict], images: Mapping[Any, dict]) -> str:
    """Return pictures of the first examples that are annotations of images that can be read."""
    if split.folder is None or finding.cause.partition("_")[0] not in ("box", "mask", "polygon", "area"):
        return ""
    names = {entry["id"]: entry["name"] for entry in split.category_entries}
    figures: list[str] = []
    for example, _ in finding.examples:
        annotation = annotations.get(example)
        if annotation is None or len(figures) == _NUM_PICTURES:
            continue
        image = images[annotation["image_id"]]
        # What leads out of the folder is not opened.
        if list(image_faults(image)):
            continue
        try:
            pixels = read_pixels(split.folder / image["file_name"])
        except (UnreadableImageError, OSError):
            continue
        drawn = draw_objects(pixels, [annotation], names)
        scale = drawn.shape[1] / pixels.shape[1]
        source = _encode(_around(Image.fromarray(drawn), [scale * side for side in annotation["bbox"]]))
        caption = f"{example} ({names[annotation['category_id']]})"
        figures.append(
            f"<figure><img alt='annotation {_text(example)}' src='data:image/jpeg;base64,{source}'>"
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
    return f"<div class='pictures'>{''.join(figures)}</div>" if figures else ""


def _around(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Return the part of an image around a box x, y, width, height."""
    x, y, width, height = box
    side = max(_AROUND * max(width, height), _PICTURE_SIDE / 2) / 2
    middle_x, middle_y = x + width / 2, y + height / 2
    left, top = max(middle_x - side, 0), max(middle_y - side, 0)
    right, bottom = min(middle_x + side, image.width), min(middle_y + side, image.height)
    # A box may lie outside.
    return (
        image.crop((int(left), int(top), int(right), int(bottom))) if right > left + 1 and bottom > top + 1 else image
    )


def _encode(image: Image.Image) -> str:
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "class",
        "id",
        "objects",
        "images",
        "masks",
        "box only",
        "masks that are boxes",
        "crowds",
        "small",
        "medium",
    )
    cells = [
        [
            _text(row["name"]),
            *(str(row[key]) for key in ("id", "objects", "images", "masks")),
            "" if row["box_only"] is None else f"{row['box_only']:.0%}",
            *(str(row[key]) for key in ("rectangles", "crowds", "small", "medium", "large")),
            "" if row["median_side"] is None else f"{row['median_side']:g}",
        ]
        for row in sorted(rows, key=lambda row: -row["objects"])
    ]
    return _table((*head, "large", "median side"), cells, numbers=range(1, len(head) + 2))


def _bars(title: str, histogram: Sequence[Mapping[str, Any]]) -> str:
    most = max([1, *(row["count"] for row in histogram)])
    rows = []
    for row in histogram:
        name = f"{row['from']} to {row['to']}" if row["to"] is not None else f"{row['from']} and more"
        width = 100 * row["count"] / most
        rows.append(f"<span>{name}</span><div style='width:{width:.1f}%'></div><span>{row['count']}</span>")
    return f"<h3>{title}</h3><p>Square root of the area, in pixels.</p><div class='bars'>{''.join(rows)}</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Return a table; its cells are HTML already."""
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        marks = [" class='number'" if place in right else "" for place in range(len(row))]
        return "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"


def _code(value: Any) -> str:
    return f"<code>{_text(value)}</code>"


def _text(value: Any) -> str:
    # Half of a surrogate pair, which JSON can write, is in no file.
    return escape(str(value).encode("utf-8", "replace").decode())
