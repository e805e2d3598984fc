"""A teacher from an mmseg config and a checkpoint."""

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS

from bdd_seg.distill.channels import map_channels
from bdd_seg.distill.taps import LOGITS, find_taps, run_all_heads
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import class_names
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.runtime.upstream.checkpoints import (
    AUXILIARY,
    find_checkpoint,
    load_and_report_mismatch,
    load_checkpoint,
    weights_of,
)
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers.classes import check_number_of_classes, number_of_classes
from bdd_seg.teachers.network import Network, NetworkTeacher, input_bands
from bdd_seg.teachers.normalise import Normalisation
from bdd_seg.teachers.segmentors import fixed_input_size, logits_tap, run


@MODELS.register_module()
class MMSegTeacher(NetworkTeacher):
    """An mmseg network with trained weights.

    Args:
        config: The teacher's config: a path, ``mmseg::FOLDER/NAME.py``, or a dict (a whole config or its
            ``model``).
        checkpoint: Its weights: a path or an http(s) URL.
        **options: As for :class:`~bdd_seg.teachers.NetworkTeacher`.
    """

    def __init__(self, config: str | Path | dict, checkpoint: str | Path, **options: Any) -> None:
        super().__init__(**options)
        self.config = config
        self.checkpoint = checkpoint
        self._read: Mapping[str, Any] | None = None

    def describe(self) -> str:
        """Return the config's path."""
        return 'config given as a dict' if isinstance(self.config, dict) else str(self.config)

    def title(self) -> str:
        """Return the config's name and the checkpoint."""
        name = self.describe() if isinstance(self.config, dict) else Path(self.config).name
        return f'{name}, {self.checkpoint}'

    def check(self, student: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Check config, classes, and weights, at the cost of reading names and shapes.

        A checkpoint that is still to be downloaded is not checked, nor are the weights of a network that
        cannot be built without computing.

        Raises:
            ConfigError: As for :meth:`build`.
        """
        config = self.model_config()
        self._check_number_of_classes(config, number_of_classes(student))
        if str(self.checkpoint).startswith(('http://', 'https://')) and not find_checkpoint(self.checkpoint):
            return
        content = _load(self.checkpoint, self.describe(), 'meta')
        if classes:
            self.class_names = _class_names(content) or self._classes_of_data()
            self.check_classes(classes)
        with warnings.catch_warnings():  # they come again where it is built
            warnings.simplefilter('ignore')
            model = _build_on_meta(config)
            if model is not None:
                _fit_weights(model, content, self.checkpoint, self.describe())

    def map_channels(self, tap: str | None) -> int:
        """Return the number of channels, from the config alone.

        Raises:
            ConfigError: There is no such config, or the tap names no module.
        """
        config = self.model_config(self._needs_auxiliary([tap]))
        model = _build_on_meta(config)
        if model is None:
            model = _build(config)
        tap = tap or logits_tap(model)
        return model.out_channels if tap == LOGITS else map_channels(model, tap)

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Build the network, load its weights, and check that it can teach ``student``.

        Raises:
            ConfigError: As for :class:`~bdd_seg.teachers.NetworkTeacher`.
        """
        self._check_number_of_classes(self.model_config(), student.out_channels)  # before weights do not fit
        super().build(student, taps)

    def load(self, taps: Sequence[str | None]) -> Network:
        """Build the network and load its weights.

        Raises:
            ConfigError: The config or checkpoint is missing or broken, or weights do not fit the network.
        """
        auxiliary = self._needs_auxiliary(taps)
        model = _build(self.model_config(auxiliary))
        content = _load(self.checkpoint, self.describe())
        _fit_weights(model, content, self.checkpoint, self.describe(), None if auxiliary else AUXILIARY)
        return Network(
            model=model,
            forward=partial(run_all_heads, run=run) if auxiliary else run,
            logits_tap=logits_tap(model),
            num_classes=getattr(model, 'out_channels', None),
            normalisation=Normalisation.of(model.data_preprocessor),
            class_names=_class_names(content) or self._classes_of_data(),
            input_size=fixed_input_size(model),
            bands=input_bands(model),
            align_corners=getattr(model, 'align_corners', False),
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this teacher from another.

        Returns:
            ``checkpoint``: the SHA-256 of its file, None where that is not on this machine; ``config``: the
            SHA-256 of its model's settings; ``normalisation`` of its input; ``precision``; and the size and
            channels of its input where they are set.
        """
        file = find_checkpoint(self.checkpoint)
        settings = json.dumps(self.model_config(), sort_keys=True, default=str)
        preprocessor = json.loads(settings).get('data_preprocessor') or {}
        return {
            **super().fingerprint(),
            'checkpoint': None if file is None else file_digest(file),
            'normalisation': {
                key: preprocessor.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr')
            },
            'config': hashlib.sha256(settings.encode()).hexdigest(),
        }

    def _needs_auxiliary(self, taps: Iterable[str | None]) -> bool:
        """Return whether one of the maps comes from an auxiliary head."""
        functions = [tap for tap in taps if tap is not None and ':' in tap]
        modules = [tap for tap in taps if tap is not None and ':' not in tap]
        if functions:
            config = self.model_config(auxiliary=True)
            found = find_taps(_build_on_meta(config) or _build(config), functions)
            modules += [name for one in found.values() for name in one.modules]
        return any(name.startswith(f'{AUXILIARY}.') for name in modules)

    def _classes_of_data(self) -> tuple[str, ...] | None:
        """Return the classes of the data that the config trains on, if it is a whole config."""
        config = self._whole_config()
        loader = config.get('train_dataloader') or config.get('test_dataloader')
        return class_names(loader['dataset']) if loader else None

    def _check_number_of_classes(self, config: Mapping[str, Any], student: int | None) -> None:
        own = number_of_classes(config)
        if own is not None and student is not None and not self.maps_classes:
            check_number_of_classes(own, student, self.describe())

    def model_config(self, auxiliary: bool = False) -> dict[str, Any]:
        """Return the ``model`` part of the teacher's config.

        Args:
            auxiliary: Whether to keep auxiliary heads, which serve training only, unless one is tapped.

        Raises:
            ConfigError: There is no such file, or no model in it.
        """
        config = self._whole_config()
        model = config.get('model', config)
        if 'type' not in model:
            raise ConfigError(f'teacher config {self.describe()} has no model')
        shared = {'data_preprocessor': config.get('data_preprocessor')}  # which a Runner gives to the model
        model = {**shared, **model} if shared['data_preprocessor'] else model
        return {key: value for key, value in model.items() if auxiliary or key != AUXILIARY}

    def _whole_config(self) -> Mapping[str, Any]:
        """Return the config, read once."""
        if self._read is None:
            try:
                self._read = self.config if isinstance(self.config, dict) else load_config(self.config)
            except ConfigError as error:
                if '::' in str(self.config) or os.path.exists(str(self.config)):
                    raise ConfigError(f'teacher: {error}') from error
                raise ConfigError(
                    f'teacher: {error} Paths start at the folder you run in, or write '
                    "'{{ fileDirname }}/...' for the config's own folder"
                ) from error
        return self._read


def _load(checkpoint: str | Path, teacher: str, device: str = 'cpu') -> dict[str, Any]:
    try:
        return load_checkpoint(checkpoint, device)
    except ConfigError as error:
        raise ConfigError(f'teacher ({teacher}): {error}') from error


def _build(config: dict[str, Any]) -> BaseSegmentor:
    """Build a network, drawing no random numbers of the run."""
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope('mmseg'):
        return revert_sync_batchnorm(MODELS.build(copy.deepcopy(config)))


def _build_on_meta(config: dict[str, Any]) -> BaseSegmentor | None:
    """Build a network on torch's meta device, or return None if building it computes with tensors."""
    try:
        with torch.device('meta'):
            return _build(config)
    except Exception:  # of any kind; build() tells what is wrong where something is
        return None


def _fit_weights(
    model: BaseSegmentor,
    content: dict[str, Any],
    checkpoint: str | Path,
    teacher: str,
    without: str | None = AUXILIARY,
) -> None:
    """Load a checkpoint's weights strictly, but for heads that a teacher does not use."""
    where = f'teacher ({teacher}): checkpoint {str(checkpoint)!r}'
    problem = load_and_report_mismatch(model, weights_of(content, where), without)
    if problem:
        raise ConfigError(
            f'checkpoint {str(checkpoint)!r} does not fit the teacher ({teacher}): {problem}. '
            'Use the config that the checkpoint was trained with'
        )


def _class_names(content: dict[str, Any]) -> tuple[str, ...] | None:
    meta = content.get('meta') or {}
    names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    return tuple(names) if names else None
