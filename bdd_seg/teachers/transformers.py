"""A teacher from Hugging Face."""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.distill.taps import LOGITS, Tap
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.atomic_files import files_digest
from bdd_seg.teachers.classes import check_number_of_classes, number_of_classes
from bdd_seg.teachers.network import Network, NetworkTeacher, input_bands
from bdd_seg.teachers.normalise import (
    Normalisation,
    Statistic,
    as_data,
    check_bands,
    stated_normalisation,
    warn_of_unit_range,
)
from bdd_seg.teachers.segmentors import log_scores, mask_scores

LAST = 'last_hidden_state'
"""The tap of the last map of a network without classes."""

_ONEFORMER = 'OneFormerForUniversalSegmentation'

# Networks that propose masks and classify each.
_MASK_CLASSIFIERS = (
    'EomtDinov3ForUniversalSegmentation',
    'EomtForUniversalSegmentation',
    'Mask2FormerForUniversalSegmentation',
    'MaskFormerForInstanceSegmentation',
    _ONEFORMER,
)
# Networks that take images of config.image_size only.
_FIXED_SIZE = (
    'DPTForSemanticSegmentation',
    'EomtDinov3ForUniversalSegmentation',
    'EomtForUniversalSegmentation',
)
_SETTINGS = ['*.json', '*.txt']
_SAFETENSORS, _PICKLES = 'model*.safetensors', 'pytorch_model*.bin'
# The files that may name the weights, the first of which counts.
_WEIGHTS = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
_PROCESSORS = ('preprocessor_config.json', 'processor_config.json')


