import pathlib
import sys

import numpy as np
import tensorflow as tf
from picture import read

folder, path, output = map(pathlib.Path, sys.argv[1:])
name, images, image_sizes, scale = read(folder, path)
detect = tf.saved_model.load(folder).signatures[name]
found = detect(images=tf.constant(images), image_sizes=tf.constant(image_sizes))
np.savez(output, scale=scale, **{key: value[0] for key, value in found.items()})
