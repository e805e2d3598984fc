"""Images prepared by a test pipeline, and predicted by mmseg's own inference."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.registry import DefaultScope
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample
from torch import Tensor

from bdd_seg.deploy.about import About, colour_type, test_pipeline
from bdd_seg.deploy.load import Trained
from bdd_seg.deploy.media import displayable
from bdd_seg.deploy.network import MULTIPLES
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.guards.data import name_files, without_checks
from bdd_seg.runtime.guards.settings import class_of
from bdd_seg.teachers.segmentors import predicts_scores


class Loaded(NamedTuple):
    """An image that the pipeline has prepared.

    Attributes:
        number: Its position among all images, or of a frame in its video.
        inputs: (bands, H, W), as ``PackSegInputs`` makes it.
        sample: Facts about it, its ``ori_shape`` among them.
        picture: (h, w, 3) uint8, blue first, as it was loaded; None where no overlay is wanted.
    """

    number: int
    inputs: Tensor
    sample: SegDataSample
    picture: Tensor | None


class Failed(NamedTuple):
    """An image that cannot be read: its position and the reason."""

    number: int
    reason: str


class Prediction(NamedTuple):
    """The answer for one image, at its own size.

    Attributes:
        labels: (H, W) class numbers, uint8, or uint16 for more than 256 classes.
        probabilities: (C, H, W) float16, None where they are not wanted.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None


class Predictor:
    """A trained network on a device, as a function of prepared images.

    Args:
        trained: The network.
        device: Such as ``cuda``.
        probabilities: Whether to return them.

    Raises:
        ConfigError: It puts out labels only, and probabilities are wanted.
    """

    def __init__(self, trained: Trained, device: torch.device, probabilities: bool = False) -> None:
        self.about: About = trained.about
        if probabilities and self.about.gives == 'labels':
            raise ConfigError(f'{trained.file} puts out labels, no probabilities. Export it without --labels')
        self.model = trained.model.to(device).eval()
        self.probabilities = probabilities
        self._padding: dict[torch.Size, int | None] = {}  # size of images → the multiple they are padded to

    def __call__(self, images: Sequence[Loaded]) -> list[Prediction]:
        """Return the predictions of images of one size, by mmseg's own inference.

        Raises:
            ConfigError: The network does not take images of that size.
            torch.OutOfMemoryError: The GPU has too little memory.
        """
        with torch.inference_mode():
            return [self._prediction(sample) for sample in self._segment(images)]

    def _segment(self, images: Sequence[Loaded]) -> list[SegDataSample]:
        size = images[0].inputs.shape
        if size in self._padding:
            return self._run(images, self._padding[size])
        try:
            samples = self._run(images, None)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # branches of some networks meet at sizes that differ by rounding
            return self._padded(images, error)
        self._padding[size] = None
        return samples

    def _padded(self, images: Sequence[Loaded], failure: RuntimeError) -> list[SegDataSample]:
        """Run the network on images padded to the first multiple that it takes."""
        size = images[0].inputs.shape
        for multiple in MULTIPLES:
            if all(length % multiple == 0 for length in size[1:]):
                continue
            try:
                samples = self._run(images, multiple)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                continue
            self._padding[size] = multiple
            return samples
        height, width = size[1:]
        raise ConfigError(
            f'the network does not take images of {height}×{width} pixels: {first_line(failure)}'
        ) from failure

    def _run(self, images: Sequence[Loaded], multiple: int | None) -> list[SegDataSample]:
        # Copies, since mmseg writes into samples, and a second try must not find what the first wrote.
        samples = [SegDataSample(metainfo=image.sample.metainfo) for image in images]
        data = {'inputs': [image.inputs for image in images], 'data_samples': samples}
        if multiple is None:
            return self.model.test_step(data)
        preprocessor = self.model.data_preprocessor
        configured = getattr(preprocessor, 'test_cfg', None)
        preprocessor.test_cfg = {'size_divisor': multiple}  # pads on the right and below, after normalisation
        try:
            return self.model.test_step(data)
        finally:
            preprocessor.test_cfg = configured

    def _prediction(self, sample: SegDataSample) -> Prediction:
        small = len(self.about.classes) <= 256
        labels = sample.pred_sem_seg.data[0].to(torch.uint8 if small else torch.int32).cpu().numpy()
        probabilities = None
        if self.probabilities:
            probabilities = self._normalised(sample.seg_logits.data).half().cpu().numpy()
        return Prediction(labels if small else labels.astype(np.uint16), probabilities)

    def _normalised(self, logits: Tensor) -> Tensor:
        """Return probabilities (C, H, W) of what mmseg calls logits, (C, H, W) or (1, H, W)."""
        if self.about.threshold is not None:  # mmseg has taken the sigmoid
            return torch.cat([1 - logits, logits])
        if predicts_scores(self.model):
            return logits / logits.sum(0, keepdim=True).clamp(min=1e-9)
        return logits.float().softmax(0)


