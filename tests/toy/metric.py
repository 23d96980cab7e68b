"""A metric: AP at an IoU of 0.9."""

from maskx_jax.evaluation.matching import Metric


# An entry of `metric_definitions` in maskx_jax/evaluation/metrics.py.
def strict_precision(max_detections):
    return {"AP90": Metric("precision", 0.9, "all", max_detections)}
