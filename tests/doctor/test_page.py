"""The page: it stands for itself, says what was found, and lets no text of a file become part of it."""

import re

import pytest

from configs import maskx_rcnn
from maskx_jax.doctor.page import render
from tests.doctor.dataset import Dataset, synthetic


@pytest.fixture
def data(tmp_path) -> Dataset:
    return synthetic(tmp_path / "data")


def test_the_page_says_what_was_found_and_stands_for_itself(data):
    annotation = data.train["annotations"][0]
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x, y, 0.7 * width, height]
    page = render(data.examine(config=maskx_rcnn.get_config()))
    assert "<code>mask_leaves_box</code>" in page and "<h2>Split val</h2>" in page
    assert "<code>data.transform.num_slots</code>" in page and "best anchor overlaps" in page
    assert page.count("<figure>") == 1 and "data:image/jpeg;base64," in page
    assert not re.search(r"<script|<link|src='(?!data:)|href=|url\(|@import", page)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "' onerror='alert(1)", "é\ud800"])
def test_names_out_of_a_file_are_text(name, data):
    for content in data.contents.values():
        content["categories"][0]["name"] = name
    data.train["annotations"][0]["area"] = 0
    data.train["images"].append({"id": 9999, "file_name": f"{name}.png", "height": 9, "width": 9})
    page = render(data.examine())
    page.encode()
    assert "<script" not in page
    assert not re.search(r"<[^>]*onerror", page)


def test_no_picture_outside_of_the_folder_is_shown(data):
    image = data.train["images"][0]
    image["file_name"] = f"../train/{image['file_name']}"
    data.train["annotations"][0]["area"] = 0
    page = render(data.examine())
    assert "<code>area_repaired</code>" in page and "<figure>" not in page


def test_without_pictures_there_are_none(data):
    data.with_pictures = False
    data.train["annotations"][0]["area"] = 0
    page = render(data.examine())
    assert "pictures not looked at" in page and "<figure>" not in page
