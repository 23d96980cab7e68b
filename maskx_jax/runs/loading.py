"""Load a trained model, for follow-up work."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from maskx_jax.coco.categories import Categories
from maskx_jax.data.transforms import Transform
from maskx_jax.errors import one_line
from maskx_jax.models.build import build, initialize
from maskx_jax.prediction.pictures import Given, is_one, pictures_of
from maskx_jax.prediction.predictions import Predictions
from maskx_jax.prediction.predictor import Options, Predictor
from maskx_jax.runs import hugging_face
from maskx_jax.runs.checkpoints import Checkpoints
from maskx_jax.runs.workdir import read_config
from maskx_jax.structures import PyTree


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model, ready to use.

    Attributes:
      config: of the run.
      model: `model.apply(variables, images, image_sizes, method="detect")` returns `structures.Detections`.
      variables: the averaged parameters where the run kept an average, else the last ones.
      categories: what its labels stand for.
      step: of the checkpoint.
    """

    config: ConfigDict
    model: nn.Module
    variables: PyTree
    categories: Categories
    step: int

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The model on pictures from anywhere, on all devices of this machine."""
        return Predictor(
            self.model,
            self.variables,
            self.categories,
            Transform(**self.config.data.transform),
            self.config.evaluation.mask_threshold,
            self.config.evaluation.paste_grid,
            self.config.evaluation.keypoint_grid,
            self.config.evaluation.keypoint_score,
        )

    def predict(
        self, pictures: Given | Iterable[Given], threshold: float = 0.5, **options: Any
    ) -> Predictions | list[Predictions]:
        """Return what the model finds in one picture, or in each of several.

        Args:
          pictures: a path, an image of Pillow or an array (uint8 `h w 3`, RGB); or several as a list, a folder, a
            pattern or a video. Of a video all frames are held in memory; `predictor.predict` yields them one by one.
          threshold: predictions of a lower score are left out.
          **options: other fields of `prediction.predictor.Options`.

        Raises:
          ValueError: a picture cannot be read, nothing is found under a name, or an option is out of range.
        """
        made = []
        for predicted in self.predictor.predict(pictures_of(pictures), Options(threshold=threshold, **options)):
            if predicted.predictions is None:
                raise predicted.error or ValueError(f"{predicted.picture.name}: cannot be read")
            made.append(predicted.predictions)
        return made[0] if is_one(pictures) else made


def load(workdir: str | pathlib.Path, step: int | None = None) -> Loaded:
    """Load a trained model from the work directory of a run, or from a folder that `export --format=hf` has written.

    Args:
      workdir: of `train.py`, or such a folder.
      step: the latest by default; a folder has one.

    Raises:
      FileNotFoundError: the directory holds no run, or no such checkpoint.
      ValueError: its config or the checkpoint is damaged, or does not fit this version.
      OSError: they cannot be read.
    """
    return _load_exported(workdir, step) if hugging_face.is_folder(workdir) else _load_run(workdir, step)


def _load_run(workdir: str | pathlib.Path, step: int | None) -> Loaded:
    config = read_config(workdir)
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.existing_step(step)
        model, variables = _build(config, len(checkpoints.categories(step)), workdir)
        abstract: dict[str, Any] = {
            "params": variables["params"],
            "frozen": variables.get("frozen", {}),
            "ema_params": variables["params"] if config.optimizer.ema_decay is not None else None,
        }
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_here()), abstract)
        restored, categories = checkpoints.restore_model(abstract, step)
    params = restored["params"] if restored["ema_params"] is None else restored["ema_params"]
    return Loaded(config, model, {"params": params, "frozen": restored["frozen"]}, categories, step)


def _load_exported(folder: str | pathlib.Path, step: int | None) -> Loaded:
    exported = hugging_face.read(folder)
    if step not in (None, exported.step):
        raise FileNotFoundError(f"expected a checkpoint of step {step}; {folder} holds that of step {exported.step}")
    model, expected = _build(exported.config, len(exported.categories), folder)
    try:
        variables = exported.variables(expected)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return Loaded(
        exported.config, model, {"frozen": {}} | jax.device_put(variables, _here()), exported.categories, exported.step
    )


def _build(config: ConfigDict, num_classes: int, where: str | pathlib.Path) -> tuple[Any, PyTree]:
    """Return the model and its variables' shapes."""
    try:
        model = build(config.model, num_classes)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: its config.json does not fit the models of this version ({one_line(error)}); load the run "
            "with the version that made it, which its environment.json names"
        ) from error
    return model, jax.eval_shape(lambda: initialize(model, jax.random.key(0)))


def _here() -> jax.sharding.Sharding:
    """Return where arrays are placed, explicitly: the run may have had other devices than this machine."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
