"""What the configs of all families share: every field once, with the values for R-50 on COCO at 16 images a step.

A field is set on the command line by its path: --config.optimizer.learning_rate=0.01. A family of detectors adds its
section of `model`: see configs/families/.

A run is continued with the values that it was begun with, but for those that stand in `may_change(...)`: they decide
neither on the examples nor on the model nor on its updates.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Return the base config."""
    config = ConfigDict()
    # Order of examples, augmentation and sampling are functions of (seed, step); the initial weights of the seed.
    config.seed = 0
    # The other processes of a run on many hosts: see docs/scaling.md.
    config.distributed = may_change(
        {
            # Whether there are others; JAX finds them on Cloud TPUs, SLURM, Kubernetes and under MPI, and elsewhere
            # through JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
            "enabled": False,
            # Seconds to wait for all of them to join.
            "start_timeout": 300,
            # Seconds without a heartbeat after which one is lost.
            "peer_timeout": 100,
        }
    )
    config.watchdog = may_change(
        {
            # Seconds between the heartbeats that every process writes into the work directory.
            "heartbeat_every": 10.0,
            # A process that makes no step for this many seconds prints where it is (compilation counts).
            "report_after": 600.0,
            # And after this many it ends, where a number is given.
            "exit_after": config_dict.placeholder(float),
        }
    )
    # Weights to start from: the work directory of a run, or a file of torchvision, timm, detectron2 or Detectron. The
    # conventions that the weights were trained with replace those of `model` and `evaluation` below.
    config.initialize = may_change(
        {
            # The work directory or the file; without it a run starts from random values.
            "path": config_dict.placeholder(str),
            # Of a file: "auto", or a name in `maskx_jax.weights.layouts.LAYOUTS`.
            "preset": "auto",
            # Regular expressions over whole parameter paths: these start fresh, whatever the source has.
            "new": (),
            # Regular expressions over whole names in the source: these are left there.
            "unused": (),
            # Names of a file's classes in the order of its rows, where it has none and they are not COCO's.
            "classes": (),
            # Fields that keep their value here although the weights come with another ("model.pixels.mean").
            "keep": (),
        }
    )

    config.model = ConfigDict(
        {
            # A name in `maskx_jax.models.build.FAMILIES`. The section of that name is the family's own: the files in
            # configs/families/ write it.
            "family": config_dict.placeholder(str),
            # Of the computation: "float32" or "bfloat16". Parameters, losses and boxes are float32 always.
            "dtype": "float32",
            # Detections an image, over all classes.
            "max_detections": 100,
            # As the backbone's weights were trained.
            "pixels": {
                "mean": (123.675, 116.28, 103.53),
                "std": (58.395, 57.12, 57.375),
                "channel_order": "rgb",
            },
            "backbone": {
                # "resnet"; "resnet_c4": its last stage works on regions, without a pyramid (backbone=r50_c4);
                # "efficientnet_lite" has other fields (backbone=lite0).
                "kind": "resnet",
                "stage_sizes": (3, 4, 6, 3),
                "width": 64,
                "groups": 1,
                "group_width": config_dict.placeholder(int),
                "norm": "frozen_batch",
                "stride_in_1x1": False,
                "remat": may_change(False),
            },
        }
    )
    # Fixed class vectors for model.rcnn.weight_transfer.input = "embedding".
    config.embedding = ConfigDict(
        {
            # An .npz with `names` and tables; without it the vectors are random.
            "path": config_dict.placeholder(str),
            # Which of its tables.
            "table": "glove",
        }
    )

    config.data = ConfigDict(
        {
            # "prepared": a directory written by `python -m maskx_jax prepare`. "shapes": the synthetic set.
            "source": "prepared",
            # Of a prepared dataset, and its splits to train and to evaluate on.
            "directory": may_change(config_dict.placeholder(str)),
            "train_split": "train",
            "eval_split": may_change("val"),
            # Which classes keep their masks in training: see `maskx_jax.coco.mask_classes.mask_labels`.
            "mask_classes": "all",
            # Of the objects that have keypoints, the fraction that keeps them in training, drawn by the image's id.
            "keypoint_fraction": 1.0,
            # The weight of a mask that a model predicted is its quality times this, that of one that a person drew 1:
            # for sets prepared with --predicted_masks=use, others take 1 alone. Weights are relative within a batch.
            "predicted_mask_weight": 1.0,
            # Fields of `maskx_jax.data.transforms.Transform`. Evaluation uses the largest short side.
            "transform": {
                "canvas": (800, 1344),
                "short_sides": (800,),
                "max_long_side": 1333,
                "flip_probability": 0.5,
                "jitter_scales": config_dict.placeholder(tuple),
                "min_box_side": 1.0,
                "num_slots": 100,
            },
            # A folder on a local disk where what a frozen backbone, and a frozen pyramid, make of each image is kept,
            # so that it is computed once; runs with the same ones may share it (docs/small_data.md).
            "cache_features": may_change(config_dict.placeholder(str)),
            # What the folder may hold; images beyond it are computed each time.
            "cache_gigabytes": may_change(20.0),
            # Images with rare classes are repeated (LVIS): classes in less than this fraction of images; 0 is off.
            "repeat_threshold": 0.0,
            # Whether images without objects are trained on, as all background; Detectron and detectron2 leave them out.
            "keep_empty_images": True,
            # Who makes the examples, to the bit the same: "threads", "tf_data", or "processes" where the interpreter's
            # lock bounds the others (docs/performance.md compares them).
            "loader": may_change("threads"),
            # Examples made at the same time, by each process; without a number one a core that it may use, at most 16.
            "num_workers": may_change(config_dict.placeholder(int)),
            # Batches made ahead.
            "prefetch": may_change(4),
            # Records read at the same time, before their turn, by each process: more for storage that takes longer to
            # answer. 0: whoever makes an example reads its record.
            "read_ahead": may_change(16),
            # Broken records (an image that does not decode) that a process may skip in training; another example stands
            # in for each. Evaluation skips none.
            "max_broken_records": may_change(0),
            # Of the synthetic set: `maskx_jax.data.shapes.source.ShapesSource`.
            "shapes": {
                # Images to train and to evaluate on.
                "num_train": 2000,
                "num_eval": may_change(100),
                "image_size": 128,
                "num_hues": 10,
                "num_textures": 6,
                "max_objects": 4,
                "pair_fraction": 0.7,
                "crowd_fraction": 0.04,
                "empty_fraction": 0.02,
                "keypoints": False,
            },
        }
    )

    config.optimizer = ConfigDict(
        {
            # "sgd" or "adamw".
            "name": "sgd",
            # After the warm-up.
            "learning_rate": 0.02,
            # Of SGD.
            "momentum": 0.9,
            # Of kernels; biases and the parameters of norms have none.
            "weight_decay": 1e-4,
            # Biases learn this much faster.
            "bias_learning_rate_factor": 2.0,
            # Largest global norm of the gradient; 0 turns clipping off.
            "clip_norm": 0.0,
            # "step": the learning rate is multiplied by `decay_factor` at each of `decay_steps`. "cosine": it falls to
            # 0 along half a period.
            "schedule": "step",
            "decay_steps": (60_000, 80_000),
            "decay_factor": 0.1,
            # In these first steps it rises linearly from `warmup_factor` times its value.
            "warmup_steps": 500,
            "warmup_factor": 1 / 3,
            # Regular expressions over whole parameter paths: what matches one is not trained.
            "untrained": ("backbone/stem(_norm)?/.*", "backbone/res2_.*"),
            # Decay of a running average of the parameters, used for evaluation, where one is given. In the first steps
            # it is (1 + step) / (10 + step), where that is less.
            "ema_decay": config_dict.placeholder(float),
            # Parts that the batch is worked through in; they must divide the images of each device: less memory for
            # about a third more time, and the same gradients.
            "num_microbatches": 1,
        }
    )

    config.train = ConfigDict(
        {
            # Images a step, over all devices. Learning rate and steps are for 16: the variant batch=4 sets them for 4
            # by the linear scaling rule (`variants.batch`); this field by itself changes nothing else.
            "batch_size": 16,
            # Where the run ends. It may be another step where optimizer.schedule is "step": the learning rate does not
            # depend on it.
            "num_steps": 90_000,
            # "replicated": every device holds all parameters and their optimizer state. "fsdp": large arrays are split
            # over the devices, for more memory a device at the price of communication. Checkpoints fit either.
            "state_sharding": may_change("replicated"),
            # Steps between lines of the log, and between checkpoints.
            "log_every": may_change(20),
            "checkpoint_every": may_change(5_000),
            # Steps between evaluations. Evaluation also writes a checkpoint; 0 leaves it to eval.py.
            "eval_every": may_change(10_000),
            # How many of the latest are kept.
            "keep_checkpoints": may_change(2),
            # The checkpoint that is best by a metric is kept too: by the first of these that the data and the model
            # measure, <kind>/<group>/<name>, groups all, A, B and mixed; () for none.
            "best_metric": may_change(("segm/all/AP", "bbox/all/AP")),
        }
    )

    config.evaluation = may_change(
        {
            # Images at a time, over all devices.
            "batch_size": 16,
            # Processes that paste and encode masks; 1: the one that feeds the devices does it, between batches.
            "num_processes": 1,
            # The classes of A, scored apart from the others (B), where they are not data.mask_classes: a model that
            # learned all masks is compared on the classes that others learned without. Or names by group: A, B, mixed.
            "mask_classes": config_dict.placeholder(object),
            # Probability from which a pixel is of the object.
            "mask_threshold": 0.5,
            # How a mask is put into the image: "continuous" or "integer", explained at
            # `maskx_jax.evaluation.paste_masks.paste_mask`; the convention that the weights' own evaluation used.
            "paste_grid": "continuous",
            # Keypoints are found to a pixel of the original "image" (Detectron), or of the "canvas" (detectron2,
            # torchvision); explained at `maskx_jax.evaluation.keypoints.decode`.
            "keypoint_grid": "image",
            # The third number of a keypoint: its "probability" (detectron2), or its "logit" (torchvision, Detectron).
            "keypoint_score": "probability",
            # Whether to score the boundaries of masks too (Boundary AP); takes longer.
            "boundary": False,
            # Who matches detections with ground truth, with the same numbers: "hotcoco", or more slowly
            # "faster_coco_eval", or still more slowly "pycocotools".
            "backend": "hotcoco",
            # Pictures of predictions beside ground truth.
            "num_pictures": 8,
            # Of the detections in them.
            "picture_score_threshold": 0.5,
        }
    )
    # The marked fields, and sections, that a run may be continued with other values of.
    config.may_change = ()
    collect_marks(config)
    return config


