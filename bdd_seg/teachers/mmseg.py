"""A teacher from an mmseg config and a checkpoint."""

import copy
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor, nn

from bdd_seg.distill.channels import map_channels
from bdd_seg.distill.taps import default_tap, run_all_heads
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream import bfloat16
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.runtime.upstream.checkpoints import (
    AUXILIARY,
    find_checkpoint,
    load_and_report_mismatch,
    load_checkpoint,
    weights_of,
)
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers.base import Answer, Teacher
from bdd_seg.teachers.classes import check_number_of_classes, number_of_classes
from bdd_seg.teachers.frozen import PRECISIONS, FrozenModule
from bdd_seg.teachers.normalise import renormalise, same_input


@MODELS.register_module()
class MMSegTeacher(Teacher):
    """An mmseg network with trained weights.

    Copying or pickling copies the settings, not the network.

    Args:
        config: The teacher's config: a path, ``mmseg::FOLDER/NAME.py``, or a dict (a whole config or its
            ``model``).
        checkpoint: Its weights: a path or an http(s) URL.
        check_class_names: Whether class names in the checkpoint must be those of the student's data set.
            Switch off where the same classes merely have other names.
        precision: None for the student's, that of the autocast it runs in, if any. ``'bf16'`` for bfloat16
            autocast with weights kept in bfloat16, which changes the answers slightly.
        compile: Whether to run through ``torch.compile``. Worth the wait on long runs; where it cannot
            compile, a warning says so and the teacher runs without.

    Raises:
        ConfigError: An unknown precision.
    """

    def __init__(
        self,
        config: str | Path | dict,
        checkpoint: str | Path,
        check_class_names: bool = True,
        precision: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(check_class_names)
        if precision not in PRECISIONS:
            raise ConfigError(f"teacher.precision must be None or 'bf16', got {precision!r}")
        self.config = config
        self.checkpoint = checkpoint
        self.precision = precision
        self.compile = compile
        self.network: FrozenModule | None = None
        self._student_preprocessor: nn.Module | None = None

    def __getstate__(self) -> dict[str, Any]:
        settings = MMSegTeacher(
            self.config, self.checkpoint, self.check_class_names, self.precision, self.compile
        )
        return vars(settings)

    @property
    def is_built(self) -> bool:
        """True once :meth:`build` was called."""
        return self.network is not None

    @property
    def model(self) -> BaseSegmentor:
        """The network, once it is built."""
        assert self.network is not None, 'build() comes first'
        return self.network.model

    @property
    def taps(self) -> list[str]:
        """Names of the maps it answers with, once it is built."""
        assert self.network is not None, 'build() comes first'
        return self.network.taps

    def describe(self) -> str:
        """Return the config's path."""
        return 'config given as a dict' if isinstance(self.config, dict) else str(self.config)

    def summary(self) -> str:
        """Return the config's name, the parameters, the checkpoint, and the precision."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        name = self.describe() if isinstance(self.config, dict) else Path(self.config).name
        precision = "the student's precision" if self.precision is None else self.precision
        compiled = ', compiled' if self.compile else ''
        return f'{name}, {parameters / 1e6:.2f} M parameters, {self.checkpoint}, {precision}{compiled}'

    def check(self, student: Mapping[str, Any]) -> None:
        """Check config, number of classes, and weights, at the cost of reading names and shapes.

        A checkpoint that is still to be downloaded is not checked, nor are the weights of a network that
        cannot be built without computing.

        Raises:
            ConfigError: As for :meth:`build`.
        """
        config = self.model_config()
        own, classes = number_of_classes(config), number_of_classes(student)
        if own is not None and classes is not None:
            check_number_of_classes(own, classes, self.describe())
        if str(self.checkpoint).startswith(('http://', 'https://')) and not find_checkpoint(self.checkpoint):
            return
        content = _load(self.checkpoint, self.describe(), 'meta')
        with warnings.catch_warnings():  # they come again where it is built
            warnings.simplefilter('ignore')
            model = _build_on_meta(config)
            if model is not None:
                _fit_weights(model, content, self.checkpoint, self.describe())

    def channels(self, tap: str | None) -> int:
        """Return the number of channels, from the config alone.

        Raises:
            ConfigError: There is no such config, or the tap names no module.
        """
        config = self.model_config(_auxiliary([tap]))
        model = _build_on_meta(config)
        if model is None:
            model = _build(config)
        return map_channels(model, tap or default_tap(model))

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Build the network, load its weights, and check that it can teach ``student``.

        Draws no random numbers, so that the student's run is the one it would be without a teacher.

        Raises:
            ConfigError: The config or checkpoint is missing or broken, weights do not fit the network, a tap
                names no module, or teacher and student predict different numbers of classes.
        """
        taps = list(taps)
        auxiliary = _auxiliary(taps)
        model = _build(self.model_config(auxiliary))
        check_number_of_classes(model.out_channels, student.out_channels, self.describe())
        content = _load(self.checkpoint, self.describe())
        _fit_weights(model, content, self.checkpoint, self.describe(), None if auxiliary else AUXILIARY)
        self.class_names = _class_names(content)
        self.logits_tap = default_tap(model)
        wanted = {tap or self.logits_tap for tap in taps}
        if self.logits_tap in dict(model.named_modules()):  # for the accuracy, wanted or not
            wanted.add(self.logits_tap)
        forward = run_all_heads if auxiliary else _tensor_mode
        self.network = FrozenModule(model, wanted, forward, self.precision, self.compile)
        same = same_input(student.data_preprocessor, model.data_preprocessor)
        self._student_preprocessor = None if same else student.data_preprocessor
        if self.precision == 'bf16':
            bfloat16.warn_if_slow(
                "model.teacher.precision='bf16'",
                'A training step was measured there at 12.4 times one without a teacher. Use precision=None, '
                'or a CachedTeacher',
            )

    def __call__(self, inputs: Tensor, data_samples: SampleList | None = None) -> Answer:
        """Answer with the outputs of the tapped modules, known everywhere.

        Args:
            inputs: (N, 3, H, W) images as the student receives them. They are normalised anew where the
                teacher was trained with another normalisation. The teacher follows them to their device and
                dtype.
            data_samples: Not needed.
        """
        assert self.network is not None, 'build() comes first'
        if self._student_preprocessor is not None:
            inputs = renormalise(inputs, self._student_preprocessor, self.model.data_preprocessor)
        return Answer(self.network(inputs))

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this teacher from another.

        Returns:
            ``checkpoint``: the SHA-256 of its file, None where that is not on this machine; ``config``: the
            SHA-256 of its model's settings; ``normalisation`` of its input; ``precision``.
        """
        file = find_checkpoint(self.checkpoint)
        settings = json.dumps(self.model_config(), sort_keys=True, default=str)
        preprocessor = json.loads(settings).get('data_preprocessor') or {}
        return {
            'checkpoint': None if file is None else file_digest(file),
            'normalisation': {
                key: preprocessor.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr')
            },
            'precision': self.precision,
            'config': hashlib.sha256(settings.encode()).hexdigest(),
        }

    def model_config(self, auxiliary: bool = False) -> dict[str, Any]:
        """Return the ``model`` part of the teacher's config.

        Args:
            auxiliary: Whether to keep auxiliary heads, which serve training only, unless one is tapped.

        Raises:
            ConfigError: There is no such file, or no model in it.
        """
        try:
            config = self.config if isinstance(self.config, dict) else load_config(self.config)
        except ConfigError as error:
            raise ConfigError(
                f'teacher: {error} Paths start at the folder you run in, or write '
                "'{{ fileDirname }}/...' for the config's own folder"
            ) from error
        model = config.get('model', config)
        if 'type' not in model:
            raise ConfigError(f'teacher config {self.describe()} has no model')
        return {key: value for key, value in model.items() if auxiliary or key != AUXILIARY}


def _auxiliary(taps: Iterable[str | None]) -> bool:
    """Return whether one of the taps is in an auxiliary head."""
    return any(tap is not None and tap.startswith(f'{AUXILIARY}.') for tap in taps)


def _tensor_mode(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs, mode='tensor')


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
