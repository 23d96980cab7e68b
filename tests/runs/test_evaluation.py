"""Detection over a source: what is found does not depend on how many processes look."""

import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faster_coco_eval import mask as mask_coder

from configs import embedmask
from maskx_jax import files
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.distributed import processes as distributed
from maskx_jax.distributed.mesh import make_mesh, replicated, split_batch
from maskx_jax.evaluation.scores import flatten, metric_names
from maskx_jax.inference import make_detect_step
from maskx_jax.models.build import build, initialize
from maskx_jax.runs import evaluation
from maskx_jax.structures import Detections
from tests.models.build import NUM_CLASSES, numpy_variables, tiny_config, tiny_model
from tests.processes import finish, start

NUM_IMAGES = 10
# The mask of a whole image of 64 x 64 pixels.
FULL = {"size": [64, 64], "counts": "0PP4"}
# So that a model that never learned finds something, and compiles soon.
QUICK = {
    "rpn__pre_nms_top_k": (20, 20),
    "rpn__post_nms_top_k": (10, 10),
    "box_head__pre_nms_top_k": 20,
    "max_detections": 4,
    "box_head__score_threshold": 0.0,
}


class Source(ShapesSource):
    """Ten small images; the ids of some are changed."""

    def __init__(self, ids=None):
        super().__init__(NUM_IMAGES, 1, image_size=64, num_hues=3, num_textures=2)
        self._ids = ids or {}

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return type(record)(**{**vars(record), "image_id": self._ids.get(record.image_id, record.image_id)})


class CountingSource(ShapesSource):
    """Counts how often its ground truth is read."""

    reads = 0

    def coco_ground_truth(self):
        self.reads += 1
        return super().coco_ground_truth()


def small_config(batch_size):
    config = tiny_config()
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64)
    config.evaluation.batch_size = batch_size
    return config


def detect_in_process(folder: str, system: str) -> None:
    """Detect with a tiny model as one process of several, and write the results to a file."""
    distributed.join(enabled=False)
    mesh = make_mesh()
    assert mesh.size == 4
    if system == "embedmask":
        fields = embedmask.get_config("size=tiny,data=shapes").model
        fields.max_detections, fields.dense.head.score_threshold = 4, 0.0
        model = build(fields, NUM_CLASSES)
        # Points begin with boxes of their level's size.
        variables = jax.jit(lambda key: initialize(model, key))(jax.random.key(0))
    else:
        model = tiny_model(**QUICK)
        variables = numpy_variables(model)
    variables = jax.device_put(variables, replicated(mesh))
    results = evaluation.detect(make_detect_step(model, mesh), variables, Source(), small_config(4), mesh)
    name = f"{jax.process_index()}_of_{jax.process_count()}.json"
    (pathlib.Path(folder) / name).write_text(json.dumps(results and list(results)))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["maskx_rcnn", pytest.param("embedmask", marks=pytest.mark.long)])
