import dataclasses
import functools
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as benchmark
from benchmarks import cases, checks, gpu_day, host, measuring, models, nms_forms, ours, pods, roi_align_forms, trace
from benchmarks.measure_devices import collectives
from benchmarks.nms_forms import nms
from benchmarks.parameters import c4_shapes, fcos_shapes, make_c4_parameters, make_parameter, parameter_shapes
from configs import fcos, mask_rcnn, maskx_rcnn
from maskx_jax.models import build as make
from maskx_jax.ops.roi_align import roi_align


def test_cases_go_to_a_worker_and_back():
    for case in (*SMALL, *(case for suite in cases.SUITES.values() for case in suite), *gpu_day.plan(False)[0].cases):
        assert cases.from_json(json.loads(json.dumps(cases.to_json(case)))) == case


def test_case_names_tell_them_apart():
    steps = {step.name: step.cases for rehearse in (False, True) for step in gpu_day.plan(rehearse)}
    for suite in (*cases.SUITES.values(), *steps.values()):
        assert len({case.name for case in suite}) == len(suite)


SMALL = [
    cases.NMS(50, groups=2),
    cases.RoIAlign(7, gradient=True, canvas=(64, 96), rois=20),
    cases.RoIAlign(7, canvas=(64, 96), batch=2, dtype="bfloat16", rois=20),
    cases.Paste((120, 150)),
    cases.Product(64),
    cases.Copy(1),
    cases.Input(2),
    cases.Scores(3, "segm", "hotcoco"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_operations_and_host_work_run(tmp_path, case):
    call, facts = ours.build(tmp_path, case)
    call()
    assert facts["version"].startswith("jax")


def test_the_stage_of_the_mask_head_runs(tmp_path, monkeypatch):
    tiny = ours._model(tmp_path, "tiny")
    monkeypatch.setattr(ours, "_model", lambda *arguments: tiny)
    call, _ = ours.build(tmp_path, cases.Stage("mask_head", canvas=(64, 64)))
    call()


CONFIGS = {
    "mask_rcnn": mask_rcnn.get_config("backbone=r50"),
    "maskx_light": maskx_rcnn.get_config("backbone=r50,mlp=light"),
    "maskx_paper": maskx_rcnn.get_config("backbone=r50,mlp=paper"),
    "tiny": maskx_rcnn.get_config("size=tiny,mlp=light"),
    "fcos": fcos.get_config("backbone=r50"),
    "mask_rcnn_c4": mask_rcnn.get_config("backbone=r50_c4"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_models_are_those_of_the_configs_with_the_conventions_of_torchvision(name):
    config = CONFIGS[name]
    if name != "tiny":
        assert tuple(config.optimizer.untrained) == models.FROZEN
    if name == "fcos":
        config.model.dense.head.points = "torchvision"
    else:
        config.model.rcnn.roi_align.convention = config.model.rcnn.rpn.anchor_convention = "torchvision"
        config.model.rcnn.rpn.boundary_threshold = -1.0
    config.model.dtype = "bfloat16"
    assert make.build(models.fields(name, "bfloat16"), 90) == make.build(config.model, 90)


@pytest.mark.parametrize("name", ["mask_rcnn", "maskx_light"])
def test_both_sides_have_the_same_parameters(name, tmp_path, monkeypatch):
    monkeypatch.setitem(models._TORCHVISION, "backbone", {"kind": "resnet", "stage_sizes": (1, 1, 1, 1), "width": 8})
    monkeypatch.setitem(models._TORCHVISION["rcnn"], "box_head", {"resolution": 7, "hidden": 16})
    shapes = parameter_shapes(cases.NUM_CLASSES, (1, 1, 1, 1), 8)
    narrow = {path: tuple(16 if side == 1024 else side for side in shape) for path, shape in shapes.items()}
    parameters = {path: make_parameter(path, shape) for path, shape in narrow.items()}
    np.savez(tmp_path / "mask_rcnn.npz", **parameters)
    _, variables = ours._model(tmp_path, name)
    scores = parameters["roi_heads.box_predictor.cls_score.weight"]
    np.testing.assert_array_equal(variables["params"]["box_head"]["classification"]["kernel"], scores.T)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))


def test_both_sides_have_the_same_parameters_on_c4(tmp_path, monkeypatch):
    monkeypatch.setitem(models._TORCHVISION, "backbone", {"kind": "resnet", "stage_sizes": (1, 1, 1, 1), "width": 64})
    parameters = make_c4_parameters(c4_shapes(cases.NUM_CLASSES, (1, 1, 1, 1)))
    np.savez(tmp_path / "mask_rcnn_c4.npz", **parameters)
    _, variables = ours._model(tmp_path, "mask_rcnn_c4")
    kernel = parameters["roi_heads.box_head.layer4.0.conv1.weight"]
    np.testing.assert_array_equal(
        variables["params"]["backbone"]["res5_block0"]["conv1"]["kernel"], kernel.transpose(2, 3, 1, 0)
    )


def test_both_sides_have_the_same_parameters_of_fcos(tmp_path, monkeypatch):
    monkeypatch.setitem(models._FCOS, "backbone", {"kind": "resnet", "stage_sizes": (1, 1, 1, 1), "width": 8})
    monkeypatch.setitem(models._FCOS["dense"], "head", {"num_convs": 1})
    shapes = fcos_shapes(cases.NUM_CLASSES, (1, 1, 1, 1), 8, num_convs=1)
    parameters = {path: make_parameter(path, shape) for path, shape in shapes.items()}
    np.savez(tmp_path / "fcos.npz", **parameters)
    _, variables = ours._model(tmp_path, "fcos")
    boxes = parameters["head.regression_head.bbox_reg.weight"]
    np.testing.assert_array_equal(variables["params"]["head"]["boxes"]["kernel"], boxes.transpose(2, 3, 1, 0))


def _maps_and_boxes():
    rng = np.random.default_rng(0)
    features = {k: jnp.asarray(rng.standard_normal((96 >> k, 128 >> k, 8), np.float32)) for k in (2, 3)}
    corners = rng.uniform(-20, 100, (12, 2))
    # Of both levels, some of them beyond the border.
    return features, jnp.asarray(np.concatenate([corners, corners + rng.uniform(2, 300, (12, 2))], axis=1), jnp.float32)


@pytest.mark.parametrize("form", cases.ROI_ALIGN_FORMS)
def test_other_forms_of_roi_align_equal_the_one_the_models_use(form):
    features, boxes = _maps_and_boxes()

    def pooled_with_gradients(pool):
        pooled, pull_back = jax.vjp(lambda maps: pool(maps, boxes, 7), features)
        return pooled, pull_back(jnp.cos(jnp.arange(pooled.size, dtype=jnp.float32)).reshape(pooled.shape))

    expected = pooled_with_gradients(roi_align)
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(expected))
    actual = pooled_with_gradients(roi_align_forms.FORMS[form])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), actual, expected)


