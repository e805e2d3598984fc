"""Networks of a report that are opened when they have to answer."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.deploy.load import inference_config, load_model, load_trained
from bdd_seg.distill.settings import checked_teacher
from bdd_seg.distill.student import plain_model
from bdd_seg.errors import ConfigError
from bdd_seg.report import cost
from bdd_seg.report.evaluate import Predict, segmentor_predict, teacher_predict
from bdd_seg.report.images import ValidationSet, file_stamp
from bdd_seg.report.runs import Run, settings_key
from bdd_seg.runtime.guards.data import dataset_meta
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.runtime.upstream.checkpoints import find_checkpoint
from bdd_seg.teachers import EnsembleTeacher, NetworkTeacher, Teacher
from bdd_seg.teachers.cached.store import TeacherCache
from bdd_seg.teachers.segmentors import run as run_segmentor


class Subject:
    """A network of the report that is opened when it has to answer, and not where its answers are kept.

    Args:
        run: Facts about it.
        images: Those it is evaluated on, None where it is not.
    """

    manner = ''
    """A note on how it answers."""

    def __init__(self, run: Run, images: ValidationSet | None = None) -> None:
        self.run = run
        self.images = images

    @property
    def name(self) -> str:
        """The name of its checkpoint, for the file that keeps its evaluation."""
        assert self.run.checkpoint is not None
        return self.run.checkpoint.stem if self.run.work_dir else self.run.checkpoint.name

    @property
    def folder(self) -> Path:
        """The folder that keeps its evaluation."""
        assert self.run.checkpoint is not None
        return self.run.work_dir or self.run.checkpoint.parent

    def settings(self) -> str:
        """Return a text that is the same for networks that differ in their weights alone."""
        if self.run.cfg is None:
            return str(self.run.path)
        return settings_key(plain_model(self.run.cfg.model))

    def identity(self) -> list[Any]:
        """Return what tells it from other networks, without opening it."""
        assert self.run.checkpoint is not None
        return [file_digest(self.run.checkpoint), self.settings()]

    @cached_property
    def model(self) -> Any:
        """The segmentor in eval mode, without auxiliary heads.

        Raises:
            ConfigError: The weights do not fit the config, or it was trained for other classes.
        """
        run = self.run
        assert run.checkpoint is not None
        if run.cfg is None:  # an exported file chooses its device itself
            trained = load_trained(run.checkpoint)
            self._check_classes(trained.about.classes)
            return trained.model
        model, meta = load_model(inference_config(run.cfg), run.checkpoint)
        trained_on = meta.get('dataset_meta') or next(map(dataset_meta, _datasets(run.cfg)), {})
        self._check_classes(trained_on.get('classes'))
        return model.to(get_device())

    def _check_classes(self, own: Sequence[str] | None) -> None:
        """Check that the classes of the network are those of the images, in the same order.

        Args:
            own: Its names, None where they are not known. Names made up by the export tell no more than how
                many there are.

        Raises:
            ConfigError: They are others.
        """
        if own is None or self.images is None:
            return
        expected = self.images.classes
        if len(own) == 1:  # one class has a background, too
            own = ['background', *own]
        made_up = [*own] == [f'class {number}' for number in range(len(own))]
        if len(own) == len(expected) and (made_up or [*map(_plain, own)] == [*map(_plain, expected)]):
            return
        pairs = zip([*own, ''], [*expected, ''], strict=False)
        one, two = next((pair for pair in pairs if _plain(pair[0]) != _plain(pair[1])), ('', ''))
        raise ConfigError(
            f'{self.run.label} was trained for other classes than the images have: {len(own)} against '
            f'{len(expected)}, the first that differ are {one!r} and {two!r}. Give images with its classes: '
            '--config CONFIG.py. If they only have other names, set metainfo.classes of the data set there'
        )

    def predict(self) -> Predict:
        """Return the function that answers images."""
        return segmentor_predict(self.model)

    def known(self) -> Sequence[int] | None:
        """Return the classes that it knows, None for all."""
        return None

    def batch(self, data: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return what it gets of a batch of one: the image (1, bands, H, W), normalised, and its facts."""
        batch = self.model.data_preprocessor(data, training=False)
        return batch['inputs'], batch['data_samples']

    def costs(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return parameters and operations for an image."""
        image, _ = self.batch(data)
        window, count = _windows(image, getattr(self.model, 'test_cfg', None) or {})
        flops, note = cost.operations(self.model, run_segmentor, window)
        return {
            'parameters': _parameters(self.model),
            'flops': count * flops if flops else None,
            'note': note if self.run.cfg is not None else self._resizes(image),
        }

    def _resizes(self, image: Tensor) -> str:
        """Return a note where an exported file takes images of one size, and it is not this image's."""
        size = self.model.about.size
        if size is None or size == tuple(image.shape[2:]):
            return ''
        return f'takes images of {size[0]} × {size[1]} pixels, to which others are resized'

    def timed(self, data: dict[str, Any]) -> Callable[[], Any]:
        """Return the function whose time is taken: the network on an image that is normalised already.

        It runs once for each sliding window. Its logits stay on its own grid: their resize to the size of the
        file costs much the same for all networks, and can be most of the time of a small one.
        """
        image, _ = self.batch(data)
        window, count = _windows(image, getattr(self.model, 'test_cfg', None) or {})

        def run() -> None:
            for _ in range(count):
                run_segmentor(self.model, window)

        return _whole(run, image.device)

    def device(self) -> str:
        """Return what it runs on: the name of a GPU, or the number of CPU threads."""
        session = getattr(getattr(self.model, 'exported', None), 'session', None)
        kind = get_device()
        if kind == 'cpu' or (session is not None and len(session.get_providers()) == 1):
            threads = torch.get_num_threads()
            return f'{threads} CPU thread{"s" * (threads != 1)}'
        return torch.cuda.get_device_name() if kind == 'cuda' else kind


class TeacherSubject(Subject):
    """The teacher of a distilled network, which answers as it does in training.

    Args:
        run: Facts about it.
        images: Those it is evaluated on: the student's.
        student: The distilled network.
    """

    manner = 'answers whole images, as in the training'

    def __init__(self, run: Run, images: ValidationSet | None, student: Run) -> None:
        super().__init__(run, images)
        self.student = student

    @property
    def name(self) -> str:
        """One name for all teachers of this student."""
        return 'teacher'

    @property
    def folder(self) -> Path:
        """The folder of the student."""
        return self.student.work_dir or self.student.path.parent

    def settings(self) -> str:
        """Return a text of its own: its classes may differ from those of a network with the same settings."""
        return f'teacher of {self.student.path}'

    def identity(self) -> list[Any]:
        """Return its settings, and size and date of the files that they name."""
        assert self.student.cfg is not None
        settings = live_teacher(self.student.cfg)
        files = [value for value in _texts(settings) if file_stamp(value)]
        checkpoint = find_checkpoint(settings['checkpoint']) if settings.get('checkpoint') else None
        digest = None if checkpoint is None else file_digest(checkpoint)
        return ['teacher', settings, [[file, *file_stamp(file)] for file in files], digest]

    @cached_property
    def model(self) -> Any:
        """The distiller: the student with its teacher, which is built and knows the classes.

        Raises:
            ConfigError: The teacher cannot be built.
        """
        cfg = self.student.cfg
        assert cfg is not None and self.images is not None
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
            distiller = MODELS.build({**copy.deepcopy(cfg.model), 'teacher': live_teacher(cfg)})
            distiller.teacher.build(distiller, [None])
            distiller.teacher.check_classes(self.images.classes)
        return distiller.eval().to(get_device())

    @cached_property
    def _parameters(self) -> int | None:
        counts = [_parameters(one.model) for one in _network_teachers(self.model.teacher)]
        return sum(counts) if all(counts) and counts else None  # type: ignore[arg-type]

    def predict(self) -> Predict:
        """Return the function that answers images."""
        _ = self._parameters  # its first answer folds BatchNorm away
        return teacher_predict(self.model)

    def known(self) -> Sequence[int] | None:
        """Return the classes that it knows, None for all."""
        class_map = self.model.teacher.class_map
        return None if class_map is None else class_map.known

    def costs(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return parameters and operations for an image."""
        (image, _), teacher = self.batch(data), self.model.teacher
        parameters = self._parameters
        counts = [
            cost.operations(one.model, one.facts.forward, one.prepare(image))
            for one in _network_teachers(teacher)
        ]
        flops = [count for count, _ in counts if count]
        return {
            'parameters': parameters,
            'flops': sum(flops) if flops and len(flops) == len(counts) else None,
            'note': next((note for _, note in counts if note), ''),
        }

    def timed(self, data: dict[str, Any]) -> Callable[[], Any]:
        """Return the function whose time is taken: the teacher on a whole image, logits on its own grid."""
        _ = self._parameters  # its first answer folds BatchNorm away
        image, samples = self.batch(data)
        return _whole(lambda: self.model.teacher(image, samples), image.device)


def _whole(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return a function that runs another one to its end on a device, without gradients."""

    def whole() -> None:
        with torch.no_grad():
            run()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)

    return whole


def _windows(image: Tensor, test_cfg: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Return a window of an image (1, bands, H, W) and the number of windows, as mmseg slides them."""
    if test_cfg.get('mode') != 'slide':
        return image, 1
    count = 1
    for length, crop, stride in zip(image.shape[2:], test_cfg['crop_size'], test_cfg['stride'], strict=True):
        count *= max(length - crop + stride - 1, 0) // stride + 1
    height, width = test_cfg['crop_size']
    return image[:, :, :height, :width], count


def _datasets(cfg: Config) -> Iterable[Any]:
    """Yield the settings of the data sets that a config evaluates or trains on."""
    for key in ('val_dataloader', 'test_dataloader', 'train_dataloader'):
        if cfg.get(key) is not None:
            yield cfg[key].dataset


def _plain(name: str) -> str:
    """Return the name of a class in small letters, without spaces and hyphens."""
    return re.sub(r'[\s_-]', '', name).lower()


def live_teacher(cfg: Config) -> dict[str, Any]:
    """Return the settings of a distilled run's teacher that can answer any image.

    Of cached outputs that are those of the teacher beside the cache.

    Raises:
        ConfigError: The config names a cache alone.
    """
    settings = checked_teacher(copy.deepcopy(cfg.model.to_dict().get('teacher')))
    cache = settings.pop('cache', None)
    if cache is None:
        return settings
    if not settings.keys() - {'type', 'check_class_names', 'class_map'}:
        raise ConfigError(
            f'the config names the cached outputs {cache!r} alone, and not the network they are of'
        )
    try:
        kind = TeacherCache(cache).manifest.teacher.get('type', 'MMSegTeacher')
    except ConfigError:  # the cache is gone
        kind = 'MMSegTeacher'
    registered = MODELS.module_dict.get(kind)  # not by a dotted name, which would be imported
    if registered is None or not issubclass(registered, NetworkTeacher):
        raise ConfigError(f'the cached outputs {cache!r} are those of a {kind}, which is not known here')
    return {**settings, 'type': kind}


def _network_teachers(teacher: Teacher) -> list[Any]:
    """Return the networks of a teacher: itself, or the members of an ensemble."""
    members = teacher.teachers if isinstance(teacher, EnsembleTeacher) else [teacher]
    return [one for one in members if isinstance(one, NetworkTeacher)]


def _parameters(model: nn.Module) -> int | None:
    """Return the number of parameters, None where torch sees none, as in an ONNX file."""
    return cost.parameters(model) or None


def _texts(settings: Any) -> Iterable[str]:
    if isinstance(settings, dict):
        settings = settings.values()
    elif not isinstance(settings, list | tuple):
        settings = [settings]
    for value in settings:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list | tuple):
            yield from _texts(value)
