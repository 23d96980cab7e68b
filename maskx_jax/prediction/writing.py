"""Predictions as files: COCO results, and on request pictures, annotated videos and masks."""

import concurrent.futures
import io
import itertools
import pathlib
from types import TracebackType

import cv2
import numpy as np
from PIL import Image

from maskx_jax import files
from maskx_jax.coco.categories import Categories
from maskx_jax.evaluation import results
from maskx_jax.prediction.pictures import frames_per_second
from maskx_jax.prediction.predictor import Predicted

_JPEG_QUALITY = 90


class Writer:
    """Writes what is predicted into a folder; several pictures are drawn at a time.

        results.json      COCO results entries of all pictures; a picture's image id is its number, from 1 on
        images.json       what the image ids stand for, and the categories, as a COCO file has them
        pictures/         each picture with masks, boxes, names and scores; of a video one annotated video
        masks/NAME/       each object's mask as a PNG, white on black, numbered as in results.json

    Args:
      folder: to write into.
      categories: of the model.
      pictures: whether pictures and videos are drawn.
      masks: whether masks are written.
      num_workers: pictures that are drawn at the same time.
    """

    def __init__(
        self, folder: pathlib.Path, categories: Categories, *, pictures: bool, masks: bool, num_workers: int = 2
    ) -> None:
        self._folder, self._categories = folder, categories
        self._pictures, self._masks = pictures, masks
        self._entries: list[dict] = []
        self._images: list[dict] = []
        self._used: set[str] = set()
        self._videos: dict[pathlib.Path, _Video] = {}
        self._num_workers = num_workers
        self._pool = concurrent.futures.ThreadPoolExecutor(num_workers)
        self._waiting: list[tuple[dict, concurrent.futures.Future[list[dict]]]] = []
        self._image_ids = itertools.count(1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._collect(most_waiting=0)
        finally:
            self._pool.shutdown(cancel_futures=True)
            for video in self._videos.values():
                video.close()
            # After an interruption too: what is done by then is not lost.
            results.write_results(self._folder / "results.json", self._entries)
            content = {"images": self._images, "annotations": [], "categories": self._categories.to_coco()}
            files.write_json(self._folder / "images.json", content)

    def add(self, predicted: Predicted) -> None:
        """Write what is predicted for one picture.

        Raises:
          OSError: something cannot be written.
        """
        assert predicted.predictions is not None and predicted.pixels is not None
        name, (height, width) = predicted.picture.name, predicted.predictions.size
        image_id = next(self._image_ids)
        image = {"id": image_id, "file_name": name, "height": height, "width": width}
        frame = predicted.picture.video is not None
        stem = name if frame else self._free_stem(name)
        self._waiting.append((image, self._pool.submit(self._write, predicted, image_id, stem)))
        self._collect(most_waiting=2 * self._num_workers)
        # Frames go one after the other into their video; what is a file of its own is drawn beside others.
        if self._pictures and predicted.picture.video is not None:
            self._video(predicted.picture.video, name).add(predicted.predictions.draw(predicted.pixels))

    def _write(self, predicted: Predicted, image_id: int, stem: str) -> list[dict]:
        predictions, pixels = predicted.predictions, predicted.pixels
        assert predictions is not None
        entries = predictions.to_coco(image_id)
        if self._pictures and predicted.picture.video is None:
            self._write_image(f"pictures/{stem}.jpg", predictions.draw(pixels), "JPEG", quality=_JPEG_QUALITY)
        if self._masks and predictions.masks is not None:
            for number, mask in enumerate(predictions.masks):
                self._write_image(f"masks/{stem}/{number:03d}.png", Image.fromarray(mask), "PNG")
        return entries

    def _write_image(self, path: str, image: Image.Image, kind: str, **options: int) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.write_bytes(self._path(path), buffer.getvalue())

    def _path(self, name: str) -> pathlib.Path:
        """Return the path of a file, in a folder that is there."""
        folder, _, base = name.rpartition("/")
        return files.folder_in(self._folder, *folder.split("/")) / base

    def _collect(self, most_waiting: int) -> None:
        while len(self._waiting) > most_waiting:
            image, made = self._waiting.pop(0)
            self._entries += made.result()
            self._images.append(image)

    def _free_stem(self, name: str) -> str:
        """Return a name without its suffix; with it, or numbered, where another picture has taken that."""
        stem = str(pathlib.PurePosixPath(name).with_suffix(""))
        names = itertools.chain((stem, name), (f"{name}.{number}" for number in itertools.count(2)))
        free = next(one for one in names if one not in self._used)
        self._used.add(free)
        return free

    def _video(self, source: pathlib.Path, name: str) -> "_Video":
        if source not in self._videos:
            # A frame is called after its video: clip.mp4#000017.
            stem = self._free_stem(name.rpartition("#")[0])
            self._videos[source] = _Video(self._path(f"pictures/{stem}.mp4"), frames_per_second(source))
        return self._videos[source]


class _Video:
    """A video file that grows by frames; all are of the size of the first."""

    def __init__(self, path: pathlib.Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def add(self, picture: Image.Image) -> None:
        if self._writer is None:
            self._size = picture.size
            # MPEG-4 Part 2: of the codecs in OpenCV's wheel, what the most players know.
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self._path}: OpenCV cannot write this video")
        resized = picture if picture.size == self._size else picture.resize(self._size)
        self._writer.write(np.ascontiguousarray(np.asarray(resized)[..., ::-1]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
