"""Average precision by OKS, one detection after the other (cocodataset.org/#keypoints-eval)."""

import math

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
MOST = 20


def oks(truth, found, sigmas):
    """The similarity of one detection to an object; where nothing is labelled, the distance is from its doubled box."""
    x, y, w, h = truth["bbox"]
    terms = []
    labelled = any(truth["keypoints"][2::3])
    for k, sigma in enumerate(sigmas):
        found_x, found_y = found["keypoints"][3 * k : 3 * k + 2]
        true_x, true_y, flag = truth["keypoints"][3 * k : 3 * k + 3]
        if labelled:
            if not flag:
                continue
            dx, dy = found_x - true_x, found_y - true_y
        else:
            dx = max(0, x - w - found_x) + max(0, found_x - (x + 2 * w))
            dy = max(0, y - h - found_y) + max(0, found_y - (y + 2 * h))
        terms.append(math.exp(-(dx**2 + dy**2) / (2 * truth["area"] * (2 * sigma) ** 2)))
    return sum(terms) / len(terms)


def extent(keypoints):
    """The area of the box around keypoints."""
    x, y = keypoints[0::3], keypoints[1::3]
    return (max(x) - min(x)) * (max(y) - min(y))


def match(truths, found, sigmas, threshold, area):
    """For the detections of one image and class, best first: (score, right, ignored); and the number of objects."""
    low, high = AREAS[area]

    def ignored(truth):
        return bool(truth["iscrowd"] or not any(truth["keypoints"][2::3]) or not low <= truth["area"] <= high)

    # Those that count come first: a detection takes one that does not only where no other is left.
    ordered = sorted(truths, key=ignored)
    best_first = sorted(found, key=lambda entry: -entry["score"])[:MOST]
    taken, rows = set(), []
    for entry in best_first:
        chosen, best = None, min(threshold, 1 - 1e-10)
        for number, truth in enumerate(ordered):
            if number in taken and not truth["iscrowd"]:
                continue
            if chosen is not None and not ignored(ordered[chosen]) and ignored(truth):
                break
            similarity = oks(truth, entry, sigmas)
            if similarity >= best:
                chosen, best = number, similarity
        if chosen is None:
            rows.append((entry["score"], False, not low <= extent(entry["keypoints"]) <= high))
        else:
            taken.add(chosen)
            rows.append((entry["score"], True, ignored(ordered[chosen])))
    return rows, sum(not ignored(truth) for truth in ordered)


def precision_and_recall(per_image):
    """The mean of the precision at 101 recalls, and the largest recall; None without objects."""
    rows, counts = zip(*per_image, strict=True)
    num_objects = sum(counts)
    if not num_objects:
        return None
    listed = sorted((row for of_image in rows for row in of_image), key=lambda row: -row[0])
    right = np.cumsum([is_right for _, is_right, is_ignored in listed if not is_ignored])
    wrong = np.cumsum([not is_right for _, is_right, is_ignored in listed if not is_ignored])
    if not len(right):
        return 0.0, 0.0
    recall, precision = right / num_objects, right / (right + wrong)
    at_recalls = [max(precision[recall >= level], default=0.0) for level in RECALLS]
    return float(np.mean(at_recalls)), float(recall[-1])


def numbers(images, truths, found, category_ids, sigmas):
    """The ten numbers of COCO: means over the classes and thresholds that have objects."""

    def of(entries, image, category_id):
        return [e for e in entries if e["image_id"] == image and e["category_id"] == category_id]

    def values(which, thresholds, area):
        made = []
        for category_id in category_ids:
            for threshold in thresholds:
                per_image = [
                    match(of(truths, image, category_id), of(found, image, category_id), sigmas, threshold, area)
                    for image in images
                ]
                if (pair := precision_and_recall(per_image)) is not None:
                    made.append(pair[which])
        return float(np.mean(made)) if made else None

    slices = {"": (THRESHOLDS, "all"), "50": (THRESHOLDS[:1], "all"), "75": (THRESHOLDS[5:6], "all")}
    slices |= {"m": (THRESHOLDS, "medium"), "l": (THRESHOLDS, "large")}
    return {
        f"{name}{suffix}": values(which, *chosen)
        for which, name in enumerate(("AP", "AR"))
        for suffix, chosen in slices.items()
    }
