"""What stands after the colon of --config, and which of it makes no sense together."""

import pytest

from configs import embedmask, fcos, mask_rcnn, maskx_rcnn, paper


@pytest.mark.parametrize("get_config", [module.get_config for module in (mask_rcnn, maskx_rcnn, fcos, embedmask)])
@pytest.mark.parametrize("other", ["schedule=1x", "backbone=r101", "jitter=short_sides", "start=weights"])
def test_the_small_experiment_has_its_own_backbone_and_schedule(get_config, other):
    for argument in (f"size=tiny,{other}", f"{other},size=tiny"):
        with pytest.raises(ValueError, match=rf"^variants size=tiny and {other} exclude each other: size=tiny brings"):
            get_config(argument)


def test_the_small_experiment_of_the_paper_has_its_own_classes_with_masks():
    with pytest.raises(ValueError, match=r"^variants size=tiny and masks=voc exclude each other"):
        paper.get_config("row=1a/cls,size=tiny,masks=voc")


def test_what_changes_something_else_stands_beside_the_size():
    config = mask_rcnn.get_config("size=tiny,batch=16,data=shapes,predictor=none,dtype=bfloat16,start=scratch")
    assert (config.data.transform.canvas, config.train.batch_size, config.train.num_steps) == ((128, 128), 16, 500)
    assert mask_rcnn.get_config("size=full,schedule=2x").train.num_steps == 180_000
