"""The demo: a tiny Mask^X R-CNN on the synthetic set, 5 to 15 minutes on two CPU cores.

    make demo

Of 40 categories (10 hues x 4 textures) 32 have masks. Most objects stand in pairs of different categories with nearly
the same box, so the mask head has to know what a category looks like, also for the eight that never had a mask.
"""

from ml_collections import ConfigDict

from configs import maskx_rcnn


def get_config() -> ConfigDict:
    """Return the config of the demo."""
    config = maskx_rcnn.get_config("size=tiny,data=shapes,mlp=light")
    config.data.mask_classes = "random(1,32)"
    # A category is a colour and a texture here: the weights that place its boxes say nothing about it. (On real images
    # they help.)
    config.model.rcnn.weight_transfer.input = "cls"
    config.data.shapes.update(num_hues=10, num_textures=4, num_train=4000, num_eval=200)
    # eval.py scores the result.
    config.train.update(num_steps=1600, eval_every=0, checkpoint_every=400)
    return config