@pytest.mark.parametrize("form", cases.ROI_ALIGN_FORMS)
def test_other_forms_of_roi_align_serve_a_batch_in_bfloat16(form):
    features, boxes = _maps_and_boxes()
    maps = {level: jnp.stack([x, -x]).astype(jnp.bfloat16) for level, x in features.items()}
    boxes = jnp.stack([boxes[:3], boxes[3:6]])

    def both(pool):
        def total(maps):
            pooled = jax.vmap(lambda maps, boxes: pool(maps, boxes, 2))(maps, boxes)
            return pooled.astype(jnp.float32).sum(), pooled

        return jax.value_and_grad(total, has_aux=True)(maps)

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            one.astype(np.float32), other.astype(np.float32), rtol=2e-2, atol=5e-2
        ),
        both(roi_align_forms.FORMS[form])[1],
        both(roi_align)[1],
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["image", "batch"])
def test_the_kernel_is_one_of_triton_on_a_gpu(monkeypatch, dtype, batch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    features, boxes = {2: jnp.zeros((*batch, 24, 32, 256), dtype)}, jnp.zeros((*batch, 3, 4))
    pool = functools.partial(roi_align_forms.kernel, output_size=7)
    gradients = jax.jit(jax.value_and_grad(lambda maps: (jax.vmap(pool) if batch else pool)(maps, boxes).sum()))
    assert gradients.trace(features).lower(lowering_platforms=("cuda",)).as_text().count("xla.gpu.triton(") == 2


@pytest.mark.parametrize("form", cases.NMS_FORMS)
def test_other_forms_of_nms_keep_the_same_boxes(form):
    rng = np.random.default_rng(0)
    case = cases.NMS(60, 4, (64, 64), clustered=True)
    boxes = jnp.asarray(cases.inputs(case)["nms_boxes"])
    # With ties, two classes and empty slots.
    scores = jnp.asarray(rng.integers(0, 20, (4, 60)) / 20, jnp.float32)
    labels, valid = jnp.asarray(rng.integers(0, 2, (4, 60))), jnp.asarray(rng.uniform(size=(4, 60)) < 0.8)

    def keep(form):
        return jax.vmap(lambda *arrays: form(*arrays, 0.5, 40))(boxes, scores, labels, valid)

    (indices, kept), (expected_indices, expected_kept) = keep(nms_forms.FORMS[form]), keep(nms)
    np.testing.assert_array_equal(kept, expected_kept)
    assert 40 < kept.sum() < valid.sum()
    np.testing.assert_array_equal(indices[kept], expected_indices[kept])


def test_a_process_is_told_what_to_time_and_a_row_is_written(monkeypatch, capfd):
    monkeypatch.setitem(cases.SUITES, "ops", (cases.NMS(20), cases.NMS(30)))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--suite=ops", "--only=x 20", "--rounds=2", "--seconds=0"])
    benchmark.main()
    lines = capfd.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| NMS, 1 x 20 boxes |")]) == 1
    assert not any("x 30" in line for line in lines)


def test_a_process_that_ends_is_named():
    worker = measuring.Worker([sys.executable, "-c", "raise SystemExit(3)"], {})
    with pytest.raises(RuntimeError, match=r"ended with exit code 3 at \{'repeat': 1\}"):
        worker.ask(repeat=1)
    worker.close()


def test_a_process_that_takes_too_long_is_killed():
    worker = measuring.Worker([sys.executable, "-c", "import time; time.sleep(60)"], {})
    with pytest.raises(TimeoutError, match="its time was over"):
        worker.ask(time.monotonic() + 0.1, repeat=1)
    assert worker.ended
    worker.close()


SERVE = """
from benchmarks.worker import serve
def build(fields):
    if fields["kind"] == "Product":
        raise ValueError("no such thing\\nas this")
    return (lambda: None), {"version": "v", "platform": "p"}
serve(build, lambda: 7)
"""


def test_a_case_that_fails_is_told_and_the_next_one_goes_on():
    workers = measuring.Workers("", "")
    workers._commands["ours"] = [sys.executable, "-c", SERVE]
    with workers:
        failed = measuring.measure(cases.Product(1), workers, 1, 0.0)
        record = measuring.measure(cases.Copy(1), workers, 2, 0.0)
    assert failed["ours"] == {"error": "ValueError: no such thing"}
    assert measuring.row(failed)[1] == "ValueError: no such thing"
    assert len(record["ours"]["times"]) == 2 and record["ours"]["peak"] == 7


def test_inputs_are_the_same_in_every_process():
    case = dataclasses.replace(cases.SUITES["train"][0], canvas=(64, 96))
    first, second = cases.inputs(case), cases.inputs(case)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert first["images"].shape == (2, 64, 96, 3) and first["images"].std() > 10


def test_examples_come_from_files_as_large_as_those_of_coco():
    batch = next(host.training_batches(2, num_images=4))
    assert batch.images.shape[1:] in ((800, 1344, 3), (1344, 800, 3))
    assert batch.ground_truth.valid.any(axis=1).all()
    files = [len(record.image) for record in host.JpegSource(4)]
    assert 100_000 < np.mean(files) < 250_000


def test_a_wrong_result_of_an_accelerator_is_seen():
    def fail(x):
        raise ValueError("out of order\nhere")

    variants = [
        checks.Variant("right", jnp.sin, 1e-5),
        checks.Variant("wrong", lambda x: jnp.sin(x) + 1e-3, 1e-5),
        checks.Variant("shown", lambda x: jnp.sin(x) + 1e-3, None),
        checks.Variant("not finite", lambda x: x / 0, 1e-5),
        checks.Variant("broken", fail, 1e-5),
    ]
    rows = list(checks.compare(checks.Reference(jnp.sin, (np.arange(1, 9, dtype=np.float32),), variants)))
    assert [row["passes"] for row in rows] == [True, False, None, False, False]
    assert rows[1]["difference"] == pytest.approx(1e-3, rel=0.1) and rows[3]["difference"] == np.inf
    assert rows[4]["error"] == "ValueError: out of order"


def test_operations_are_compared_in_all_their_forms(monkeypatch):
    # The forms themselves are tested above.
    monkeypatch.setattr(
        roi_align_forms, "FORMS", {"": roi_align, "other": lambda *arguments: 2 * roi_align(*arguments)}
    )
    monkeypatch.setattr(nms_forms, "FORMS", {"": nms})
    case = cases.OperationChecks((64, 64), rois=2, boxes=30)
    references = checks.of_operations(cases.inputs(case), case)
    rows = [row for reference in references for row in checks.compare(reference)]
    assert {row["what"]: row["passes"] for row in rows} == {
        "RoIAlign, forward": True,
        "RoIAlign, forward, other": False,
        "RoIAlign, backward": True,
        "RoIAlign, backward, other": False,
        "NMS, boxes kept": True,
    }


HLO = """
%fused_a (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %scatter.1 = f32[8]{0} scatter(%p, %p, %p), to_apply=%add
  ROOT %mul.1 = f32[8]{0} multiply(%scatter.1, %p), metadata={op_name="jit(step)/jvp(RCNN.losses)/RCNN.pool/mul"}
}

%fused_b (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%q)
}

ENTRY %main (a: f32[8]) -> (f32[8], f32[8]) {
  %a = f32[8]{0} parameter(0)
  %loop_fusion.2 = f32[8]{0} fusion(%a), kind=kInput, calls=%fused_a
  %cudnn-conv.3 = (f32[8]{0}, u8[0]{0}) custom-call(%a), custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(step)/backbone/conv"}
  %copy_fusion = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused_b, metadata={op_name="jit(step)/add"}
  %while.7 = (s32[], f32[8]{0}) while(%a), condition=%c, body=%b
  ROOT %sort.5 = (f32[8]{0}, f32[8]{0}) sort(%a, %a), metadata={op_name="jit(step)/jvp(RCNN.losses)/rpn.proposals/sort"}
}
"""


def test_the_time_of_kernels_is_shared_out_by_what_is_in_their_instructions():
    instructions = trace.read_instructions(HLO)
    assert instructions["loop_fusion.2"] == ("scatter", "RoIAlign")
    assert instructions["cudnn-conv.3"] == ("convolution", "backbone")
    assert instructions["copy_fusion"] == ("copy", "optimizer")
    assert instructions["sort.5"] == ("sort", "proposals")
    events = [
        ("any", "sort.5", 1.0),
        ("loop_fusion_2", "command_buffer_3", 2.0),
        ("sm90_xmma_fprop_implicit_gemm", "", 3.0),
        ("nvjet_hsh_128", "", 1.0),
        ("while.7", "while.7", 7.0),
        ("mystery", "", 1.0),
    ]
    facts = trace.summarize(events, instructions, 2)
    shares = {name: share * 8 for name, share in facts["shares"].items()}
    assert shares == {"convolution": 3, "scatter": 2, "sort": 1, "product": 1, trace.OTHER: 1}
    assert facts["device_seconds"] == 4 and facts["without_instruction"] == 5 / 8
    assert [(one["kernel"], one["ms"]) for one in facts["longest"][:2]] == [
        ("sm90_xmma_fprop_implicit_gemm", 1500),
        ("loop_fusion_2", 1000),
    ]


def test_a_trace_of_this_machine_is_read_and_one_that_cannot_be_is_said_to_be_so():
    x = jnp.arange(2000.0).reshape(20, 100)
    program = jax.jit(lambda x: jnp.sort(x @ x.T, axis=0)).lower(x).compile()
    facts = trace.profile(lambda: jax.block_until_ready(program(x)), program.as_text(), 1)
    assert facts["source"] == "trace" and facts["shares"]["sort"] > 0

    def fail():
        raise RuntimeError("no profiler\nhere")

    facts = trace.profile(fail, HLO, 1)
    assert facts["source"] == "number of instructions; the trace cannot be read: RuntimeError: no profiler"
    assert facts["shares"]["sort"] > 0


def _record(case, seconds, platform="gpu"):
    ours = {"times": [seconds], "platform": platform, "version": "jax", "peak": 2**20}
    return {"case": case.name, "images": case.images, "ours": ours}


@pytest.fixture
def two_steps(monkeypatch):
    """Two steps of made up times; the second case of the first takes longer than the step may."""
    clock = [0.0]
    monkeypatch.setattr(gpu_day.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(measuring, "write_parameters", lambda folder: None)
    nms = tuple(cases.NMS(boxes) for boxes in (1, 2, 3))
    train = (cases.Network("train", "mask_rcnn", batch=8),)
    steps = (gpu_day.Step("nms", "NMS", 20.0, nms), gpu_day.Step("train", "Train step", 20.0, train))
    monkeypatch.setattr(gpu_day, "plan", lambda rehearse: steps)

    def measure(case, workers, rounds, seconds, deadline):
        clock[0] += 12.0
        return _record(case, 0.5, "cpu" if case == cases.NMS(99) else "gpu")

    monkeypatch.setattr(measuring, "measure", measure)
    return steps


def test_a_day_writes_each_result_at_once_and_keeps_to_its_times(two_steps, tmp_path, capsys):
    gpu_day.main([f"--output={tmp_path}", "--budget=1"])
    nms, train = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("nms", "train"))
    assert [record.get("skipped") for record in nms["records"]] == [None, None, "the time of its step was over"]
    assert train["records"][0]["ours"]["times"] == [0.5]
    table = (tmp_path / "gpu_day.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| mask_rcnn train, 512 x 512, batch 8 | 500 ± 0 |  |  | 16.00 |" in table
    gpu_day.main([f"--output={tmp_path}", "--budget=1", "--step=train", "--step=nms"])
    table = (tmp_path / "gpu_day.md").read_text()
    assert table.index("Train step") < table.index("NMS")
    # Nothing half written is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_day.md", "nms.json", "train.json"]


def test_a_day_that_is_over_says_what_was_not_run(two_steps, tmp_path):
    gpu_day.main([f"--output={tmp_path}", "--budget=0.3"])
    assert json.loads((tmp_path / "train.json").read_text())["skipped"] == "the budget of 0.3 minutes was used up"
    assert "Not run: the budget of 0.3 minutes was used up." in (tmp_path / "gpu_day.md").read_text()


def test_what_a_day_cannot_do_is_refused(two_steps, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="got step 'nm'; expected one of nms, train"):
        gpu_day.main([f"--output={tmp_path}", "--step=nm"])
    with pytest.raises(ValueError, match="budget"):
        gpu_day.main([f"--output={tmp_path}", "--budget=0"])
    on_cpu = (gpu_day.Step("nms", "NMS", 20.0, (cases.NMS(99),)),)
    monkeypatch.setattr(gpu_day, "plan", lambda rehearse: on_cpu)
    with pytest.raises(RuntimeError, match="no accelerator"):
        gpu_day.main([f"--output={tmp_path}"])
    gpu_day.main([f"--output={tmp_path}", "--rehearse"])


def test_a_missing_peer_is_said(two_steps, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "has_torchvision", lambda: False)
    gpu_day.main([f"--output={tmp_path}"])
    assert "torchvision is not here" in capsys.readouterr().out


IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("print()", "ended"),
        ("import time; print(flush=True); time.sleep(60)", "left when it was asked to"),
        (IGNORES, "had to be killed"),
    ],
)
def test_a_run_leaves_in_time(monkeypatch, code, ending):
    monkeypatch.setattr(gpu_day, "_SECONDS_TO_LEAVE", 0.2)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline()
    assert gpu_day._leave_in_time(process, time.monotonic() + (0.3 if ending != "ended" else 20.0)) == ending
    process.stdout.close()


