import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file

folder, output = map(pathlib.Path, sys.argv[1:])
arrays = load_file(folder / "model.safetensors")  # by path: "params/rpn/conv/kernel"
described = json.loads((folder / "config.json").read_text())
names = [category["name"] for category in described["categories"]]  # of labels 1, 2, ...
np.savez(output, names=names, **arrays)
