import json
import pathlib

import cv2
import numpy as np


def read(folder, path):
    """Return the name of the canvas, the two inputs, and canvas pixels per pixel of the picture."""
    facts = json.loads((pathlib.Path(folder) / "model.json").read_text())
    image = cv2.imread(str(path))[..., ::-1]  # OpenCV reads BGR.
    height, width = image.shape[:2]
    canvases, resize = facts["canvases"], facts["resize"]
    name = "square" if "square" in canvases else "portrait" if height > width else "landscape"
    scale = resize["short_side"] / min(height, width)
    if round(scale * max(height, width)) > resize["max_long_side"]:
        scale = resize["max_long_side"] / max(height, width)
    scale = min(scale, canvases[name][0] / height, canvases[name][1] / width)
    resized = cv2.resize(image, None, fx=scale, fy=scale)
    images = np.zeros((1, *canvases[name], 3), np.uint8)
    images[0, : len(resized), : len(resized[0])] = resized
    return name, images, np.array([resized.shape[:2]], np.float32), scale
