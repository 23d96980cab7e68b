"""The toy family on the toy backbone, on the synthetic set."""

from ml_collections import ConfigDict

from configs import base, variants


def get_config() -> ConfigDict:
    config = base.get_config()
    variants.small(config)
    config.model.family = "cells"
    config.model.cells = ConfigDict({"size": 48.0})
    config.model.backbone = ConfigDict({"kind": "patches", "width": 8})
    config.data.source = "shapes"
    config.data.shapes.update(num_train=32, num_eval=8, image_size=64, num_hues=3, num_textures=2, max_objects=2)
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64, num_slots=4)
    # A schedule without an end, so that a run may be made longer.
    config.optimizer.update(schedule="step", decay_steps=(), warmup_steps=0)
    config.train.update(num_steps=8, log_every=1, checkpoint_every=4, eval_every=8)
    config.evaluation.num_pictures = 1
    return config
