"""Writes a report: the page, its data as scripts that a browser loads from a folder, and the pictures."""

import importlib.resources
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskx_jax import files
from maskx_jax.coco.garbage import no_garbage_collection
from maskx_jax.evaluation import metrics
from maskx_jax.report import bootstrap
from maskx_jax.report.analysis import Analysed, analyse, class_names, difference, label_groups
from maskx_jax.report.gallery import Gallery
from maskx_jax.report.inputs import Dataset, Model, most_detections
from maskx_jax.report.matches import OUTCOMES, Prepared
from maskx_jax.report.pictures import write_pictures

ASSETS = ("index.html", "report.css", "report.js", "charts.js", "masks.js", "gallery.js")
_MOST_POINTS = 400


@no_garbage_collection()
def write(
    dataset: Dataset,
    models: Sequence[Model],
    folder: str | os.PathLike,
    *,
    min_score: float = 0.05,
    picture_side: int = 640,
    num_draws: int = 500,
) -> pathlib.Path:
    """Write the report of some models on one dataset; return its page. A report that is there is replaced.

    Args:
      dataset: the images, and how they are scored.
      models: one or more; differences are to the first.
      folder: to write to.
      min_score: of the detections that the gallery shows; all count for the numbers.
      picture_side: pixels of the long side of a picture, at most.
      num_draws: of the bootstrap, for the intervals.

    Raises:
      ValueError: the folder holds something else than a report; ground truth or results are malformed.
      OSError: an image cannot be read, or a file not be written.
    """
    target = pathlib.Path(folder)
    check_folder(target)
    prepared = Prepared(dataset.ground_truth, dataset.kinds, most_detections(dataset))
    weights = bootstrap.draws(len(dataset.ground_truth["images"]), num_draws)
    analysed = [analyse(dataset, model, prepared, weights) for model in models]
    gallery = Gallery(dataset, analysed, prepared.area, min_score)
    with files.whole_folder(target) as partial:
        (partial / "data").mkdir()
        for name in ASSETS:
            source = importlib.resources.files("maskx_jax.report") / "assets" / name
            (partial / name).write_bytes(source.read_bytes())
        summary = _summary(dataset, analysed, num_draws) | {
            "min_score": min_score,
            "kind": gallery.kind,
            "pictures": dataset.picture is not None,
        }
        _write_data(partial, "summary", summary)
        _write_curves(partial, analysed)
        _write_gallery(partial, gallery, len(analysed))
        if dataset.picture is not None:
            (partial / "pictures").mkdir()
            write_pictures(gallery.images, dataset.picture, partial / "pictures", picture_side)
        if target.exists():
            shutil.rmtree(target)
    return target / "index.html"


def check_folder(folder: pathlib.Path) -> None:
    """Check that a report can be written to a folder.

    Raises:
      ValueError: it holds something else, or is a link.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder}: not a folder; expected a new one, or a report to replace")
    if folder.exists() and any(folder.iterdir()) and not (folder / "data" / "summary.js").exists():
        raise ValueError(f"{folder}: the folder holds something else than a report; give another")
    folder.parent.mkdir(parents=True, exist_ok=True)


def _summary(dataset: Dataset, analysed: Sequence[Analysed], num_draws: int) -> dict[str, Any]:
    groups = label_groups(dataset)
    truth = dataset.ground_truth
    kinds = [kind for kind in dataset.kinds if kind != "boundary"]
    return {
        "classes": class_names(dataset),
        "groups": groups,
        "kinds": kinds,
        "outcomes": OUTCOMES,
        "num_images": len(truth["images"]),
        "num_objects": len(truth["annotations"]),
        "num_draws": num_draws,
        "federated": metrics.is_federated(truth),
        "max_detections": most_detections(dataset),
        "models": [
            {
                "title": model.model.title,
                "num_results": len(model.model.results),
                "measured": model.measured,
                "kinds": model.kinds,
                "difference": {kind: difference(model, analysed[0], kind, groups) for kind in kinds}
                if number
                else None,
            }
            for number, model in enumerate(analysed)
        ],
        "learning": [_series(model.model.history) for model in analysed],
    }


def _series(history: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Return `[step, value]` pairs by the name of the number, thinned where there are too many to draw."""
    series: dict[str, list[list[float]]] = {}
    for line in history:
        step = line.get("step")
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and isinstance(step, int) and math.isfinite(value):
                series.setdefault(name, []).append([step, float(f"{value:.5g}")])
    # Each last of some in a row, so that the end of the run stays.
    return {name: pairs[:: -max(1, math.ceil(len(pairs) / _MOST_POINTS))][::-1] for name, pairs in series.items()}


def _write_curves(folder: pathlib.Path, analysed: Sequence[Analysed]) -> None:
    for number, model in enumerate(analysed):
        for kind, curves in model.curves.items():
            _write_data(folder, f"curves-{number}-{kind}", curves)


def _write_gallery(folder: pathlib.Path, gallery: Gallery, num_models: int) -> None:
    _write_data(folder, "index", gallery.index())
    pages: dict[str, Iterable[list]] = {"truth": gallery.truth_pages()}
    pages |= {f"model-{number}": gallery.model_pages(number) for number in range(num_models)}
    for name, content in pages.items():
        (folder / "data" / name).mkdir()
        for number, page in enumerate(content):
            _write_data(folder, f"{name}/{number}", page)


def _write_data(folder: pathlib.Path, name: str, value: Any) -> None:
    """Write a value as a script that hands it to the page: a page that lies in a folder may not read other files."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    (folder / "data" / f"{name}.js").write_text(f'maskx.receive("{name}",{text});\n', encoding="utf-8")
