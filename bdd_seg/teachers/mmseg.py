"""The teacher as a network: everything about it, in one place, outside the student's modules."""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor, nn

from bdd_seg.cli.explain import naming_the_cause
from bdd_seg.distill.taps import Tap, default_tap
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import (
    AUXILIARY,
    find_checkpoint,
    load_and_report_mismatch,
    load_checkpoint,
    weights_of,
)
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers.base import Teacher

_PRECISIONS = {None: None, 'bf16': torch.bfloat16}

# Relative difference above which folding has made another network of it. Rounding is 1e-6, or 1e-3 where a
# GPU convolves in TF32.
_FOLDING_TOLERANCE = 0.01


@MODELS.register_module()
class FrozenTeacher(Teacher):
    """A trained network that answers, and is invisible to everything else.

    It runs in inference mode up to its logits, its BatchNorm folded into the convolutions and its memory
    laid out channels-last: the same answers to rounding, for less. Copying or pickling copies the
    settings, not the network.

    Args:
        config: The teacher's config: a path, ``mmseg::FOLDER/NAME.py``, or a dict (a whole config or
            its ``model``).
        checkpoint: Its weights: a path or an http(s) URL.
        check_class_names: Whether class names in the checkpoint must be those of the student's data set.
            Switch off where the same classes merely have other names.
        precision: None for the student's: that of the autocast it runs in, if any. ``'bf16'`` for
            bfloat16 autocast with weights kept in bfloat16, which changes the answers slightly.
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
        if precision not in _PRECISIONS:
            raise ConfigError(f"teacher.precision must be None or 'bf16', got {precision!r}")
        self.config = config
        self.checkpoint = checkpoint
        self.precision = precision
        self.compile = compile
        self.model: BaseSegmentor | None = None
        self.taps: list[str] = []
        self._compiled: Callable[[Tensor], dict[str, Tensor]] | None = None
        self._is_fast = False
        self._student_preprocessor: nn.Module | None = None

    def __getstate__(self) -> dict[str, Any]:
        settings = FrozenTeacher(
            self.config, self.checkpoint, self.check_class_names, self.precision, self.compile
        )
        return vars(settings)

    @property
    def is_built(self) -> bool:
        return self.model is not None

    def describe(self) -> str:
        return 'config given as a dict' if isinstance(self.config, dict) else str(self.config)

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Build the network, load its weights, and check that it can teach ``student``.

        Draws no random numbers, so that the student's run is the one it would be without a teacher.

        Raises:
            ConfigError: The config or checkpoint is missing or broken, weights do not fit the network,
                a tap names no module, or teacher and student predict different numbers of classes.
        """
        config = self.model_config()
        with (
            torch.random.fork_rng(devices=[]),
            DefaultScope.overwrite_default_scope('mmseg'),
            naming_the_cause({'model': config}, f'teacher ({self.describe()}): '),
        ):
            model = revert_sync_batchnorm(MODELS.build(config))
        self._check_number_of_classes(student, model.out_channels)
        self.class_names = _load_weights(model, self.checkpoint, self.describe())
        self.model = model.eval().requires_grad_(False)
        self.logits_tap = default_tap(model)
        self.taps = sorted({tap or self.logits_tap for tap in taps})
        Tap(model, self.taps)
        if self.logits_tap in dict(model.named_modules()):  # for the accuracy, wanted or not
            self.taps = sorted({self.logits_tap, *self.taps})
        self._is_fast = False
        same_input = _same_input(student.data_preprocessor, model.data_preprocessor)
        self._student_preprocessor = None if same_input else student.data_preprocessor
        self._data_checked = False

    def __call__(
        self, inputs: Tensor, data_samples: SampleList | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs of the tapped modules, and the logits, all of them known everywhere.

        Args:
            inputs: (N, 3, H, W) images as the student receives them. They are normalised anew where the
                teacher was trained with another normalisation. The teacher follows them to their device
                and dtype.
            data_samples: Not needed.
        """
        assert self.model is not None, 'build() comes first'
        if self._student_preprocessor is not None:
            inputs = renormalise(inputs, self._student_preprocessor, self.model.data_preprocessor)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        self._get_ready(inputs)
        # SegNeXt's head draws random numbers even in eval mode: let them be the same ones each time,
        # and leave the student's alone.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(), self._autocast(inputs.device):
            torch.default_generator.manual_seed(0)
            outputs = self._run(inputs)
        # Copies, since autograd cannot keep tensors that were made in inference mode.
        copies = {
            name: output.to(inputs.dtype).clone(memory_format=torch.contiguous_format)
            for name, output in outputs.items()
        }
        return copies, {}

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        dtype = _PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def _get_ready(self, inputs: Tensor) -> None:
        """Be where the inputs are, in their dtype; before the first of them, become fast."""
        assert self.model is not None
        if not self._is_fast:
            self.model = self._folded(self.model.to(inputs.device), inputs[:1])
            self.model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
            if self.precision is not None:
                for module in self.model.modules():
                    if isinstance(module, nn.Conv2d | nn.Linear):
                        module.to(_PRECISIONS[self.precision])
            self._compiled = torch.compile(self._forward) if self.compile else None
            self._is_fast = True
        weight = next(self.model.parameters())
        if weight.device != inputs.device:
            self.model.to(inputs.device)
        if self.precision is None and weight.dtype != inputs.dtype:
            self.model.to(inputs.dtype)

    def _folded(self, model: BaseSegmentor, image: Tensor) -> BaseSegmentor:
        """The network with its BatchNorm folded into convolutions, if that answers as the network does.

        mmcv folds a BatchNorm into the convolution that its module names before it, which is not in all
        networks the one that runs before it. And a tap may want what lies between the two.
        """
        original = self._try(model, image)
        try:
            folded = fuse_conv_bn(copy.deepcopy(model))
            changed = self._try(folded, image)
        except Exception as error:  # mmcv can fold no BatchNorm without weights or statistics
            reason = f'{type(error).__name__}: {error}'
        else:
            errors = {tap: _relative_error(changed[tap], original[tap]) for tap in self.taps}
            worst = max(errors, key=errors.__getitem__)
            if errors[worst] < _FOLDING_TOLERANCE:
                return folded
            reason = f'{worst} would be another by {errors[worst]:.0%}'
        print_log(f"The teacher's BatchNorm is not folded into its convolutions: {reason}", logger='current')
        return model

    def _try(self, model: BaseSegmentor, image: Tensor) -> dict[str, Tensor]:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),  # where a tap sees that an output is changed in place
            torch.autocast(image.device.type, enabled=False),
            Tap(model, self.taps) as outputs,
        ):
            torch.default_generator.manual_seed(0)
            model(image.float(), mode='tensor')
        return outputs

    def _run(self, inputs: Tensor) -> dict[str, Tensor]:
        if self._compiled is not None:
            try:
                return self._compiled(inputs)
            except Exception as error:
                self._compiled = None
                print_log(
                    f'The teacher runs without torch.compile, which failed: {type(error).__name__}: '
                    f'{str(error).strip().splitlines()[0]}',
                    logger='current',
                    level=logging.WARNING,
                )
        return self._forward(inputs)

    def _forward(self, inputs: Tensor) -> dict[str, Tensor]:
        assert self.model is not None
        with Tap(self.model, self.taps) as outputs:
            self.model(inputs, mode='tensor')
        return outputs

    def fingerprint(self) -> dict[str, Any]:
        """What tells this teacher from another.

        Returns:
            ``checkpoint``: the SHA-256 of its file, None where that is not on this machine; ``config``: the
            SHA-256 of its model's settings; ``normalisation`` of its input; ``precision``.
        """
        file = find_checkpoint(self.checkpoint)
        settings = json.dumps(self.model_config(), sort_keys=True, default=str)
        preprocessor = json.loads(settings).get('data_preprocessor') or {}
        return {
            'checkpoint': None if file is None else hashlib.sha256(file.read_bytes()).hexdigest(),
            'normalisation': {
                key: preprocessor.get(key) for key in ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr')
            },
            'precision': self.precision,
            'config': hashlib.sha256(settings.encode()).hexdigest(),
        }

    def model_config(self) -> dict[str, Any]:
        """The ``model`` part of the teacher's config, without what serves training only.

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
        return {key: value for key, value in model.items() if key != AUXILIARY}


def _relative_error(changed: Tensor, original: Tensor) -> float:
    return ((changed - original).norm() / original.norm().clamp(min=1e-12)).nan_to_num(nan=torch.inf).item()


def renormalise(inputs: Tensor, source: nn.Module, target: nn.Module) -> Tensor:
    """Turn images normalised by one data preprocessor into images normalised by another.

    Args:
        inputs: (N, C, H, W), normalised by ``source``.
        source: An mmseg ``SegDataPreProcessor``: ``(x[bgr or rgb] - mean) / std``.
        target: The same, with other statistics or another channel order.

    Returns:
        (N, C, H, W), normalised by ``target``.
    """
    mean, std, swapped = _input_settings(source)
    target_mean, target_std, target_swapped = _input_settings(target)
    raw = inputs * std.to(inputs) + mean.to(inputs)
    if swapped != target_swapped:
        raw = raw.flip(1)
    return (raw - target_mean.to(inputs)) / target_std.to(inputs)


def _input_settings(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """Mean and standard deviation (C, 1, 1) in 0..255, and whether the loaded channels are swapped."""
    mean = getattr(preprocessor, 'mean', torch.zeros(1))
    std = getattr(preprocessor, 'std', torch.ones(1))
    return mean, std, getattr(preprocessor, '_channel_conversion', False)


def _same_input(source: nn.Module, target: nn.Module) -> bool:
    mean, std, swapped = _input_settings(source)
    target_mean, target_std, target_swapped = _input_settings(target)
    return swapped == target_swapped and all(
        a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
        for a, b in ((mean, target_mean), (std, target_std))
    )


def _load_weights(model: BaseSegmentor, checkpoint: str | Path, teacher: str) -> tuple[str, ...] | None:
    """Load strictly but for heads a teacher does not use; return the class names the checkpoint gives."""
    try:
        content = load_checkpoint(checkpoint)
    except ConfigError as error:
        raise ConfigError(f'teacher ({teacher}): {error}') from error
    where = f'teacher ({teacher}): checkpoint {str(checkpoint)!r}'
    problem = load_and_report_mismatch(model, weights_of(content, where))
    if problem:
        raise ConfigError(
            f'checkpoint {str(checkpoint)!r} does not fit the teacher ({teacher}): {problem}. '
            'Use the config that the checkpoint was trained with'
        )
    meta = content.get('meta') or {}
    names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    return tuple(names) if names else None
