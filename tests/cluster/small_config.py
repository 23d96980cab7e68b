"""The configs of the small runs: 64-pixel images of six categories, eight steps with two evaluations."""

from ml_collections import ConfigDict

from configs import embedmask, fcos, keypoint_rcnn, maskx_rcnn

SYSTEMS = {
    "maskx_rcnn": (maskx_rcnn, "size=tiny,data=shapes,mlp=light"),
    "keypoint_rcnn": (keypoint_rcnn, "size=tiny,data=shapes,masks=yes"),
    "fcos": (fcos, "size=tiny,data=shapes"),
    "embedmask": (embedmask, "size=tiny,data=shapes"),
}


def get_config(system: str | None = None) -> ConfigDict:
    """Return the config of one of the systems, by default of Mask^X R-CNN."""
    module, variants = SYSTEMS[system or "maskx_rcnn"]
    config = module.get_config(variants)
    config.data.mask_classes = "random(1,4)"
    config.data.shapes.update(num_train=32, num_eval=6, image_size=64, num_hues=3, num_textures=2, max_objects=2)
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64, num_slots=4)
    config.model.backbone.width = 8
    config.model.max_detections = 5
    {"rcnn": _small_rcnn, "dense": _small_dense}[config.model.family](config.model[config.model.family])
    config.optimizer.schedule = "step"
    config.train.update(batch_size=4, num_steps=8, log_every=1, checkpoint_every=2, eval_every=4, keep_checkpoints=3)
    config.evaluation.update(batch_size=4, num_pictures=0)
    config.distributed.update(start_timeout=60, peer_timeout=20)
    config.watchdog.heartbeat_every = 0.5
    return config


def _small_rcnn(model: ConfigDict) -> None:
    model.fpn.channels = model.rpn.channels = 16
    model.rpn.update(num_samples=32, pre_nms_top_k=(50, 50), post_nms_top_k=(20, 20))
    model.box_head.update(hidden=32, num_samples=16)
    model.mask_head.update(channels=16, num_convs=1, num_samples=4)
    model.keypoint_head.update(channels=16, num_convs=1, num_samples=4)


def _small_dense(model: ConfigDict) -> None:
    model.fpn.channels = 16
    model.head.update(channels=16, num_convs=1, pre_nms_top_k=50)
    model.embed_head.update(channels=16, num_convs=1, resolution=28)