@dataclasses.dataclass(frozen=True)
class _Mark:
    value: Any


def may_change(value: Any) -> Any:
    """Mark the value of a field, or a section with all its fields: a run may be continued with another one."""
    return _Mark(ConfigDict(value) if isinstance(value, dict) else value)


def collect_marks(config: ConfigDict) -> None:
    """Add to `config.may_change` the fields and sections that are marked in it, and take the marks away."""
    names = _take_marks(config)
    config.may_change = (*config.may_change, *names)


def _take_marks(config: ConfigDict, prefix: str = "") -> tuple[str, ...]:
    names: list[str] = []
    with config.ignore_type():
        for name, value in config.items():
            if isinstance(value, _Mark):
                config[name] = value.value
                names.append(prefix + name)
            elif isinstance(value, ConfigDict):
                names += _take_marks(value, f"{prefix}{name}.")
    return tuple(names)


Variants = Mapping[str, Mapping[str, Callable[[ConfigDict], None]]]


def apply_variants(
    config: ConfigDict, argument: str | None, variants: Variants, excluded: Mapping[str, Collection[str]] | None = None
) -> ConfigDict:
    """Apply what stands after the colon in --config=file.py:name=choice,name=choice.

    Args:
      config: changed in place, and returned.
      argument: "name=choice,name=choice", empty or None.
      variants: for each name its choices, and what each does to the config. They are applied in the order given here,
        so that a later variant builds on an earlier one.
      excluded: for a "name=choice", the names and the "name=choice" that make no sense beside it.

    Raises:
      ValueError: a name or choice is unknown (the nearest one is suggested), a name is given twice, or one excludes
        another.
    """
    chosen: dict[str, str] = {}
    for item in (argument or "").split(","):
        if not item:
            continue
        name, _, choice = item.partition("=")
        _expect(name, variants, "variant")
        _expect(choice, variants[name], f"choice of {name!r}")
        if name in chosen:
            raise ValueError(f"variant {name!r} is given twice in {argument!r}")
        chosen[name] = choice
    given = [f"{name}={choice}" for name, choice in chosen.items()]
    for one, other in itertools.product(given, given):
        name = other.partition("=")[0]
        if {name, other} & set((excluded or {}).get(one, ())):
            raise ValueError(f"variants {one} and {other} exclude each other: {one} brings its own {name}")
    for name, choices in variants.items():
        if name in chosen:
            choices[chosen[name]](config)
    return config


def _expect(word: str, known: Mapping[str, object], what: str) -> None:
    if word not in known:
        nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)
        raise ValueError(f"unknown {what} {word!r}; did you mean {nearest[0]!r}? All: {', '.join(known)}")
