"""A small set of made-up images, its report, and a browser, for the tests of reports."""

import os
import pathlib
import shutil

import pytest

from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.report import Dataset, Model, write
from maskx_jax.report.inputs import picture_of_source
from tests.processes import ROOT
from tests.report.made import results

NUM_IMAGES = 60


@pytest.fixture(scope="session")
def shapes_source():
    return ShapesSource(NUM_IMAGES, seed=3, image_size=96, num_hues=3, num_textures=2)


@pytest.fixture(scope="session")
def shapes_truth(shapes_source):
    return shapes_source.coco_ground_truth()


@pytest.fixture
def eval_fixtures():
    folder = pathlib.Path(os.environ.get("MASKX_EVAL_FIXTURES", ROOT.parent / "shared/data/eval_fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no published result files at {folder}: set MASKX_EVAL_FIXTURES")
    return folder


@pytest.fixture(scope="session")
def made(shapes_source, shapes_truth):
    """Return a dataset with groups, two models, and what the first of them logged."""
    ids = [category["id"] for category in shapes_truth["categories"]]
    groups = {"A": ids[:4], "B": ids[4:]}
    dataset = Dataset(shapes_truth, groups, ("bbox", "segm"), None, picture_of_source(shapes_source))
    history = [{"step": step, "train/total": 2 / step, "eval/segm/all/AP": step / 900} for step in range(10, 600, 10)]
    first = Model("first", results(shapes_truth), history)
    # Its title would be markup, were it not written as text.
    return dataset, [first, Model("<b>second</b>", results(shapes_truth, seed=5, found=0.6))]


@pytest.fixture(scope="session")
def page(made, tmp_path_factory):
    """Return the page of the report of `made`."""
    return write(*made, tmp_path_factory.mktemp("report") / "report", num_draws=50)


@pytest.fixture(scope="session")
def browser():
    """Return Debian's chromium, without a window."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