def test_results_are_the_same_on_any_number_of_processes(tmp_path, system):
    texts = []
    for count in (1, 2, 4):
        command = ("-m", "tests.runs.test_evaluation", tmp_path, system)
        assert finish(start(*command, processes=count, devices=4 // count)) == [0] * count
        # The first process has the results of all; the others have none.
        first, *others = [(tmp_path / f"{index}_of_{count}.json").read_text() for index in range(count)]
        assert others == ["null"] * (count - 1)
        texts.append(first)
    results = json.loads(texts[0])
    assert [entry["image_id"] for entry in results] == sorted(entry["image_id"] for entry in results)
    assert {entry["image_id"] for entry in results} == set(range(1, NUM_IMAGES + 1))
    assert len({entry["segmentation"]["counts"] for entry in results}) > NUM_IMAGES
    # 4 processes hold one image of a batch each; the last batch has none for two of them.
    assert texts == [texts[0]] * 3


def one_box_step(mesh, probability=1.0):
    """Return a step that finds the image itself, with its mean brightness for a score, a constant mask and a keypoint.

    The keypoint lies in the second cell of the first row, of 4 x 4 cells.
    """

    def detect(variables, images, image_sizes):
        ones = jnp.ones((images.shape[0], 1))
        box = jnp.concatenate([jnp.zeros_like(image_sizes), image_sizes[:, ::-1]], axis=1)[:, None]
        scores = images.mean(axis=(1, 2, 3))[:, None] / 255
        masks = jnp.full((len(images), 1, 4, 4), probability)
        maps = jnp.zeros((len(images), 1, 1, 4, 4)).at[..., 0, 1].set(9.0)
        return Detections(box, scores, ones.astype(int), masks, ones > 0, maps)

    return jax.jit(detect, out_shardings=split_batch(mesh))


def test_each_image_keeps_its_own_detections():
    # Not in the order of their ids: that of the source counts.
    mesh, source = make_mesh(), Source()
    source.image_ids = np.array([4, 2, 3, 1, 5, 6, 7, 8, 9, 10])
    results = evaluation.detect(one_box_step(mesh), {}, source, small_config(8), mesh)
    assert [entry["image_id"] for entry in results] == [4, 2, 3, 1, 5, 6, 7, 8, 9, 10]
    brightness = [source[i].image.mean() / 255 for i in range(NUM_IMAGES)]
    np.testing.assert_allclose([entry["score"] for entry in results], brightness, rtol=1e-4)
    assert all(entry["bbox"] == [0, 0, 64, 64] and entry["category_id"] == 1 for entry in results)


def test_entries_made_by_other_processes_are_the_same_and_the_processes_end(monkeypatch):
    makers = []
    open_maker = evaluation.entry_processes.open_maker

    def spy(*arguments, **conventions):
        makers.append(open_maker(*arguments, **conventions))
        return makers[-1]

    monkeypatch.setattr(evaluation.entry_processes, "open_maker", spy)
    mesh, source, config = make_mesh(), Source(), small_config(8)
    step = one_box_step(mesh)
    expected = list(evaluation.detect(step, {}, source, config, mesh))
    config.evaluation.num_processes = 2
    makers.clear()
    assert list(evaluation.detect(step, {}, source, config, mesh)) == expected

    def break_off(number):
        if number == 1:
            raise InterruptedError("asked to leave")

    with pytest.raises(InterruptedError, match="asked to leave"):
        evaluation.detect(step, {}, source, config, mesh, before_batch=break_off)
    assert [process._process.returncode for maker in makers for process in maker._processes] == [0] * 4


def test_an_image_that_is_missing_or_doubled_is_named():
    mesh = make_mesh()
    with pytest.raises(RuntimeError, match=r"10 images.* 10 once: 1 missing, image ids \[4\]; 1 doubled, \[7\]"):
        evaluation.detect(one_box_step(mesh), {}, Source(ids={4: 7}), small_config(8), mesh)


def test_detections_are_written_before_they_are_scored(tmp_path, monkeypatch):
    source, config = Source(), small_config(8)
    config.evaluation.num_pictures = 1
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 9, 9], "segmentation": FULL}]
    # What a run that somebody else made may hold.
    (tmp_path / "precious").write_text("precious")
    for name in ("results.json", "metrics.json", "table.txt"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.png").symlink_to(tmp_path / "precious")

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.metrics, "score", fail)
        with pytest.raises(MemoryError):
            evaluation.write(results, source, config, tmp_path, {})
    assert json.loads((tmp_path / "results.json").read_text()) == results
    metrics = evaluation.write(results, source, config, tmp_path, {})
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert "AR20" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "pictures/1.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "precious").read_text() == "precious"
    for folder, _, names in os.walk(tmp_path):
        assert not any(pathlib.Path(folder, name).is_symlink() or name.startswith(".") for name in names)


def test_the_ground_truth_is_read_once_an_evaluation(tmp_path):
    mesh, source, config = make_mesh(), CountingSource(NUM_IMAGES, 1, image_size=64), small_config(8)
    found = evaluation.detect(one_box_step(mesh), {}, source, config, mesh)
    assert source.reads == 0
    others = {"another": list(found)[:1]}
    evaluation.write(found, source, config, files.folder_in(tmp_path), {"A": [1], "B": [2]}, others)
    assert source.reads == 1
    assert len(list((tmp_path / "pictures").iterdir())) == config.evaluation.num_pictures


def test_keypoints_that_the_records_leave_out_do_not_stop_an_evaluation(tmp_path):
    class Unsound(Source):
        def coco_ground_truth(self):
            ground_truth = super().coco_ground_truth()
            for category, names in zip(ground_truth["categories"], (["nose"], ["tail"], 3), strict=False):
                category["keypoints"] = names
            return ground_truth

    config = small_config(8)
    config.evaluation.num_pictures = 1
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 9, 9], "segmentation": FULL}]
    assert "keypoints" not in evaluation.write(results, Unsound(), config, tmp_path, {})
    assert (tmp_path / "pictures/1.png").exists()


