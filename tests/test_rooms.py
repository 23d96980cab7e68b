"""The import contracts of pyproject.toml: each reports the file that breaks it."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.processes import ROOT

# By contract: files that break it, with the import that does.
PROBES = {
    "a room imports from the rooms below it": {
        f"maskx_jax/{room}/probe_{number}.py": f"maskx_jax.{imported}"
        for number, (room, imported) in enumerate(
            [
                # Each room from the one above it, and from one beside it.
                *(
                    ("training", "cli.train"),
                    ("training", "export.stablehlo"),
                    ("report", "training.steps"),
                    ("weights", "training.steps"),
                    ("runs", "weights.files"),
                ),
                *(("data", "inference"), ("evaluation", "runs.workdir"), ("distributed", "training.loop")),
                *(("ops", "models.layers"), ("coco", "ops.boxes")),
                *(("data", "evaluation.checks"), ("evaluation", "data.records"), ("models/rcnn", "data.records")),
                *(("distributed", "models.layers"), ("evaluation", "distributed.mesh"), ("coco", "structures")),
            ]
        )
    },
    "a family of models stands on backbones, and these on layers": {
        "maskx_jax/models/rcnn/probe_build.py": "maskx_jax.models.build",
        "maskx_jax/models/backbones/probe_family.py": "maskx_jax.models.rcnn.rpn",
    },
    "ops and models are pure: no configuration, no TensorFlow, no files": {
        "maskx_jax/ops/probe_config.py": "ml_collections",
        "maskx_jax/models/rcnn/probe_tensorflow.py": "tensorflow",
        "maskx_jax/models/rcnn/probe_files.py": "maskx_jax.files",
    },
    "ops know no flax": {"maskx_jax/ops/probe_flax.py": "flax", "maskx_jax/ops/probe_types.py": "maskx_jax.structures"},
    "data and evaluation compute with NumPy": {
        "maskx_jax/data/probe_jax.py": "jax",
        "maskx_jax/evaluation/probe_flax.py": "flax",
        "maskx_jax/coco/probe_jax.py": "jax",
    },
    "only runs.checkpoints knows Orbax": {"maskx_jax/training/probe_orbax.py": "orbax"},
    "only coco.rle codes masks": {
        "maskx_jax/data/probe_hotcoco.py": "hotcoco",
        "maskx_jax/evaluation/probe_pycocotools.py": "pycocotools",
    },
    "configs import only ml_collections": {"configs/probe_package.py": "maskx_jax.coco.rle", "configs/probe.py": "jax"},
    "the package imports no configs": {"maskx_jax/runs/probe_configs.py": "configs.base"},
}

ROOMS_WITHOUT_A_PLACE = ("maskx_jax/newroom.py", "maskx_jax/models/newfamily.py")


def lint(folder: pathlib.Path) -> str:
    """Return what import-linter says of a copy of the packages, without its colors and line breaks."""
    program = "from importlinter.cli import lint_imports; print('exit', lint_imports(no_cache=True, verbose=False))"
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "1000", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Return what is said of the packages as they are, and of them with all probes at once."""
    folder = tmp_path_factory.mktemp("rooms")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in ("maskx_jax", "configs"):
        shutil.copytree(ROOT / package, folder / package, ignore=lambda _, names: {"__pycache__"} & set(names))
    as_it_is = lint(folder)
    for files in PROBES.values():
        for path, imported in files.items():
            (folder / path).write_text(f"import {imported}\n")
    for path in ROOMS_WITHOUT_A_PLACE:
        (folder / path).write_text("")
    return as_it_is, lint(folder)


def test_the_package_keeps_every_contract(reports):
    assert f"Contracts: {len(PROBES)} kept, 0 broken." in reports[0]
    assert all(f"{name} KEPT" in reports[0] for name in PROBES)


@pytest.mark.parametrize("contract", PROBES)
def test_each_file_that_breaks_a_contract_is_reported(reports, contract):
    assert f"{contract} BROKEN" in reports[1]
    # What is broken is explained below the list of contracts: a title underlined, then the imports.
    sections = reports[1].partition("Broken contracts")[2]
    section = sections.partition(f"\n{contract}\n---")[2].partition("\n---")[0]
    for path, imported in PROBES[contract].items():
        importer = path.removesuffix(".py").replace("/", ".")
        assert f"{importer} -> {imported} (l.1)" in section, section


def test_a_room_without_a_place_is_reported(reports):
    for path in ROOMS_WITHOUT_A_PLACE:
        assert f"\n- {path.removesuffix('.py').replace('/', '.')}\n" in reports[1]
