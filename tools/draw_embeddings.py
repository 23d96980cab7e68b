"""Draw what EmbedMask's embeddings look like, beside ground truth and detections.

    python -m tools.draw_embeddings --workdir=RUN --output=FOLDER

Of the first images of the set that the run is evaluated on. The colours of the last panels are the first three
principal components of the embeddings of the image's pixels: pixels of one colour are of one object, or could be.
"""

import math
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from maskx_jax import errors, files
from maskx_jax.data.sources import open_source
from maskx_jax.data.transforms import Transform
from maskx_jax.evaluation import results
from maskx_jax.runs import evaluation
from maskx_jax.runs.loading import Loaded, load


def principal_colors(embeddings: np.ndarray) -> np.ndarray:
    """Return the first three principal components of the vectors of a map as red, green and blue.

    Two standard deviations on each side of the mean take the range of a colour. The largest weight of a component is
    positive, so that the same map always has the same colours.

    Args:
      embeddings: `h w e`, with e >= 3.

    Returns:
      uint8 `h w 3`.
    """
    vectors = embeddings.reshape(-1, embeddings.shape[-1]).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    # Eigenvalues come in ascending order.
    components = np.linalg.eigh(vectors.T @ vectors)[1][:, :-4:-1]
    components *= np.sign(components[np.abs(components).argmax(axis=0), np.arange(3)])
    projected = vectors @ components
    scaled = 0.5 + projected / (4 * np.maximum(projected.std(axis=0), 1e-12))
    return (255 * np.clip(scaled, 0, 1)).round().astype(np.uint8).reshape(*embeddings.shape[:2], 3)


def draw(run: Loaded, folder: pathlib.Path) -> int:
    """Draw the first images of the set that a run is evaluated on, each into a file; return their number.

    Raises:
      ValueError: the run's model has no embeddings.
    """
    head = getattr(run.model, "embed_head", None)
    if head is None:
        raise ValueError("the run's model has no embeddings; expected EmbedMask (configs/embedmask.py)")
    config = run.config
    source = open_source(config.data, training=False, seed=config.seed)
    transform = Transform(**config.data.transform).for_evaluation()
    entries: list[dict[str, Any]] = []
    pictures: dict[int, dict[str, np.ndarray]] = {}

    @jax.jit
    def predict(*arguments: Any) -> Any:
        return [run.model.apply(*arguments, method=method) for method in ("detect", "embeddings")]

    for index in range(min(config.evaluation.num_pictures, len(source))):
        record = source[index]
        height, width = record.size
        example, _ = transform(record, transform.canvas_of(height > width), np.random.default_rng(0), num_slots=0)
        batch = predict(run.variables, example.images[None], example.image_sizes[None])
        found, embeddings = jax.tree.map(lambda array: array[0], jax.device_get(batch))
        entries += results.entries(
            found,
            image_id=record.image_id,
            image_size=record.size,
            scale=float(example.scales),
            id_of_label=source.categories.id_of_label(),
            mask_threshold=config.evaluation.mask_threshold,
            grid=config.evaluation.paste_grid,
        )
        # Without the padding of the canvas.
        stride = example.images.shape[0] / embeddings.pixels.shape[0]
        rows, columns = (math.ceil(side / stride) for side in example.image_sizes)
        pixels = embeddings.pixels[:rows, :columns]
        pictures[record.image_id] = {"embeddings": principal_colors(pixels)}
        if head.form == "ijcai":
            # Two dimensions are the place in the image, which outweighs the others.
            pictures[record.image_id]["embeddings without the place"] = principal_colors(pixels[..., 2:])
    groups = evaluation.scored_groups(source.categories, config)
    evaluation.draw({"predictions": entries}, source, source.coco_ground_truth(), config, folder, groups, pictures)
    return len(pictures)


def main(arguments: list[str] | None = None) -> None:
    """Draw as the arguments say."""
    parser = errors.ArgumentParser(prog="python -m tools.draw_embeddings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, help="work directory of a run of EmbedMask")
    parser.add_argument("--step", type=int, help="of the checkpoint; the latest by default")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for the pictures")
    parser.add_argument("--num_pictures", type=int, default=12)
    parser.add_argument("--score_threshold", type=float, help="of the detections shown; the run's by default")
    options = parser.parse_args(arguments)
    # Orbax writes a page for every checkpoint at the level below.
    logging.set_verbosity(logging.WARNING)
    run = load(options.workdir, options.step)
    if options.score_threshold is not None:
        run.config.evaluation.picture_score_threshold = options.score_threshold
    run.config.evaluation.num_pictures = options.num_pictures
    number = draw(run, files.folder_in(options.output))
    print(f"wrote {number} pictures into {options.output}")


if __name__ == "__main__":
    errors.run(main)
