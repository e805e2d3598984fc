"""A teacher from an ONNX file."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.utils import digit_version
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.distill.taps import LOGITS
from bdd_seg.errors import ConfigError, first_line, similar_to
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.teachers.module import TappedOutputs, check_names_fit, check_stated_names, checked_names
from bdd_seg.teachers.network import Network, NetworkTeacher
from bdd_seg.teachers.normalise import (
    Statistic,
    as_data,
    check_bands,
    stated_normalisation,
    warn_of_unit_range,
)

# Older ones read what a hostile file names outside of its folder.
_OLDEST_RUNTIME = '1.24.4'

_CUDA, _CPU = 'CUDAExecutionProvider', 'CPUExecutionProvider'

_DTYPES = {'tensor(float)': torch.float32, 'tensor(float16)': torch.float16}

_SIZE = (256, 256)  # of the image that tells shapes which a file leaves open


@MODELS.register_module()
class OnnxTeacher(NetworkTeacher):
    """A network in an ONNX file, run by onnxruntime.

    It runs on the GPU where torch does and onnxruntime can, else on the CPU. The file's outputs are its taps.
    Its only input are images (N, bands, H, W). A size that the file fixes is kept by resizing, and a batch
    that it fixes to 1 by running one image after the other.

    Args:
        model: Path of the file.
        mean: Of the images it was trained with, whose values are 0 to 255: one number a channel, or one for
            all; None for no normalisation, of images as they are loaded. Must be stated.
        std: The same.
        bgr_to_rgb: Whether it was trained with red first.
        class_names: The classes it was trained for, in the order of its logits; by default those that the
            file's metadata tells as ``classes``, a list in JSON.
        output: Which output has the class logits (N, C, h, w), before any softmax; by default the only one,
            or the one named ``logits``.
        **options: As for :class:`~bdd_seg.teachers.NetworkTeacher`, but for ``precision`` and ``compile``.

    Raises:
        ConfigError: ``mean`` or ``std`` is not stated or of another kind, or ``precision`` or ``compile`` is
            given.
    """

    def __init__(
        self,
        model: str | Path,
        mean: Statistic | EllipsisType = ...,
        std: Statistic | EllipsisType = ...,
        bgr_to_rgb: bool = True,
        class_names: Sequence[str] | None = None,
        output: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.precision is not None or self.compile:
            raise ConfigError(
                "teacher: precision='bf16' and compile=True are not for an ONNX file, which is run as it is. "
                'Leave them out, or export the network in float16'
            )
        self.file = Path(model).expanduser()
        self.normalisation = stated_normalisation(mean, std, bgr_to_rgb)
        self.stated_names = checked_names(class_names)
        self.output = output

    def describe(self) -> str:
        """Return the file's path."""
        return str(self.file)

    def summary(self) -> str:
        """Return the file's path, its size, where it runs, and the size of its images."""
        provider = _session_of(self.facts.model).get_providers()[0]
        return f'{self.describe()}, {self.file.stat().st_size / 1e6:.2f} MB, {provider}{self._resized()}'

    def check(self, student: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Check that there are onnxruntime and the file, and ``class_names``.

        Raises:
            ConfigError: There are not, or the names are not those of the student's classes.
        """
        import_onnxruntime()
        self._check_file()
        check_stated_names(self, self.stated_names, student, classes)

    def map_channels(self, tap: str | None) -> int:
        """Return the number of channels of an output.

        Raises:
            ConfigError: The file is missing or broken, or has no such output.
        """
        session = self._session()
        return self._channels(session, self._output(session, None if tap == LOGITS else tap))

    def load(self, taps: Sequence[str | None]) -> Network:
        """Load the file.

        Raises:
            ConfigError: onnxruntime or the file is missing; it is damaged, wants operators that onnxruntime
                lacks, or data outside of its folder; its input is no image, or an output that is wanted no
                map of floating point numbers; or it has no such output.
        """
        session = self._session()
        features = sorted({self._output(session, tap) for tap in taps if tap not in (None, LOGITS)})
        names = self.stated_names if self.stated_names is not None else self._names_in(session)
        told = names is not None or self.output is not None or LOGITS in _outputs(session)
        logits = num_classes = None
        if told or None in taps or LOGITS in taps:  # else the only output may be features
            logits = self._output(session, None)
            num_classes = self._channels(session, logits)
        check_names_fit(names, num_classes, self.describe())
        (images,) = session.get_inputs()
        bands = images.shape[1] if isinstance(images.shape[1], int) else self.normalisation.bands
        check_bands(self.normalisation, bands, self.describe())
        warn_of_unit_range(self.normalisation)
        wanted = dict.fromkeys([*features, *([] if logits is None else [logits])])
        return Network(
            model=TappedOutputs(OnnxGraph(session, list(wanted), self.describe()), features),
            forward=partial(_run, logits),
            logits_tap=None if logits is None else LOGITS,
            num_classes=num_classes,
            normalisation=self.normalisation,
            class_names=names,
            input_size=self._fixed_size(images),
            bands=bands,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this teacher from another.

        Returns:
            ``checkpoint``: the SHA-256 of the file, and of those beside it whose names begin with its own, as
            those with its weights do; None where it is not on this machine. ``output`` with the logits,
            ``normalisation`` of its input, and the size and channels of that where they are set.
        """
        digest = None
        if self.file.is_file():
            name = self.file.name
            beside = (path for path in self.file.parent.iterdir() if path.is_file())
            parts = sorted(path for path in beside if path.name.startswith(name))
            digest = hashlib.sha256(''.join(map(file_digest, parts)).encode()).hexdigest()
        return {
            **super().fingerprint(),
            'checkpoint': digest,
            'output': self.output,
            'normalisation': as_data(self.normalisation),
        }

    def _check_file(self) -> None:
        if not self.file.is_file():
            raise ConfigError(f'teacher.model: {str(self.file)!r} is no file. Give the path of an ONNX file')

    def _session(self) -> Any:
        self._check_file()
        session = open_session(self.file, f'teacher ({self.describe()})')
        self._check_input(session)
        return session

    def _check_input(self, session: Any) -> None:
        inputs = session.get_inputs()
        found = ', '.join(f'{one.name} {one.type} {one.shape}' for one in inputs)
        if len(inputs) != 1 or inputs[0].type not in _DTYPES or not _is_channels_first(inputs[0].shape):
            raise ConfigError(
                f'teacher ({self.describe()}): its inputs are {found}. Expected one, images (N, bands, H, W) '
                'in floating point. Export it so'
            )
        batch = inputs[0].shape[0]
        if isinstance(batch, int) and batch != 1:
            raise ConfigError(
                f'teacher ({self.describe()}): it takes batches of {batch} images only. Export it with a '
                'free number of images, or with 1'
            )

    def _fixed_size(self, images: Any) -> tuple[int, int] | None:
        """Return (H, W) if the file fixes both.

        Raises:
            ConfigError: It fixes another size than ``input_size``, or one length of two.
        """
        fixed = [length if isinstance(length, int) else None for length in images.shape[2:]]
        if fixed == [None, None]:
            return None
        if self.input_size is None and None not in fixed:
            return fixed[0], fixed[1]  # type: ignore[return-value]  # mypy does not follow
        if self.input_size is None or any(
            length not in (None, own) for length, own in zip(fixed, self.input_size, strict=True)
        ):
            raise ConfigError(
                f'teacher ({self.describe()}): it takes images {images.shape} only. Give a '
                'teacher.input_size=(H, W) that fits'
            )
        return self.input_size

    def _output(self, session: Any, tap: str | None) -> str:
        """Return the name of the output that is tapped, None for the logits.

        Raises:
            ConfigError: There is none, or it has no floating point numbers.
        """
        outputs = _outputs(session)
        where = f'teacher ({self.describe()})'
        listed = ', '.join(f'{one.name} {one.shape}' for one in outputs.values())
        if tap is not None:
            # A colon would make a function of the tap, and an empty part is no name of a module.
            if tap not in outputs or ':' in tap or not all(tap.split('.')):
                raise ConfigError(
                    f'{where}: teacher_tap {tap!r} is none of its outputs that can be tapped: {listed}.'
                    f'{similar_to(tap, outputs)}'
                )
            name = tap
        else:
            name = self.output or (next(iter(outputs)) if len(outputs) == 1 else LOGITS)
            if name not in outputs:
                problem = (
                    f'teacher.output={name!r} is none of its outputs'
                    if self.output
                    else "which output has the class logits is not told: give teacher.output='...'"
                )
                raise ConfigError(f'{where}: {problem}. Its outputs: {listed}.{similar_to(name, outputs)}')
        if outputs[name].type not in _DTYPES:
            raise ConfigError(
                f'{where}: output {name!r} is a {outputs[name].type}. A map of floating point numbers is '
                'needed, which labels are not: export the network without its argmax, with its logits'
            )
        return name

    def _channels(self, session: Any, name: str) -> int:
        """Return the channels of an output, by running the file where it does not tell them.

        Raises:
            ConfigError: The output is no map (N, C, h, w).
        """
        shape = _outputs(session)[name].shape
        if len(shape) != 4 or not isinstance(shape[1], int):
            (images,) = session.get_inputs()
            bands = images.shape[1] if isinstance(images.shape[1], int) else self.normalisation.bands or 3
            size = self.input_size or self._fixed_size(images) or _SIZE
            graph = OnnxGraph(session, [name], self.describe())
            shape = graph(torch.zeros(1, bands, *size))[name].shape
        if len(shape) != 4:
            raise ConfigError(
                f'teacher ({self.describe()}): output {name!r} is {tuple(shape)}, no map (N, C, h, w). '
                'Export the network so that it puts out a map'
            )
        return shape[1]

    def _names_in(self, session: Any) -> tuple[str, ...] | None:
        text = session.get_modelmeta().custom_metadata_map.get('classes')
        if text is None:
            return None
        try:
            return checked_names(json.loads(text))
        except ValueError as error:  # both of JSON and of the check
            raise ConfigError(
                f"teacher ({self.describe()}): 'classes' in its metadata is no list of names in JSON. Give "
                'teacher.class_names'
            ) from error


class OnnxGraph(nn.Module):
    """A session of onnxruntime as a module without parameters.

    Args:
        session: Of one input, images.
        names: The outputs to compute.
        file: Its path, for messages.
    """

    def __init__(self, session: Any, names: list[str], file: str) -> None:
        super().__init__()
        self.file = file
        self.session = session
        self.names = names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs for images (N, bands, H, W), by name, in their dtype and on their device.

        Raises:
            ConfigError: onnxruntime fails on such images.
        """
        (wanted,) = self.session.get_inputs()
        arrays = images.detach().to('cpu', _DTYPES[wanted.type]).contiguous().numpy()
        batches = np.split(arrays, len(arrays)) if wanted.shape[0] == 1 else [arrays]
        try:
            answers = [self.session.run(self.names, {wanted.name: batch}) for batch in batches]
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise ConfigError(
                f'teacher ({self.file}): it does not run on images {tuple(images.shape)}: '
                f'{first_line(error)}. If it takes images of one size only, give teacher.input_size=(H, W)'
            ) from error
        return {
            name: torch.from_numpy(np.concatenate(parts)).to(images)
            for name, parts in zip(self.names, zip(*answers, strict=True), strict=True)
        }


def open_session(file: Path, owner: str, device: torch.device | None = None) -> Any:
    """Return a session of onnxruntime: on the GPU where onnxruntime can, else on the CPU.

    Args:
        file: An ONNX file.
        owner: The beginning of messages.
        device: On which it shall run; by default torch's.

    Raises:
        ConfigError: onnxruntime is missing or too old, or the file is damaged, wants operators that
            onnxruntime lacks, or data outside of its folder.
    """
    runtime = import_onnxruntime()
    options = session_options(torch.get_num_threads())
    providers: list[Any] = [_CPU]
    device = device or torch.device(get_device())
    if device.type == 'cuda' and _CUDA in runtime.get_available_providers():
        number = torch.cuda.current_device() if device.index is None else device.index
        providers.insert(0, (_CUDA, {'device_id': number}))
    try:
        session = runtime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise ConfigError(
            f'{owner}: it cannot be loaded: {first_line(error)}. If it is damaged, copy it again, with the '
            'files beside it; export it with standard operators only'
        ) from error
    if device.type == 'cuda' and _CUDA not in session.get_providers():
        print_log(
            f'{owner} runs on the CPU: this onnxruntime cannot use the GPU. Install onnxruntime-gpu in its '
            'place',
            'current',
            logging.WARNING,
        )
    return session


def session_options(threads: int) -> Any:
    """Return options of a session of onnxruntime: quiet, with so many threads on the CPU."""
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.intra_op_num_threads = threads
    return options


def import_onnxruntime() -> Any:
    """Return the module ``onnxruntime``.

    Raises:
        ConfigError: It is not installed, or too old to be safe.
    """
    try:
        import onnxruntime  # an extra
    except ImportError as error:
        raise ConfigError(
            f"an ONNX file needs onnxruntime ({error}): pip install 'bdd-seg[onnx]', or onnxruntime-gpu"
        ) from error
    if digit_version(onnxruntime.__version__) < digit_version(_OLDEST_RUNTIME):
        raise ConfigError(
            f'onnxruntime {onnxruntime.__version__} lets an ONNX file read files outside of its folder, and '
            f"is refused: pip install 'onnxruntime>={_OLDEST_RUNTIME}'"
        )
    return onnxruntime


def _is_channels_first(shape: Sequence[Any]) -> bool:
    return len(shape) == 4 and not (isinstance(shape[3], int) and shape[3] <= 4)


def _outputs(session: Any) -> dict[str, Any]:
    return {one.name: one for one in session.get_outputs()}


def _session_of(model: nn.Module) -> Any:
    return next(part.session for part in model.modules() if isinstance(part, OnnxGraph))


def _run(logits: str | None, model: nn.Module, images: Tensor) -> Tensor | None:
    maps = model(images)
    return None if logits is None else maps[logits]