@pytest.mark.parametrize("predictor, boundary", [("class_specific", True), ("none", True), ("transfer", False)])
@pytest.mark.parametrize("groups", [None, {}, {"A": [1], "B": [2]}, {"A": [1], "B": [2], "mixed": [3, 4]}])
def test_what_is_measured_is_known_in_advance(predictor, boundary, groups):
    source, config = Source(), small_config(8)
    config.data.mask_classes = "random(1, 2)"
    config.model.rcnn.mask_predictor = predictor
    config.evaluation.boundary = boundary
    if groups is None:
        groups = evaluation.scored_groups(source.categories, config)
    metrics = flatten(evaluation.score([], source.coco_ground_truth(), config, groups))
    most = config.model.max_detections
    assert metric_names(evaluation.kinds(config), groups, most) == set(metrics)
    # Every class has objects here, with masks.
    assert evaluation.measured_metrics(config, groups, source) == set(metrics)
    assert ("segm/B/AP" in metrics) == (predictor != "none" and groups != {})


def test_an_evaluation_that_names_other_classes_than_the_run_is_scored_in_them(tmp_path):
    source, begun = Source(), small_config(8)
    begun.data.mask_classes = "random(1, 2)"

    def groups(mask_classes=begun.evaluation.mask_classes):
        config = begun.copy_and_resolve_references()
        with config.ignore_type():
            config.evaluation.mask_classes = mask_classes
        return evaluation.groups_of_run(tmp_path, begun, source.categories, config)

    # A run that does not say in which groups it is scored.
    assert {name: len(ids) for name, ids in groups().items()} == {"A": 2, "B": 4}
    (tmp_path / "data.json").write_text(json.dumps({"groups": {"A": source.categories.names[:1]}}))
    assert groups() == {"A": [1]}
    assert {name: len(ids) for name, ids in groups("random(1, 5)").items()} == {"A": 5, "B": 1}
    assert groups("all") == {}


@pytest.mark.parametrize("grid, is_inside", [("continuous", True), ("integer", False)])
def test_masks_are_pasted_by_the_configs_convention(grid, is_inside):
    # At the threshold the two differ: see test_paste_masks.py.
    mesh, config = make_mesh(), small_config(8)
    config.evaluation.paste_grid = grid
    results = evaluation.detect(one_box_step(mesh, 0.5), {}, Source(), config, mesh)
    assert all((mask_coder.area(entry["segmentation"]) > 0) == is_inside for entry in results)


@pytest.mark.parametrize("keypoints", [False, True])
def test_what_keypoints_need_is_known_before_anything_is_detected(keypoints):
    source, config = ShapesSource(2, 1, image_size=64, keypoints=keypoints), small_config(8)
    evaluation.check_ground_truth(config, source)
    config.model.rcnn.keypoint_predictor = "heatmaps"
    if keypoints:
        measured = evaluation.measured_metrics(config, {}, source)
        assert {"keypoints/all/AP", "keypoints/all/ARl", "bbox/all/AP"} <= measured
    else:
        with pytest.raises(ValueError, match="no category has keypoints"):
            evaluation.check_ground_truth(config, source)


def test_what_is_measured_is_read_once_and_by_the_first_process(monkeypatch):
    source, config = CountingSource(2, 1, image_size=64, keypoints=True), small_config(8)
    config.model.rcnn.keypoint_predictor = "heatmaps"
    measured = evaluation.measured_metrics(config, {}, source)
    assert source.reads == 1
    # As on another process, which gets what JSON holds.
    monkeypatch.setattr(evaluation, "from_first_process", lambda compute: [True, False])
    assert evaluation.measured_metrics(config, {}, source) == measured
    evaluation.check_ground_truth(config, source)
    assert source.reads == 1


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_keypoints_are_found_by_the_configs_convention(score):
    mesh, config = make_mesh(), small_config(8)
    config.evaluation.keypoint_score = score
    for entry in evaluation.detect(one_box_step(mesh), {}, Source(), config, mesh):
        x, y, value = entry["keypoints"]
        # The image has 64 x 64 pixels, a cell 16.
        assert 16 <= x < 32 and 0 <= y < 16 and (value > 8) == (score == "logit")


if __name__ == "__main__":
    detect_in_process(*sys.argv[1:])