# Of a bare machine: nothing but jax, flax, optax, jaxtyping and what these bring.
MISSING = (
    *("tensorflow", "tensorflow_datasets", "ml_collections", "pycocotools", "faster_coco_eval", "cv2", "PIL"),
    *("safetensors", "tensorboardX", "tqdm", "array_record", "hotcoco", "tests"),
)


def test_a_day_needs_no_more_than_jax_and_flax():
    block = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]))"
    code = f"{block}; import benchmarks.__main__, benchmarks.ours"
    subprocess.run([sys.executable, "-c", code, *MISSING], check=True)


@pytest.mark.long
@pytest.mark.slow
def test_a_rehearsal_on_a_cpu_measures_everything(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "gpu-day", "--rehearse", f"--output={tmp_path}", "--budget=30"]
    subprocess.run(command, check=True)
    results = {step.name: json.loads((tmp_path / f"{step.name}.json").read_text()) for step in gpu_day.plan(True)}
    assert "error" not in json.dumps(results) and "skipped" not in json.dumps(results)
    assert results["shapes"]["records"][0]["steps"] == 20
    assert results["trace"]["records"][0]["ours"]["source"] == "trace"
    assert all(check["passes"] is not False for one in results["checks"]["records"] for check in one["ours"]["checks"])


def test_a_pod_is_bound_by_its_arithmetic_or_its_links():
    pod = pods.Pod("two chips", 2, flops=100e12, memory=10e9, link=10e9)
    costs = {"flops": 1e12, "trained": 1_000_000_000, "state": 3_000_000_000, "kept": 2_000_000_000}
    # An image takes 10 ms of a chip, the gradients 2 x 1 GB x 1/2 / 10 GB/s = 100 ms.
    name, state, images, resident, kept, share, arithmetic, links, most, reached = pods.row(
        pod, "replicated", 1, **costs
    )
    assert (name, state, images, resident, kept, share) == ("two chips", "replicated", "1", "4.00", "2.0", "60%")
    assert (arithmetic, links, most, reached) == ("10.0", "100.0", "20 (links)", "20 (links)")
    # Half of state and gradients, and the parameters gathered; at a quarter of the peak four images take 160 ms.
    *_, resident, kept, share, arithmetic, links, most, reached = pods.row(pod, "fsdp", 4, **costs)
    assert (resident, kept, share) == ("3.00", "8.0", "110% (too much)")
    assert (arithmetic, links, most, reached) == ("40.0", "100.0", "80 (links)", "50")


def test_collectives_are_counted_with_the_bytes_of_their_results():
    hlo = """
      %gather = f32[8,16]{1,0} all-gather(%a), channel_id=1, dimensions={0}
      %reduce = (f32[], bf16[3]{0}, /*index=2*/pred[5]{0}) all-reduce(%b, %c, %d), to_apply=%add
      %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%e), dimensions={0}
      %done = f32[32]{0} all-gather-done(%start)
      %sum = f32[4]{0} add(%all-reduce.1, %f)
    """
    found = collectives(hlo)
    assert found["all-gather"] == (2, 8 * 16 * 4 + 32 * 4) and found["all-reduce"] == (1, 4 + 3 * 2 + 5)
    assert found["reduce-scatter"] == found["all-to-all"] == found["collective-permute"] == (0, 0)
