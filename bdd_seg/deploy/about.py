"""Facts that travel inside an exported file, so that it can be run without its config."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mmengine.config import Config
from mmseg.models import BaseSegmentor
from mmseg.utils import get_palette
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from bdd_seg.distill.taps import last_head
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import dataset_meta
from bdd_seg.runtime.upstream.configs import type_name
from bdd_seg.teachers.network import input_bands
from bdd_seg.teachers.normalise import Normalisation

KEY = 'bdd_seg'
"""Key of the facts, as JSON, in the metadata of a file."""

Size = tuple[PositiveInt, PositiveInt]
"""(height, width) in pixels."""

_Part = Annotated[int, Field(ge=0, le=255)]


class Resize(BaseModel):
    """A ``Resize`` of the test pipeline."""

    model_config = ConfigDict(frozen=True)

    scale: Size | None = Field(default=None, description='(width, height), as mmseg writes it')
    scale_factor: float | tuple[float, float] | None = None
    keep_ratio: bool = False


class Windows(BaseModel):
    """Sliding windows, as ``test_cfg`` has them: (height, width) of a window and of a step."""

    model_config = ConfigDict(frozen=True)

    crop_size: Size
    stride: Size


class About(BaseModel):
    """Facts about a deployed network.

    Attributes:
        classes: Names of the C classes.
        palette: A colour (red, green, blue), 0 to 255, for each.
        mean: Of the images, whose values are 0 to 255, one number a channel or one for all.
        std: The same.
        bgr_to_rgb: Whether the network sees red first; images are loaded blue first.
        bands: Channels of an image.
        takes: ``normalised``: float32 (N, bands, H, W). ``pixels``: uint8 (N, H, W, bands) as they are
            loaded, blue first; the file normalises them itself.
        gives: ``logits``: float32 (N, C, h, w) on the network's own grid. ``labels``: class numbers
            (N, H, W) as uint8, or int32 for more than 256 classes.
        size: (H, W) if the file takes images of that size only.
        multiple: Height and width must be multiples of this number.
        align_corners: How cells of the grid relate to pixels.
        threshold: Of a binary network of one channel, whose logits have C = 1.
        windows: None to take images whole.
        resize: Of images before they enter, None for none.
    """

    model_config = ConfigDict(frozen=True)

    classes: tuple[str, ...]
    palette: tuple[tuple[_Part, _Part, _Part], ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr_to_rgb: bool = False
    bands: PositiveInt = 3
    takes: Literal['normalised', 'pixels'] = 'normalised'
    gives: Literal['logits', 'labels'] = 'logits'
    size: Size | None = None
    multiple: PositiveInt = 1
    align_corners: bool = False
    threshold: float | None = None
    windows: Windows | None = None
    resize: Resize | None = None

    @model_validator(mode='after')
    def _lengths_agree(self) -> 'About':
        if not self.classes or len(self.palette) != len(self.classes):
            raise ValueError(f'{len(self.classes)} classes and {len(self.palette)} colours')
        if {len(self.mean), len(self.std)} - {1, self.bands} or min(self.std, default=0) <= 0:
            raise ValueError('mean and std need a number for each channel, and std more than 0')
        return self

    @property
    def normalisation(self) -> Normalisation:
        """That of the network's input."""
        return Normalisation(self.mean, self.std, self.bgr_to_rgb)

    @property
    def channels(self) -> int:
        """Number of channels of the logits: 1 for a binary network, else C."""
        return 1 if self.threshold is not None else len(self.classes)


def about_model(model: BaseSegmentor, cfg: Config, dataset_meta: Mapping[str, Any] | None = None) -> About:
    """Return the facts about a segmentor in its config.

    Args:
        model: The segmentor.
        cfg: Its whole config.
        dataset_meta: ``classes`` and ``palette`` as its checkpoint tells them; else those of the data set in
            the config.
    """
    head = last_head(model)
    classes, palette = _names_and_colours(cfg, dataset_meta or {}, max(2, head.num_classes))
    normalisation = Normalisation.of(model.data_preprocessor)
    test_cfg = model.test_cfg or {}
    windows = None
    if test_cfg.get('mode') == 'slide':
        windows = Windows(crop_size=test_cfg['crop_size'], stride=test_cfg['stride'])
    return About(
        classes=classes,
        palette=palette,
        mean=normalisation.mean,
        std=normalisation.std,
        bgr_to_rgb=normalisation.swapped,
        bands=normalisation.bands or input_bands(model) or 3,
        align_corners=model.align_corners,
        threshold=head.threshold if head.out_channels == 1 else None,
        windows=windows,
        resize=_resize(cfg),
    )


def parse(text: str | None, file: str) -> About:
    """Return the facts that a file tells.

    Args:
        text: The JSON in its metadata, None where it has none.
        file: The file, for the message.

    Raises:
        ConfigError: It tells none, or they are damaged.
    """
    if text is None:
        raise ConfigError(
            f'{file} does not tell its classes and normalisation, as files of bdd-seg export do. To distil '
            'from it use an OnnxTeacher; to evaluate the network, give its config and checkpoint'
        )
    try:
        return About.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = '.'.join(map(str, problem['loc'])) or KEY
        raise ConfigError(
            f'{file}: its facts ({KEY} in the metadata) are damaged at {place!r}: {problem["msg"]}. '
            'Export the network again'
        ) from error


def _names_and_colours(cfg: Config, meta: Mapping[str, Any], count: int) -> tuple[Any, Any]:
    """Return C names and C colours: of the checkpoint, of the data set, or made up."""
    known = {**_dataset_meta(cfg), **{key: value for key, value in meta.items() if value is not None}}
    classes = known.get('classes')
    if classes is None or len(classes) != count:
        classes = [f'class {number}' for number in range(count)]
    return tuple(map(str, classes)), colours_of(known.get('palette'), count)


def _dataset_meta(cfg: Config) -> dict[str, Any]:
    """Return ``classes`` and ``palette`` of the data set that the config evaluates or trains on."""
    loaders = [cfg.get(key) for key in ('val_dataloader', 'test_dataloader', 'train_dataloader')]
    return next((dataset_meta(loader['dataset']) for loader in loaders if loader is not None), {})


def colours_of(palette: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    """Return C colours (red, green, blue): those of a data set, and for classes beyond them ADE20K's in turn.

    Args:
        palette: Of the data set, None where it has none.
        count: C.
    """
    more = get_palette('ade20k')
    found = [*(palette or ())][:count]
    found += [more[number % len(more)] for number in range(len(found), count)]
    return tuple((int(red), int(green), int(blue)) for red, green, blue in found)


def _resize(cfg: Config) -> Resize | None:
    """Return the Resize of the config's test pipeline."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    pipeline = (loader.get('dataset') or {}).get('pipeline') or cfg.get('test_pipeline') or ()
    for transform in pipeline:
        if type_name(transform) == 'Resize':
            return Resize.model_validate(
                {key: transform[key] for key in Resize.model_fields if transform.get(key) is not None}
            )
    return None
