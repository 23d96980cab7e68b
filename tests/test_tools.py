"""The tools that are run by hand, end to end on the synthetic set."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import maskx_jax
from configs import mask_rcnn
from maskx_jax import evaluate
from maskx_jax.data.sources import open_source
from maskx_jax.training.sharding import make_mesh, replicated
from maskx_jax.training.steps import make_detect_step
from tests.golden.model_inputs import make_parameter, parameter_shapes
from tools import export_weights, launch
from tools.import_weights import import_weights
from tools.measure_devices import collectives

NUM_CLASSES = 6


@pytest.fixture(scope="module")
def state_dict():
    """Return torchvision's Mask R-CNN with one block a stage and six classes."""
    shapes = parameter_shapes(NUM_CLASSES, stage_sizes=(1, 1, 1, 1))
    return {name: make_parameter(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def run(state_dict, tmp_path_factory):
    """Return the work directory that the import made of it."""
    folder = tmp_path_factory.mktemp("import")
    save_file(state_dict, folder / "model.safetensors")
    config = mask_rcnn.get_config("data=shapes")
    config.model.backbone.stage_sizes = (1, 1, 1, 1)
    config.data.shapes.update(num_train=2, num_eval=8, num_hues=3, num_textures=2)
    config.data.transform.update(canvas=(128, 128), short_sides=(128,), max_long_side=128)
    config.data.loader = "threads"
    config.evaluation.batch_size = 8
    config.initialize.path = str(folder / "model.safetensors")
    import_weights(config, str(folder / "run"))
    return folder / "run"


@pytest.mark.slow
def test_an_imported_file_can_be_evaluated(run):
    loaded = maskx_jax.load(run)
    assert loaded.step == 0 and len(loaded.categories) == NUM_CLASSES
    data = loaded.config.data
    source = open_source("shapes", "", "val", data.shapes, training=False, seed=0)
    mesh = make_mesh()
    step = make_detect_step(loaded.model, mesh)
    variables = jax.device_put(loaded.variables, replicated(mesh))
    results = evaluate.detect(step, variables, source, loaded.config, mesh)
    images = {image["id"] for image in source.coco_ground_truth()["images"]}
    assert results and {result["image_id"] for result in results} <= images
    assert evaluate.score(results, source, loaded.config)["segm"]["all"]["AP"] < 0.1


@pytest.mark.slow
def test_an_existing_run_is_not_written_over(run):
    config = maskx_jax.load(run).config
    with pytest.raises(ValueError, match=r"holds a run already, at step 0"):
        import_weights(config, str(run))


@pytest.mark.slow
def test_what_was_imported_is_exported_again(run, state_dict, tmp_path):
    loaded = maskx_jax.load(run)
    output = tmp_path / "model.safetensors"
    save_file(export_weights.to_torchvision(loaded.variables, loaded.model, loaded.config.model), output)
    exported = load_file(output)
    assert sorted(exported) == sorted(state_dict)
    for name, value in state_dict.items():
        if ".bn" not in name and ".downsample.1" not in name:
            np.testing.assert_array_equal(exported[name], value, err_msg=name)
    text = export_weights.recipe(loaded, str(output))
    compile(text, "recipe", "exec")
    assert "num_classes=7" in text and "ResNet(Bottleneck, [1, 1, 1, 1])" in text


def test_the_import_asks_for_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"expected --config.initialize.path"):
        import_weights(mask_rcnn.get_config(), str(tmp_path))


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


def test_processes_are_joined_and_the_first_failure_is_the_exit_code(tmp_path):
    program = (
        "import os, pathlib, sys; names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_NUM_CPU_DEVICES');"
        "index = os.environ['JAX_PROCESS_ID'];"
        "(pathlib.Path(sys.argv[1]) / index).write_text(' '.join(os.environ.get(name, '-') for name in names));"
        "sys.exit(3 * int(index))"
    )
    assert launch.main(["--processes=3", "--devices=2", "--", "-c", program, str(tmp_path)]) == 3
    said = [(tmp_path / str(index)).read_text() for index in range(3)]
    assert len(set(said)) == 1 and said[0].startswith("localhost:") and said[0].endswith(" 3 2")
    # One process joins nobody.
    assert launch.main(["--processes=1", "--", "-c", program, str(tmp_path)]) == 0
    assert (tmp_path / "0").read_text() == "- - 1"