class Preparation:
    """The test pipeline of a network, without labels.

    Args:
        trained: The network.
        keep_picture: Whether the images as they are loaded are needed, too.
        arrays: Whether it takes frames, (H, W, 3) uint8 and blue first, instead of files.

    Raises:
        ConfigError: Frames are to be taken, and the network is for other images.
    """

    def __init__(self, trained: Trained, keep_picture: bool, arrays: bool = False) -> None:
        pipeline = prediction_pipeline(trained)
        if arrays:
            pipeline = _from_arrays(pipeline, trained.about)
        with DefaultScope.overwrite_default_scope('mmseg'):
            self.transforms = [TRANSFORMS.build(settings) for settings in pipeline]
        self.bands = trained.about.bands
        self.keep_picture = keep_picture

    def __call__(self, number: int, results: dict[str, Any]) -> Loaded | Failed:
        """Prepare one image.

        Args:
            number: Its position.
            results: Its ``img_path``, or ``img`` for a frame.
        """
        try:
            return self._prepare(number, results)
        except Exception as error:  # of any kind, from whatever lies in a file
            return Failed(number, first_line(error))

    def _prepare(self, number: int, results: dict[str, Any]) -> Loaded | Failed:
        picture = None
        for transform in self.transforms:
            results = transform(results)
            if self.keep_picture and picture is None and 'img' in results:
                picture = torch.from_numpy(displayable(results['img']).copy())
        inputs = results['inputs']
        if len(inputs) != self.bands:
            return Failed(number, f'it has {len(inputs)} channels, and the network takes {self.bands}')
        return Loaded(number, inputs, results['data_samples'], picture)


def prediction_pipeline(trained: Trained) -> list[Any]:
    """Return the settings of the pipeline that prepares an image: the config's for tests, without labels.

    For a network without a config: its images are loaded by mmcv, and resized as its config said.
    """
    pipeline = None if trained.cfg is None else test_pipeline(trained.cfg)
    with DefaultScope.overwrite_default_scope('mmseg'):
        kept = [step for step in pipeline or _pipeline_of(trained.about) if not _is(step, LoadAnnotations)]
        return name_files(kept)


def _pipeline_of(about: About) -> list[dict[str, Any]]:
    resize = []
    if about.resize is not None:
        resize = [{'type': 'Resize', **about.resize.model_dump(exclude_none=True)}]
    return [
        {'type': 'LoadImageFromFile', 'color_type': colour_type(about.bands)},
        *resize,
        {'type': 'PackSegInputs'},
    ]


def _from_arrays(pipeline: Sequence[Any], about: About) -> list[Any]:
    """Return a pipeline that begins with a frame instead of a file."""
    first, *others = without_checks(pipeline)
    if about.bands != 3 or not _is(first, LoadImageFromFile):
        raise ConfigError(
            f'a video has frames of 3 channels, and the network takes images of {about.bands} that '
            f'{first.get("type")} loads. Give image files'
        )
    return [{**first, 'type': 'LoadImageFromNDArray'}, *others]


def _is(step: Any, kind: type) -> bool:
    found = class_of(step, TRANSFORMS)
    return found is not None and issubclass(found, kind)
