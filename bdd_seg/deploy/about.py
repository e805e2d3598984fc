"""Facts that travel inside an exported file, so that it can be run without its config."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmseg.datasets.transforms import GenerateEdge, PackSegInputs
from mmseg.models import BaseSegmentor
from mmseg.registry import TRANSFORMS
from mmseg.utils import get_palette
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from bdd_seg.distill.taps import last_head
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import dataset_meta, without_checks
from bdd_seg.runtime.guards.settings import class_of
from bdd_seg.runtime.upstream.configs import leaf_datasets, type_name
from bdd_seg.teachers.network import input_bands
from bdd_seg.teachers.normalise import Normalisation

KEY = 'bdd_seg'
"""Key of the facts, as JSON, in the metadata of a file."""

_LONGEST = 16_384  # pixels. A file of another origin must not make anyone reserve all memory

_Length = Annotated[int, Field(ge=1, le=_LONGEST)]

Size = tuple[_Length, _Length]
"""(height, width) in pixels."""

_Part = Annotated[int, Field(ge=0, le=255)]
_Factor = Annotated[float, Field(gt=0, le=64)]
_Name = Annotated[str, Field(pattern=r'^[^\p{Cc}\u2028\u2029]*$')]  # of one line

_STRICT = ConfigDict(frozen=True, allow_inf_nan=False)


class Resize(BaseModel):
    """A ``Resize`` of the test pipeline."""

    model_config = _STRICT

    scale: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description='(width, height), as mmseg writes it'
    )
    scale_factor: _Factor | tuple[_Factor, _Factor] | None = None
    keep_ratio: bool = False

    @model_validator(mode='after')
    def _is_bounded(self) -> 'Resize':
        # With its ratio kept, an image has no length beyond the one that limits it.
        limit = (min if self.keep_ratio else max)(self.scale or (1, 1))
        if limit > _LONGEST:
            raise ValueError(f'scale {self.scale} is more than {_LONGEST} pixels')
        return self

    def __str__(self) -> str:
        ratio = 'ratio kept' if self.keep_ratio else 'ratio not kept'
        to = f'by {self.scale_factor}' if self.scale is None else f'to {self.scale[0]}×{self.scale[1]}'
        return f'{to} (width × height), {ratio}'


class Windows(BaseModel):
    """Sliding windows, as ``test_cfg`` has them: (height, width) of a window and of a step."""

    model_config = _STRICT

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
        prepared_by: Names of transforms of the test pipeline that these facts do not hold. Who runs the file
            without its config must apply them.
    """

    model_config = _STRICT

    classes: tuple[_Name, ...]
    palette: tuple[tuple[_Part, _Part, _Part], ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr_to_rgb: bool = False
    bands: PositiveInt = 3
    takes: Literal['normalised', 'pixels'] = 'normalised'
    gives: Literal['logits', 'labels'] = 'logits'
    size: Size | None = None
    multiple: Annotated[int, Field(ge=1, le=1024)] = 1
    align_corners: bool = False
    threshold: float | None = None
    windows: Windows | None = None
    resize: Resize | None = None
    prepared_by: tuple[_Name, ...] = ()

    @model_validator(mode='after')
    def _lengths_agree(self) -> 'About':
        if not self.classes or len(self.palette) != len(self.classes):
            raise ValueError(f'{len(self.classes)} classes and {len(self.palette)} colours')
        if {len(self.mean), len(self.std)} - {1, self.bands} or min(self.std, default=0) <= 0:
            raise ValueError('mean and std need a number for each channel, and std more than 0')
        if self.threshold is not None and len(self.classes) != 2:
            raise ValueError(f'a threshold is for 2 classes, and there are {len(self.classes)}')
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
        dataset_meta: ``classes`` and ``palette`` as its checkpoint tells them; else, or where their number is
            not the network's, those of the data set in the config.

    Raises:
        ConfigError: A file cannot hold them, such as a class name of two lines.
    """
    head = last_head(model)
    classes, palette = _names_and_colours(cfg, dataset_meta or {}, max(2, head.num_classes))
    normalisation = Normalisation.of(model.data_preprocessor)
    test_cfg = model.test_cfg or {}
    windows = None
    if test_cfg.get('mode') == 'slide':
        windows = {'crop_size': test_cfg['crop_size'], 'stride': test_cfg['stride']}
    bands = normalisation.bands or input_bands(model) or 3
    resize, others = _preparation(cfg, bands)
    facts = {
        'classes': classes,
        'palette': palette,
        'mean': normalisation.mean,
        'std': normalisation.std,
        'bgr_to_rgb': normalisation.swapped,
        'bands': bands,
        'align_corners': model.align_corners,
        'threshold': head.threshold if head.out_channels == 1 else None,
        'windows': windows,
        'resize': resize,
        'prepared_by': others,
    }
    try:
        return About.model_validate(facts)
    except ValidationError as error:
        raise ConfigError(
            f'{cfg.filename or "the config"} cannot be described in a file: {_first_problem(error)}'
        ) from error


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
        raise ConfigError(
            f'{file}: its facts ({KEY} in the metadata) are damaged at {_first_problem(error)}. '
            'Export the network again'
        ) from error


def _first_problem(error: ValidationError) -> str:
    """Return the place and the message of the first problem."""
    problem = error.errors()[0]
    return f'{".".join(map(str, problem["loc"])) or KEY!r}: {problem["msg"]}'


def _names_and_colours(cfg: Config, meta: Mapping[str, Any], count: int) -> tuple[Any, Any]:
    """Return C names and C colours: of the checkpoint, of the data set, or made up."""
    sources = [meta, _dataset_meta(cfg)]
    fitting = [source for source in sources if len(source.get('classes') or ()) == count]
    classes = fitting[0]['classes'] if fitting else [f'class {number}' for number in range(count)]
    palette = next((source['palette'] for source in [*fitting, *sources] if source.get('palette')), None)
    return tuple(map(str, classes)), colours_of(palette, count)


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


def test_pipeline(cfg: Config) -> Sequence[Any]:
    """Return the settings of the pipeline of a config's tests, without checks; empty if there is none."""
    pipeline = None
    for key in ('test_dataloader', 'val_dataloader'):
        if pipeline is None and cfg.get(key) is not None:
            settings, _ = next(leaf_datasets(cfg[key]['dataset'], key))
            pipeline = settings.get('pipeline')
    return without_checks(pipeline or cfg.get('test_pipeline') or [])


def _preparation(cfg: Config, bands: int) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the settings of the test pipeline's Resize, and the names of what else it does to images.

    Args:
        cfg: The whole config.
        bands: Channels of the network's images.
    """
    usual = {
        'LoadImageFromFile': {'color_type': colour_type(bands), 'imdecode_backend': 'cv2'},
        'Resize': {'backend': 'cv2', 'interpolation': 'bilinear'},
    }
    resize, others = None, []
    for step in test_pipeline(cfg):
        kind = class_of(step, TRANSFORMS) or object
        if issubclass(kind, LoadAnnotations | GenerateEdge | PackSegInputs):
            continue
        name = type_name(step)
        if name not in usual or (name == 'Resize' and resize is not None):
            others.append(name)
            continue
        settings = usual[name]
        unusual = [f'{key}={step[key]}' for key in settings if step.get(key, settings[key]) != settings[key]]
        if unusual:
            others.append(f'{name}({", ".join(unusual)})')
        if name == 'Resize':
            resize = {key: step[key] for key in Resize.model_fields if step.get(key) is not None}
            if isinstance(resize.get('scale'), int):
                resize['scale'] = (resize['scale'], resize['scale'])
    return resize, others


def colour_type(bands: int) -> str:
    """Return mmcv's name for the way in which images of so many channels are loaded."""
    return {3: 'color', 1: 'grayscale'}.get(bands, 'unchanged')
