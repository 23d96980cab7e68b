"""A run as a SavedModel, which TensorFlow runs without JAX.

`jax.experimental.jax2tf` does the same, but in the StableHLO of the newest months, which a TensorFlow that is a few
months older does not read.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from jax import export
from jaxlib.mlir.dialects import stablehlo

from maskx_jax import files
from maskx_jax.export.detection import FACTS_FILE, PLATFORMS, canvases, facts, inputs, make_detect
from maskx_jax.runs.loading import Loaded


def write(run: Loaded, folder: pathlib.Path, batch_size: int | None = None) -> None:
    """Write a SavedModel with a signature for each canvas, and what one has to know to run it (`model.json`).

    A signature takes images and image_sizes by name, and returns boxes, labels, scores, valid and, of models with
    masks, masks. All share one copy of the parameters.

    Args:
      run: a trained model.
      folder: to write to.
      batch_size: images of a batch; any number by default.

    Raises:
      ValueError: the batch size is not positive.
      OSError: a file cannot be written.
    """
    import tensorflow as tf

    detect = jax.jit(make_detect(run), keep_unused=True)
    parameters = [tf.Variable(np.asarray(array), trainable=False) for array in jax.tree.leaves(run.variables)]
    module = tf.Module()
    module.parameters = parameters
    # Without the devices that they lie on here.
    variables = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), run.variables)
    signatures = {}
    for name, canvas in canvases(run).items():
        program = export.export(detect, platforms=PLATFORMS)(variables, *inputs(canvas, batch_size))
        signatures[name] = _signature(tf, program, parameters)
    tf.saved_model.save(module, str(folder), signatures=signatures)
    about = {"format": "saved_model", "tensorflow": tf.__version__, "platforms": list(PLATFORMS)}
    files.write_json(folder / FACTS_FILE, about | facts(run, batch_size))


def _signature(tf: Any, program: export.Exported, parameters: list[Any]) -> Any:
    """Return the function of TensorFlow that runs a program of parameters, images and image_sizes."""
    # Where jax2tf has it from too: it is not among TensorFlow's public operations.
    from tensorflow.compiler.tf2xla.python.xla import call_module

    shapes = [[d if isinstance(d, int) else None for d in aval.shape] for aval in program.out_avals]
    attributes = {
        "version": program.calling_convention_version,
        "module": _for_older_readers(program.mlir_module_serialized),
        "platforms": [platform.upper() for platform in program.platforms],
        "Tout": [tf.as_dtype(aval.dtype) for aval in program.out_avals],
        "Sout": [tf.TensorShape(shape) for shape in shapes],
    }

    def detect(images: Any, image_sizes: Any) -> dict[str, Any]:
        values = call_module([*parameters, images, image_sizes], **attributes)
        found: dict[str, Any] = jax.tree.unflatten(program.out_tree, values)
        return found

    specs = [
        tf.TensorSpec([d if isinstance(d, int) else None for d in aval.shape], tf.as_dtype(aval.dtype), name)
        for name, aval in zip(("images", "image_sizes"), program.in_avals[-2:], strict=True)
    ]
    return tf.function(detect, input_signature=specs, autograph=False)


def _for_older_readers(module: bytes) -> bytes:
    """Return a program in the StableHLO of twelve weeks before this JAX."""
    requirement = stablehlo.StablehloCompatibilityRequirement.WEEK_12
    version = stablehlo.get_version_from_compatibility_requirement(requirement)
    older: bytes = stablehlo.serialize_portable_artifact_str(
        stablehlo.deserialize_portable_artifact_str(module), version
    )
    return older
