"""A model that compiles in a second, in place of the detector: what happens to a run does not depend on its layers."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from maskx_jax.ops.losses import Mean, masked_mean
from maskx_jax.structures import Batch, Detections

NUM_DETECTIONS = 2


class StandIn(nn.Module):
    """Predicts a box and a class for each image; draws random numbers and learns as the detectors do."""

    num_classes: int

    produces = frozenset({"boxes", "masks"})
    multiple = 32

    def setup(self) -> None:
        self.conv = nn.Conv(8, (16, 16), (16, 16))
        self.out = nn.Dense(NUM_DETECTIONS * (4 + self.num_classes))

    def losses(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        means = self.loss_means(batch, jax.random.split(key, batch.images.shape[0]))
        losses = {name: mean.value() for name, mean in means.items()}
        return losses["box"] + losses["box_class"], losses

    def loss_means(self, batch: Batch, keys: jax.Array) -> dict[str, Mean]:
        gt = batch.ground_truth
        boxes, logits = self._predict(batch.images)
        slot = jax.vmap(lambda key: jax.random.randint(key, (), 0, gt.boxes.shape[1]))(keys)
        box = jnp.take_along_axis(gt.boxes, slot[:, None, None], axis=1)
        label = jnp.take_along_axis(gt.labels, slot[:, None], axis=1)
        size = jnp.tile(batch.image_sizes[:, ::-1], 2)[:, None]
        target = jax.nn.one_hot(label - 1, self.num_classes)
        errors = {"box": (boxes - box / size) ** 2, "box_class": (logits - target) ** 2}
        return {name: masked_mean(error, jnp.ones(error.shape, bool)) for name, error in errors.items()}

    def detect(self, images: jax.Array, image_sizes: jax.Array) -> Detections:
        boxes, logits = self._predict(images)
        corners = jnp.sort(jax.nn.sigmoid(boxes).reshape(*boxes.shape[:2], 2, 2), axis=2).reshape(boxes.shape)
        scores = jax.nn.sigmoid(logits)
        return Detections(
            boxes=corners * jnp.tile(image_sizes[:, ::-1], 2)[:, None],
            scores=scores.max(-1),
            labels=scores.argmax(-1) + 1,
            masks=jnp.broadcast_to(scores.max(-1)[..., None, None], (*scores.shape[:2], 28, 28)),
            valid=jnp.ones(scores.shape[:2], bool),
        )

    def _predict(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = nn.relu(self.conv(images.astype(jnp.float32) / 255)).mean((1, 2))
        out = self.out(features).reshape(-1, NUM_DETECTIONS, 4 + self.num_classes)
        return out[..., :4], out[..., 4:]
