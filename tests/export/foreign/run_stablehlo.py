import pathlib
import sys

import jax
import numpy as np
from picture import read

folder, path, output = map(pathlib.Path, sys.argv[1:])
name, images, image_sizes, scale = read(folder, path)
program = jax.export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
found = jax.jit(program.call)(images, image_sizes)
np.savez(output, scale=scale, **{key: value[0] for key, value in found.items()})
