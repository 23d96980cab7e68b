import collections
import json

import cv2
import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.data.shapes.source import ShapesSource
from tools import write_shapes


@pytest.mark.parametrize("flags", [[], ["--keypoints"]])
def test_pictures_and_annotations_are_those_of_the_source_and_masks_are_hidden(flags, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("red solid\ngreen solid\nblue solid\n")
    options = ["--num_images=40", "--num_hues=3", "--num_textures=2", "--image_size=48", "--seed=4", "--hide=0.5"]
    assert write_shapes.main([f"--output={tmp_path}", f"--keep={names}", *options, *flags]) == 0
    source = ShapesSource(40, 4, 48, 3, 2, keypoints=bool(flags))
    whole, partial = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "partial"))
    assert whole == source.coco_ground_truth()
    picture = cv2.imread(str(tmp_path / "images" / whole["images"][7]["file_name"]))[..., ::-1]
    np.testing.assert_array_equal(picture, source[7].image)
    counts, hidden = collections.Counter(), collections.Counter()
    for before, after in zip(whole["annotations"], partial["annotations"], strict=True):
        assert {**before, "segmentation": None} == {**after, "segmentation": None}
        if not before["iscrowd"]:
            counts[before["category_id"]] += 1
            hidden[before["category_id"]] += after["segmentation"] == []
        else:
            assert rle.decode(after["segmentation"]).any()
    kept = {1, 3, 5}
    assert all(hidden[i] == (counts[i] // 2 if i in kept else counts[i]) for i in counts) and len(counts) == 6
    assert f"{sum(hidden.values())} of {len(whole['annotations'])} masks hidden" in capsys.readouterr().out


def test_a_wrong_share_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--hide: got 2\.0; expected a share from 0 to 1"):
        write_shapes.main([f"--output={tmp_path}", "--hide=2"])
