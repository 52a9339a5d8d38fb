"""`caffe.Detector`: the scores of windows of images (`detector.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TEST
from caffe_dns.pycaffe.images import load_image, resize_image
from caffe_dns.pycaffe.net import Net
from caffe_dns.pycaffe.transformer import Transformer, image_input


class Detection(TypedDict):
    """A window (ymin, xmin, ymax, xmax) of an image file, and the scores [classes] of it."""

    window: np.ndarray
    prediction: np.ndarray
    filename: str


class Detector(Net):
    """A net in the phase TEST whose first input takes windows and whose first output scores them.

    `context_pad` is how many pixels around a window belong to the input, on each side of it, as in
    R-CNN; what lies outside of the image is the mean there. The other settings are Transformer's.
    Raises CaffeError for a net that takes no images.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        name, shape = image_input(self, str(model_file))
        self.transformer = Transformer.of(name, shape, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set how many pixels around each window belong to the input.

        Raises CaffeError where they would leave nothing of the input for the window.
        """
        name = self.inputs[0]
        channels, height, width = self.blobs[name].shape[1:]
        if context_pad and not 0 < 2 * context_pad < min(height, width):
            raise CaffeError(
                f"a context_pad of {context_pad} leaves no pixel of an input of {height} by {width}"
            )
        self.context_pad = context_pad
        self.crop_dims = np.array((height, width, channels))
        self.crop_mean = self._mean_of_images(name)

    def detect_windows(
        self, images_windows: Iterable[tuple[str, Iterable[np.ndarray]]]
    ) -> list[Detection]:
        """The scores of windows (ymin, xmin, ymax, xmax) of image files, in their order."""
        pairs = [
            (str(file), np.asarray(window))
            for file, windows in images_windows
            for window in windows
        ]
        if not pairs:
            return []
        name = self.inputs[0]
        images: dict[str, np.ndarray] = {}
        crops = []
        for file, window in pairs:
            if file not in images:
                images = {file: load_image(file)}  # one at a time is kept
            crops.append(self.transformer.preprocess(name, self.crop(images[file], window)))
        scores = self.forward_all(**{name: np.stack(crops)})[self.outputs[0]]
        return [
            Detection(window=window, prediction=score, filename=file)
            for (file, window), score in zip(pairs, scores, strict=True)
        ]

    def detect_selective_search(self, image_fnames: Iterable[str]) -> list[Detection]:
        """The scores of the windows that Selective Search proposes for image files.

        Needs the package selective_search_ijcv_with_python, and with it MATLAB.
        """
        try:
            import selective_search_ijcv_with_python as selective_search
        except ImportError:
            raise CaffeError(
                "selective search needs the package selective_search_ijcv_with_python, which is "
                "not installed; give windows of your own"
            ) from None
        files = [str(Path(file).absolute()) for file in image_fnames]
        windows = selective_search.get_windows(files, cmd="selective_search_rcnn")
        return self.detect_windows(zip(files, windows, strict=True))

    def crop(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        """The window (ymin, xmin, ymax, xmax) of an image [H, W, K], its context around it.

        With a context, the size is the input's. Raises CaffeError for a window outside the image.
        """
        top, left, bottom, right = (int(edge) for edge in window)
        inside = im[top:bottom, left:right]
        if min(top, left) < 0 or not inside.size:
            raise CaffeError(
                f"the window {[top, left, bottom, right]} (ymin, xmin, ymax, xmax) "
                f"lies outside of an image of {im.shape[0]} by {im.shape[1]} pixels"
            )
        return self._with_context(im, np.asarray(window, float)) if self.context_pad else inside

    def _with_context(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        size = np.array(self.crop_dims[:2])
        half = (window[2:] - window[:2] + 1) / 2
        center = window[:2] + half
        reach = half * size / (size - 2 * (self.context_pad or 0))
        start, end = np.round(center - reach), np.round(center + reach)
        scale = size / (end - start + 1)
        pad = np.round(np.maximum(0, -start) * scale).astype(int)
        start, end = (np.clip(edge, 0, im.shape[:2]).astype(int) for edge in (start, end))
        extent = np.minimum(np.round((end - start + 1) * scale).astype(int), size - pad)
        context = resize_image(im[start[0] : end[0], start[1] : end[1]], extent)
        crop = np.broadcast_to(self.crop_mean, self.crop_dims).astype(np.float32)
        crop[pad[0] : pad[0] + extent[0], pad[1] : pad[1] + extent[1]] = context
        return crop

    def _mean_of_images(self, name: str) -> np.ndarray:
        """The mean [H or 1, W or 1, K] as it would be in an image that is not yet transformed."""
        mean = self.transformer.mean.get(name)
        if mean is None:
            return np.zeros((1, 1, 1), np.float32)
        swap = self.transformer.channel_swap.get(name)
        if swap is not None and len(mean) == len(swap):
            mean = mean[np.argsort(swap)]
        return mean.transpose(1, 2, 0) / self.transformer.raw_scale.get(name, 1)
