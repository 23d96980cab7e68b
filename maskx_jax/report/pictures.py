"""The pictures of a report: small JPEGs of its images."""

import concurrent.futures
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from maskx_jax.evaluation.checks import as_id
from maskx_jax.report.inputs import Picture

_QUALITY = 80


def write_pictures(images: Sequence[Mapping[str, Any]], picture: Picture, folder: pathlib.Path, side: int) -> None:
    """Write `0.jpg`, `1.jpg`, ... of some images, in their order.

    Args:
      images: of a COCO instances dict.
      picture: reads one.
      folder: to write to.
      side: to which the long side is made smaller.

    Raises:
      OSError: an image cannot be read, or a file not be written.
      ValueError: an image is damaged.
    """

    def write(number: int) -> None:
        encoded = encode(picture(as_id(images[number]["id"])), side)
        (folder / f"{number}.jpg").write_bytes(encoded)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(write, range(len(images)))
        try:
            for _ in tqdm(made, desc="pictures", total=len(images), disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def encode(image: np.ndarray, side: int) -> bytes:
    """Return an image, uint8 `h w 3` RGB, as a JPEG whose long side has at most some pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError(f"an image of {width} x {height} pixels could not be coded as JPEG")
    return encoded.tobytes()