@MODELS.register_module()
class TransformersTeacher(NetworkTeacher):
    """A trained network of Hugging Face's ``transformers``.

    Segmentation networks give class logits: SegFormer, BEiT, DPT, UPerNet and others as they are;
    Mask2Former, MaskFormer, OneFormer and EoMT the logarithm of each class's score, the sum over the masks of
    the class's probability times the mask's. Others, such as DINOv2 and DINOv3, give features only.

    A tap is the name of a module, such as ``'encoder.layer.11'``. Its tokens, less those that stand for no
    place in the image, are a map (N, C, h, w); of several tensors, the first counts. Networks without classes
    have the tap ``'last_hidden_state'``, too.

    Args:
        model: A folder that ``save_pretrained`` wrote, or a name on the hub, ``'owner/name'``.
        revision: A branch, tag or commit on the hub.
        trust_remote_code: Whether Python code beside the weights may run, for networks that ``transformers``
            does not have itself.
        mean: That of the images the network was trained with, for values 0 to 255, as in mmseg's
            ``data_preprocessor``: one number a channel, or one for all. By default what the model's
            ``preprocessor_config.json`` says.
        std: The same.
        **options: As for :class:`~bdd_seg.teachers.NetworkTeacher`.

    Raises:
        ConfigError: Only one of ``mean`` and ``std`` is given, or they are of another kind.
    """

    def __init__(
        self,
        model: str | Path,
        revision: str | None = None,
        trust_remote_code: bool = False,
        mean: Statistic = None,
        std: Statistic = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source = str(model)
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        if (mean is None) != (std is None):
            raise ConfigError('teacher.mean and teacher.std must be given both, for values 0 to 255, or none')
        self.normalisation = None if mean is None else stated_normalisation(mean, std, bgr_to_rgb=True)

    def describe(self) -> str:
        """Return the folder, or the name on the hub and the revision."""
        return self.source if self.revision is None else f'{self.source}@{self.revision}'

    def check(self, student: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Check class, classes and normalisation, at the cost of reading settings.

        Raises:
            ConfigError: As for :meth:`build`.
        """
        folder = self._fetch(_SETTINGS)
        config = self._config(folder)
        self._normalisation(folder)
        if not self._has_classes(config):
            return
        number = number_of_classes(student)
        if number is not None and not self.maps_classes:
            check_number_of_classes(config.num_labels, number, self.describe())
        if classes:
            self.class_names = _class_names(config)
            self.check_classes(classes)

    def map_channels(self, tap: str | None) -> int:
        """Return the number of channels, from the settings alone.

        Raises:
            ConfigError: They are not there, the tap names no module, or the logits are wanted of a network
                without classes.
            Exception: Of any kind, where the network computes with the values of tensors, as mask classifiers
                do.
        """
        config = self._config(self._fetch(_SETTINGS))
        has_classes = self._has_classes(config)
        if tap is None or tap == LOGITS:
            if not has_classes:
                raise self._error('it has no class logits')
            return config.num_labels
        kind = self._class(config)
        with torch.random.fork_rng(devices=[]), torch.device('meta'):
            model = (
                kind.from_config(config, trust_remote_code=self.trust_remote_code)
                if hasattr(kind, 'from_config')
                else kind(config)
            )
            if not has_classes:
                model.add_module(LAST, nn.Identity())
            images = torch.empty(1, input_bands(model) or 3, *(_fixed_size(config) or (256, 256)))
            with torch.no_grad(), Tap(model.eval(), [tap], partial(_read, model, images)) as outputs:
                _run(model, images, _options(model))
        return outputs[tap].shape[1]

    def load(self, taps: Sequence[str | None]) -> Network:
        """Fetch the files, build the network, and load its weights.

        Raises:
            ConfigError: ``transformers`` is not installed, files are missing or hold more than data, the
                weights do not fit, or nothing tells a normalisation for as many channels as it takes.
        """
        folder = self._fetch([*_SETTINGS, _SAFETENSORS])
        if not _weight_files(folder):
            folder = self._fetch([*_SETTINGS, _PICKLES])
        config = self._config(folder)
        normalisation = self._normalisation(folder)
        task = self._task(config, folder) if _name(config) == _ONEFORMER else None
        has_classes = self._has_classes(config)
        model = self._load(config, folder)
        bands = input_bands(model) or normalisation.bands
        check_bands(normalisation, bands, self.describe())
        warn_of_unit_range(normalisation)
        if not has_classes:
            model.add_module(LAST, nn.Identity())  # through which _run passes the last map
        return Network(
            model=model,
            forward=partial(_run, options=_options(model), task=task),
            logits_tap=LOGITS if has_classes else None,
            num_classes=config.num_labels if has_classes else None,
            normalisation=normalisation,
            class_names=_class_names(config) if has_classes else None,
            input_size=_fixed_size(config),
            bands=bands,
            read=_read,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this teacher from another.

        Returns:
            ``checkpoint``: the SHA-256 of its settings and weights, of those files alone that are read; None
            where the weights are not on this machine. ``normalisation`` of its input where the config has
            it; ``precision``; and the size and channels of its input where they are set.
        """
        own = self.normalisation
        digest = None
        with suppress(ConfigError):  # where it is not on this machine
            folder = self._fetch([], offline=True)
            if weights := _weight_files(folder):
                settings = ['config.json', *(_PROCESSORS if own is None else ())]
                files = [file for file in map(folder.joinpath, settings) if file.is_file()]
                digest = files_digest([*files, *weights])
        return {
            **super().fingerprint(),
            'checkpoint': digest,
            'normalisation': None if own is None else as_data(own),
        }

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(f'teacher ({self.describe()}): {problem}')

    def _fetch(self, patterns: list[str], offline: bool = False) -> Path:
        """Return the folder of the model's files, those on the hub fetched into the cache once."""
        folder = Path(self.source).expanduser()
        if folder.is_dir():
            return folder
        _library()
        import huggingface_hub

        try:
            return Path(
                huggingface_hub.snapshot_download(
                    self.source,
                    revision=self.revision,
                    allow_patterns=[*patterns, *(['*.py'] if self.trust_remote_code else [])],
                    local_files_only=offline,
                )
            )
        except (OSError, ValueError) as error:  # of the network, the hub, or the name
            raise ConfigError(
                f'teacher.model {self.source!r} is no folder, and cannot be fetched from Hugging Face '
                f'({first_line(error)}). Where there is no network, run `hf download {self.source}` where '
                'there is one and give the folder here, or set HF_HOME to a cache that has it'
            ) from error

    def _config(self, folder: Path) -> Any:
        try:
            # Attention is the library's own: a config.json could name code on the hub for it.
            return _library().AutoConfig.from_pretrained(folder, _attn_implementation=None, **self._local())
        except ConfigError:
            raise
        except Exception as error:  # of any kind, where a file is damaged
            raise self._error(
                f'its config.json cannot be used ({first_line(error)}). trust_remote_code=True lets code of '
                'the model run, if you trust it'
            ) from error

    def _class(self, config: Any) -> Any:
        """Return the class that the model's settings name, one of ``transformers``, or an Auto class."""
        library, name = _library(), _name(config)
        if self.trust_remote_code:
            for auto in ('AutoModelForSemanticSegmentation', 'AutoModel'):
                if auto in (getattr(config, 'auto_map', None) or {}):
                    return getattr(library, auto)
        if not name:
            return library.AutoModel
        kind = getattr(library, name, None)
        if not isinstance(kind, type) or not issubclass(kind, library.PreTrainedModel):
            raise self._error(
                f"'architectures' in its config.json names {name!r}, which is no network of transformers "
                f'{library.__version__}. trust_remote_code=True lets code of the model run, if you trust it'
            )
        if 'pixel_values' not in getattr(kind, 'main_input_name', ''):
            raise self._error(f'a {name} takes no images alone')
        return kind

    def _has_classes(self, config: Any) -> bool:
        name = getattr(self._class(config), '__name__', '')
        # The library's list of networks that classify each pixel, with those of later versions.
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

        return name in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values() or name in (
            *_MASK_CLASSIFIERS,
            'AutoModelForSemanticSegmentation',
        )

    def _load(self, config: Any, folder: Path) -> nn.Module:
        kind = self._class(config)
        try:
            with torch.random.fork_rng(devices=[]), _quiet():
                model, info = kind.from_pretrained(
                    folder,
                    config=config,
                    dtype=torch.float32,
                    weights_only=True,
                    ignore_mismatched_sizes=True,  # they are told below, with all else that does not fit
                    output_loading_info=True,
                    **self._local(),
                )
        except Exception as error:  # of any kind: from pickle, safetensors, or the network's own code
            raise self._error(
                f'it cannot be loaded ({type(error).__name__}: {first_line(error)}). Its weights must be a '
                'model.safetensors, or a pytorch_model.bin that holds tensors only'
            ) from error
        # No map comes from a pooler, and several backbones on the hub, such as DINO, are saved without.
        missing = [key for key in info['missing_keys'] if not key.startswith('pooler.')]
        problems = []
        for problem, keys in (
            ('missing', missing),
            ('unexpected', info['unexpected_keys']),
            ('of another shape', [key for key, *_ in info['mismatched_keys']]),
        ):
            if keys:
                listed = ', '.join(sorted(keys)[:3]) + (', ...' if len(keys) > 3 else '')
                problems.append(f'{len(keys)} {problem}: {listed}')
        if problems:
            raise self._error(
                f'its weights do not fit its config.json: {"; ".join(problems)}. Copy or download it again'
            )
        return model

    def _normalisation(self, folder: Path) -> Normalisation:
        if self.normalisation is not None:
            return self.normalisation
        try:
            settings, _ = _library().ImageProcessingMixin.get_image_processor_dict(
                folder, local_files_only=True
            )
            return _normalisation(settings)
        except ConfigError:
            raise
        except (OSError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise self._error(
                f'no preprocessor_config.json tells how its images are normalised: {first_line(error)}. '
                'Give teacher.mean and teacher.std, for values 0 to 255. ImageNet: '
                'mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]'
            ) from error

    def _task(self, config: Any, folder: Path) -> Tensor:
        """Return what tells OneFormer its task, the (1, L) numbers of a sentence's words."""
        try:
            tokenizer = _library().AutoTokenizer.from_pretrained(folder, **self._local())
        except Exception as error:  # of any kind, where a file is missing or damaged
            raise self._error(
                'a OneFormer is told its task in words, and its tokenizer cannot be read '
                f'({first_line(error)}). Copy or download all of its files'
            ) from error
        words = tokenizer(
            ['the task is semantic'],
            padding='max_length',
            max_length=config.task_seq_len,
            truncation=True,
            return_tensors='pt',
        )
        return words['input_ids'] * words['attention_mask']

    def _local(self) -> dict[str, bool]:
        return {'local_files_only': True, 'trust_remote_code': self.trust_remote_code}


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f'a TransformersTeacher needs the package transformers ({error}). Install it: '
            'pip install "bdd-seg[transformers]"'
        ) from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and tables out of the console for a block."""
    logging = _library().logging
    verbosity = logging.get_verbosity()
    hook = logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, 'disable': True}))
    logging.set_verbosity_error()  # what does not fit is raised
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(verbosity)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, as the library chooses them; none if one is missing."""
    for file in map(folder.joinpath, _WEIGHTS):
        if not file.is_file():
            continue
        if file.suffix != '.json':
            return [file]
        try:
            shards = {folder / name for name in json.loads(file.read_text())['weight_map'].values()}
        except (ValueError, LookupError, TypeError, AttributeError):  # it is damaged
            return []
        return [file, *sorted(shards)] if all(shard.is_file() for shard in shards) else []
    return []


def _name(config: Any) -> str:
    """Return the name of the model's class, empty where its settings have none."""
    return (getattr(config, 'architectures', None) or [''])[0]


def _class_names(config: Any) -> tuple[str, ...] | None:
    names = tuple(config.id2label[index] for index in sorted(config.id2label))
    return None if names == tuple(f'LABEL_{index}' for index in range(len(names))) else names


def _fixed_size(config: Any) -> tuple[int, int] | None:
    size = config.image_size if _name(config) in _FIXED_SIZE else None
    if isinstance(size, list | tuple):
        height, width = size
        return height, width
    return None if size is None else (size, size)


def _normalisation(settings: Mapping[str, Any]) -> Normalisation:
    """Return what an image processor's settings say, for values 0 to 255.

    Raises:
        KeyError: They do not say it.
        ValueError: They are no numbers, or a standard deviation cannot be one.
    """
    scale = settings.get('rescale_factor', 1 / 255) if settings.get('do_rescale', True) else 1.0
    mean, std = 0.0, 1.0
    if settings.get('do_normalize', True):
        mean, std = settings['image_mean'], settings['image_std']
    means, stds = (
        tuple(float(number) / scale for number in (value if isinstance(value, list) else [value]))
        for value in (mean, std)
    )
    if not means or not stds or not all(0 < number < math.inf for number in stds):
        raise ValueError(f'its image_mean is {mean}, its image_std {std}')
    return Normalisation(means, stds, swapped=not settings.get('do_flip_channel_order', False))


def _options(model: Any) -> dict[str, Any]:
    """Return what a network is called with beside images, so that it takes any size if it can."""
    name = 'interpolate_pos_encoding'  # of ViT and others, which take one size only without it
    return {name: True} if name in inspect.signature(model.forward).parameters else {}


def _run(model: Any, images: Tensor, options: Mapping[str, Any], task: Tensor | None = None) -> Tensor | None:
    """Return the class logits (N, C, h, w) of a network, None if it has none.

    Args:
        model: The network.
        images: (N, bands, H, W), normalised as it expects.
        options: Further arguments of it.
        task: What tells OneFormer its task, (1, L).
    """
    patch = _patch(model.config)
    if patch is not None and any(length % patch for length in images.shape[2:]):
        # Such networks cut off what is left over beside the last whole patch.
        size = [patch * cells for cells in _cells(images, patch, round)]
        images = F.interpolate(images, size, mode='bilinear', align_corners=False)
    tasks = {} if task is None else {'task_inputs': task.to(images.device).expand(len(images), -1)}
    output = model(pixel_values=images, **options, **tasks)
    if 'masks_queries_logits' in output:
        return log_scores(mask_scores(output['class_queries_logits'], output['masks_queries_logits']))
    if hasattr(model, LAST):
        maps = output.get('feature_maps')  # of a backbone, from all of its stages
        last = output.get('last_hidden_state') if maps is None else maps[-1]
        getattr(model, LAST)(_read(model, images, '', last))
    return output.get('logits')


def _read(model: nn.Module, images: Tensor, name: str, output: Any) -> Any:
    """Return a map (N, C, h, w) of what a module put out; what cannot be one as it is.

    Args:
        model: The network.
        images: (N, bands, H, W) that went in.
        name: The module's name.
        output: A tensor, or several, of which the first counts. Tokens (N, T, C) stand row by row, after
            those that stand for no place in the image.
    """
    while isinstance(output, Mapping | list | tuple) and output:
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    if not isinstance(output, Tensor) or output.dim() != 3:
        return output
    config = _config_at(model, name)
    if output.shape[1] == _queries(config):  # as many tokens as there may be places, and none of them
        return output
    special = 1 + (getattr(config, 'num_register_tokens', None) or 0)
    # A class, perhaps a distillation token, registers, and EoMT's queries come first.
    prefixes = {0, 1, 2, special, special + (getattr(config, 'num_queries', None) or 0)}
    for height, width in _grids(config, images):
        if output.shape[1] - height * width in prefixes:
            return output[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
    return output


def _grids(config: Any, images: Tensor) -> list[tuple[int, int]]:
    """Return the grids (h, w) on which a network may have its tokens, finest first."""
    patch = _patch(config)
    if patch is not None:
        return [_cells(images, patch, round)]
    first = _number(getattr(config, 'patch_size', None)) or _number(getattr(config, 'strides', None)) or 4
    return [_cells(images, first * 2**stage, way) for stage in range(5) for way in (math.ceil, math.floor)]


def _cells(images: Tensor, stride: int, way: Callable[[float], int]) -> tuple[int, int]:
    height, width = (max(way(length / stride), 1) for length in images.shape[2:])
    return height, width


def _config_at(model: nn.Module, name: str) -> Any:
    """Return the settings of the part of a network that a module belongs to."""
    modules = dict(model.named_modules())
    while name:
        config = getattr(modules.get(name), 'config', None)
        if hasattr(config, 'patch_size') or hasattr(config, 'strides'):
            return config
        name = name.rpartition('.')[0]
    return model.config


def _queries(config: Any) -> int | None:
    """Return the number of queries of a network that proposes masks, None for others."""
    parts = (config, getattr(config, 'decoder_config', None))
    return next((number for part in parts if (number := getattr(part, 'num_queries', None))), None)


def _patch(config: Any) -> int | None:
    """Return the side of the patches of a plain vision transformer, None for a network with stages."""
    for one in (config, getattr(config, 'backbone_config', None)):
        patch = _number(getattr(one, 'patch_size', None))
        if patch is not None and not hasattr(one, 'depths'):
            return patch
    return None


def _number(value: Any) -> int | None:
    """Return a number, or the first of several."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, int) else None
