"""A run as a folder for the Hugging Face Hub: weights and config, which `maskx_jax.load` reads, and a model card."""

import pathlib
from typing import Any

from maskx_jax import files
from maskx_jax.errors import one_line, some
from maskx_jax.evaluation import scores
from maskx_jax.runs import hugging_face
from maskx_jax.runs.loading import Loaded
from maskx_jax.runs.workdir import DATA_FILE, read_groups
from maskx_jax.weights.pretrained import conventions_of

# Classes that the card names; `config.json` names all.
_NAMED = 100
_CARD = """\
---
library_name: maskx_jax
pipeline_tag: image-segmentation
# Say what you publish it under: license: ...
tags:
- instance-segmentation
- jax
- flax
---

# {system}, {num_classes} classes

{finds} of {num_classes} classes, trained with maskx_jax to step {step}.

## Use

```python
import maskx_jax

run = maskx_jax.load("FOLDER")  # this one
found = run.predict("street.jpg", threshold=0.5)  # boxes, labels, names, scores and masks
```

`model.safetensors` has the parameters by their paths; `config.json` has the run's config, the categories in the order
of the labels (the first is label 1) and the conventions of pixels, anchors and RoIAlign.

## Classes

{classes}

## Scores

{table}

## Licence

The code that reads this folder is under Apache-2.0. What these weights may be used for is for whoever publishes them to
say: it depends on the data that they were trained on, and on the weights that training began with.
"""


def write(run: Loaded, folder: pathlib.Path, workdir: str | pathlib.Path | None = None) -> None:
    """Write `model.safetensors`, `config.json`, `data.json` and `README.md` into a folder.

    Args:
      run: a trained model.
      folder: to write to.
      workdir: where it was loaded from: the classes that are scored as A and B, and the table of its evaluation at this
        step, are read there. Without it the card has no scores.

    Raises:
      ValueError: what the work directory says of its groups or scores is damaged.
      OSError: a file cannot be read or written.
    """
    more = {"conventions": conventions_of(run.config)}
    hugging_face.write(folder, run.config, run.categories, run.step, run.variables, more)
    groups = None if workdir is None else read_groups(workdir, run.categories)
    if groups is not None:
        name_of_id = dict(zip(run.categories.ids, run.categories.names, strict=True))
        names = {group: [name_of_id[i] for i in members] for group, members in groups.items()}
        files.write_json(folder / DATA_FILE, {"groups": names})
    files.write_text(folder / "README.md", card(run, None if workdir is None else scores_table(workdir, run.step)))


def card(run: Loaded, table: str | None) -> str:
    """Return the model card.

    Args:
      run: a trained model.
      table: of its scores, as plain text; None if it was not evaluated.
    """
    return _CARD.format(
        system=_system(run.config.model),
        finds=" and ".join(sorted(run.model.produces)).capitalize(),
        num_classes=len(run.categories),
        step=run.step,
        classes=some(run.categories.names, _NAMED),
        table=f"```\n{table}\n```" if table else "Not evaluated.",
    )


def _system(model: Any) -> str:
    """Return what a model is called."""
    if model.family == "rcnn":
        if model.rcnn.get("keypoint_predictor", "none") != "none":
            return "Keypoint R-CNN" if model.rcnn.mask_predictor == "none" else "Mask R-CNN with keypoints"
        return {"none": "Faster R-CNN", "transfer": "Mask^X R-CNN"}.get(model.rcnn.mask_predictor, "Mask R-CNN")
    if model.family == "dense":
        return "FCOS" if model.dense.masks == "none" else "EmbedMask"
    return str(model.family)


def scores_table(workdir: str | pathlib.Path, step: int) -> str | None:
    """Return the table of what `evaluate` has measured at a step of a run; None if it has not.

    Raises:
      ValueError: the file is damaged.
    """
    path = pathlib.Path(workdir) / "evaluation" / str(step) / "metrics.json"
    if not path.exists():
        return None
    try:
        return scores.titled_table(files.read_json(path))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as the scores of an evaluation ({one_line(error)})") from error
