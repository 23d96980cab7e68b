"""What a config could have otherwise for a dataset, and why."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maskx_jax import errors
from maskx_jax.coco.mask_classes import mask_labels
from maskx_jax.data.transforms import Transform
from maskx_jax.doctor import statistics
from maskx_jax.doctor.objects import Objects
from maskx_jax.doctor.structure import Split

# Objects from which sizes are advised: as good as all of them.
_SAMPLE = 20_000
# What a change of the anchors must add to the mean overlap to be worth one.
_WORTH = 0.03
# Longest side on the canvas of what is hard to find: the finest features have a stride of 4 or 8.
_TINY = 8
# The sides of a canvas are multiples of this.
_MULTIPLE = 32
_RATIOS = ((0.5, 1.0, 2.0), (1 / 3, 1.0, 3.0), (0.2, 0.5, 1.0, 2.0, 5.0), (0.5,), (1.0,), (2.0,))


@dataclasses.dataclass(frozen=True)
class Advice:
    """Another value of a field.

    Attributes:
      field: of the config.
      now: its value.
      value: the one that is advised.
      reason: why.
    """

    field: str
    now: Any
    value: Any
    reason: str

    def line(self) -> str:
        """Return it as text."""
        return f"{self.field} = {value_text(self.value)} (now {value_text(self.now)}): {self.reason}"


def advise(split: Split, objects: Objects, config: Mapping[str, Any]) -> tuple[list[Advice], dict[str, Any]]:
    """Say what a config could have otherwise for a split to train on; what it cannot use is counted in the findings.

    Args:
      split: that is trained on.
      objects: of it.
      config: as of training.

    Returns:
      advice: in the order of its fields.
      measured: how the objects lie on the canvas, fit for JSON.
    """
    transform = Transform(**config["data"]["transform"])
    scales, sides = statistics.on_canvas(split, objects, transform)
    plain = ~objects.is_crowd
    _count_lost(split, objects, transform, sides)
    measured: dict[str, Any] = {
        "scale": round(float(np.nanmedian(scales)), 3) if len(scales) else None,
        "box_sides": statistics.histogram(np.sqrt(sides[plain].prod(axis=1))),
        "padding": round(_padding(split, transform, scales), 3),
    }
    own_sides = sides[plain]
    if len(own_sides) > _SAMPLE:
        own_sides = own_sides[np.random.default_rng(0).choice(len(own_sides), _SAMPLE, replace=False)]
    advice = [
        *_slots(split, objects, transform),
        *_canvas(split, transform, scales, own_sides),
        *_repeats(split, objects, config),
        *_masks(split, objects, config),
    ]
    if len(own_sides):
        advice += _model(own_sides, config["model"], measured)
    return advice, measured


def _model(sides: np.ndarray, model: Mapping[str, Any], measured: dict[str, Any]) -> Iterator[Advice]:
    """Advise on what a family of models has of its own for sizes: anchors, or the sizes of its levels."""
    if model["family"] == "rcnn":
        rpn = model["rcnn"]["rpn"]
        overlaps = statistics.anchor_overlaps(sides, statistics.anchor_sides(rpn["anchor_sizes"], rpn["aspect_ratios"]))
        measured["anchors"] = {
            "mean_overlap": round(float(overlaps.mean()), 3),
            "below_half": round(float((overlaps < 0.5).mean()), 4),
            "below_foreground": round(float((overlaps < rpn["foreground_threshold"]).mean()), 4),
        }
        yield from _anchors(sides, rpn, overlaps)
    elif model["family"] == "dense":
        yield from _levels(sides, model["dense"]["head"]["level_sizes"])


def _count_lost(split: Split, objects: Objects, transform: Transform, sides: np.ndarray) -> None:
    """Count objects that are too small on the canvas, and images of more objects than there are slots."""
    plain = ~objects.is_crowd
    names = np.array(["", *split.categories.names])
    small = plain & (sides < transform.min_box_side).any(axis=1)
    split.findings.add_all("box_vanishes", objects.ids(small), names[objects.labels[small]].tolist())
    per_image = np.bincount(objects.image_index[plain], minlength=len(split.images))
    for index in np.flatnonzero(per_image > transform.num_slots).tolist():
        found = f"{per_image[index]} objects, {transform.num_slots} slots"
        split.findings.add("image_over_slots", split.images[index]["id"], found)


def _slots(split: Split, objects: Objects, transform: Transform) -> Iterator[Advice]:
    per_image = np.bincount(objects.image_index[~objects.is_crowd], minlength=len(split.images))
    most = int(per_image.max(initial=0))
    now = transform.num_slots
    if most > now:
        # A few crowded images would cost all others their memory.
        enough = most if most <= 300 else int(np.percentile(per_image, 99.9))
        value = max(10 * math.ceil(enough / 10), now)
        if value > now:
            number = int((per_image > now).sum())
            reason = (
                f"{number} images have more than {now} objects, the fullest {most}; what finds no slot is not learned"
            )
            yield Advice("data.transform.num_slots", now, value, reason)
    elif 0 < most < now / 2.5:
        value = 10 * math.ceil(1.2 * most / 10)
        if value < now:
            reason = f"no image has more than {most} objects; fewer slots take less memory and time"
            yield Advice("data.transform.num_slots", now, value, reason)


def _padding(split: Split, transform: Transform, scales: np.ndarray) -> float:
    """Return the share of the canvas that no image fills, in the mean."""
    sizes = split.sizes()
    known = ~np.isnan(scales)
    if not known.any():
        return 0.0
    filled = sizes[known].prod(axis=1) * scales[known] ** 2 / math.prod(transform.canvas)
    return float(1 - filled.clip(max=1).mean())


def _canvas(split: Split, transform: Transform, scales: np.ndarray, sides: np.ndarray) -> Iterator[Advice]:
    sizes = split.sizes()[~np.isnan(scales)]
    if not len(sizes) or not len(sides):
        return
    short, long = np.sort(sizes, axis=1).T
    scale, padding = float(np.nanmedian(scales)), _padding(split, transform, scales)
    tiny = float((sides.max(axis=1) < _TINY).mean())
    field, now = "data.transform.canvas", tuple(transform.canvas)
    # Most images fit as they are.
    whole = tuple(_MULTIPLE * math.ceil(float(np.percentile(side, 95)) / _MULTIPLE) for side in (short, long))
    beside = f"; with short_sides=({whole[0]},), max_long_side={whole[1]}"
    if scale < 0.75 and tiny > 0.25:
        reason = f"{tiny:.0%} of the objects are less than {_TINY} pixels long on it; images are shrunk to {scale:.2f}"
        yield Advice(field, now, whole, reason + beside)
    elif scale > 2.5 and float(np.median(sides.max(axis=1))) > 96:
        reason = f"images are enlarged {scale:.1f} times and their objects are large: a smaller canvas takes less time"
        yield Advice(field, now, whole, reason + beside)
    elif padding > 0.35:
        ratio = float(np.percentile(long / short, 90))
        value = (now[0], min(_MULTIPLE * math.ceil(now[0] * ratio / _MULTIPLE), now[1]))
        if value != now:
            reason = (
                f"{padding:.0%} of it is padding; of nine in ten images the long side is {ratio:.2f} times the short"
            )
            yield Advice(field, now, value, f"{reason} one or less")


def _repeats(split: Split, objects: Objects, config: Mapping[str, Any]) -> Iterator[Advice]:
    now = float(config["data"]["repeat_threshold"])
    shares = statistics.images_with(objects, len(split.categories) + 1)[1:] / max(len(split.images), 1)
    seen = shares > 0
    if now or not seen.any():
        return
    rarest = float(shares[seen].min())
    # In a small set a class of few images is rare by chance, and to repeat these is to learn them by heart.
    if rarest >= 0.001 or len(split.images) < 1000:
        return
    rare = [name for name, share in zip(split.categories.names, shares.tolist(), strict=True) if 0 < share < 0.001]
    most = math.sqrt(0.001 / rarest)
    reason = f"{len(rare)} classes are in less than 0.1 % of the images: {errors.some(rare, most=3)}; their images are"
    yield Advice("data.repeat_threshold", now, 0.001, f"{reason} seen up to {most:.1f} times as often")


def _masks(split: Split, objects: Objects, config: Mapping[str, Any]) -> Iterator[Advice]:
    now = config["data"]["mask_classes"]
    names = split.categories.names
    try:
        allowed = mask_labels(now if isinstance(now, str) else tuple(now), split.categories)
    except (ValueError, OSError) as error:
        split.findings.add("mask_classes_unknown", str(now), errors.one_line(error))
        return
    length = len(names) + 1
    counts = np.bincount(objects.labels[~objects.is_crowd], minlength=length)
    masks = np.bincount(objects.labels[objects.has_mask], minlength=length)
    bare = [names[label - 1] for label in range(1, length) if counts[label] and not masks[label]]
    if now not in ("all", "annotated"):
        for name in bare:
            if allowed[names.index(name) + 1]:
                split.findings.add("class_without_masks", name, category=name)
    elif bare and now == "all":
        reason = (
            f"{len(bare)} of {len(names)} classes have boxes only: {errors.some(bare, most=3)}; they are scored apart"
        )
        yield Advice("data.mask_classes", now, "annotated", reason)
    rectangles = split.findings["class_rectangles"].classes
    if rectangles:
        value = tuple(name for label, name in enumerate(names, 1) if allowed[label] and name not in rectangles)
        reason = f"most masks are just boxes of {errors.some(rectangles, most=3)}: without them shapes are learned"
        yield Advice(
            "data.mask_classes", now, value if len(value) <= 5 else f"all classes but {', '.join(rectangles)}", reason
        )
    if config["model"]["family"] == "rcnn" and (bare or not allowed[1:].all()):
        predictor = config["model"]["rcnn"]["mask_predictor"]
        if predictor in ("class_specific", "multinomial"):
            reason = "classes without masks in training have no mask weights of their own to learn"
            yield Advice("model.rcnn.mask_predictor", predictor, "transfer", reason)


def _anchors(sides: np.ndarray, rpn: Mapping[str, Any], overlaps: np.ndarray) -> Iterator[Advice]:
    """Compare anchors of other sizes and ratios, one size a level; weights that bring anchors keep theirs."""
    sizes, ratios = tuple(map(float, rpn["anchor_sizes"])), tuple(map(float, rpn["aspect_ratios"]))
    roots = np.sqrt(sides.prod(axis=1))
    spread = np.percentile(roots, [100 * (level + 0.5) / len(sizes) for level in range(len(sizes))])
    # A level's anchors are whole steps of its stride; smaller ones than 8 pixels find no features.
    fitted = tuple(float(max(8 * round(size / 8), 8)) for size in spread)
    scaled = [tuple(factor * size for size in sizes) for factor in (1.0, 0.25, 0.5, 2.0)]
    candidates = list(itertools.product([*scaled, fitted], [ratios, *_RATIOS]))
    means = [statistics.anchor_overlaps(sides, statistics.anchor_sides(*candidate)).mean() for candidate in candidates]
    # More ratios overlap more and cost more: each beyond the present number must add something.
    costs = [_WORTH / 2 * max(len(candidate[1]) - len(ratios), 0) for candidate in candidates]
    best = int(np.argmax(np.array(means) - costs))
    gain = means[best] - costs[best] - float(overlaps.mean())
    if gain < _WORTH:
        return
    reason = (
        f"an object's best anchor overlaps it by {means[best]:.2f} in the mean, with the present ones by "
        f"{overlaps.mean():.2f}; keep them with weights that were trained with them"
    )
    for field, now, value in zip(("anchor_sizes", "aspect_ratios"), (sizes, ratios), candidates[best], strict=True):
        if value != now and len(set(value)) == len(value):
            yield Advice(f"model.rcnn.rpn.{field}", now, value, reason)


def _levels(sides: np.ndarray, level_sizes: Any) -> Iterator[Advice]:
    """Look at how the sizes of objects fall to the levels of a detector without anchors."""
    now = tuple(map(float, level_sizes))
    longest = sides.max(axis=1)
    shares = np.bincount(np.searchsorted(now, longest), minlength=len(now) + 1) / len(longest)
    if shares.max() <= 0.6:
        return
    places = np.arange(1, len(now) + 1) / (len(now) + 1)
    value = tuple(float(max(8 * round(size / 8), 8)) for size in np.quantile(longest, places))
    if len(set(value)) == len(value) and value != now:
        level = int(shares.argmax()) + 3
        reason = f"{shares.max():.0%} of the objects fall to level P{level}; so each gets about as many"
        yield Advice("model.dense.head.level_sizes", now, value, reason)


def value_text(value: Any) -> str:
    """Return the value of a field as it stands in a config."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(value_text, value))}{',' * (len(value) == 1)})"
    return f"{value:g}" if isinstance(value, float) else str(value)
