"""The data pipeline that brings cached outputs along with each crop."""

from collections.abc import Sequence

import numpy as np
from mmengine.config import Config
from mmseg.registry import TRANSFORMS

from bdd_seg.distill.taps import named_tap
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import leaf_datasets
from bdd_seg.teachers.cached.geometry import FollowGeometry
from bdd_seg.teachers.cached.store import TeacherCache


@TRANSFORMS.register_module()
class ReadTeacherCache(FollowGeometry):
    """A data pipeline whose samples carry a teacher's cached outputs.

    Beside the metainfo of :class:`FollowGeometry`, a sample gets the outputs for its whole image as fields
    ``teacher/TAP``, each (C, h, w) float16, and as metainfo ``teacher_cache``, their folder,
    ``teacher_geometry``, which takes pixels of the transformed image to pixels of the teacher's input, and
    ``teacher_input_shape``, (H, W) of that input.

    Args:
        cache: Folder of the cache.
        transforms: The pipeline, from loading to packing.
        taps: Which of the cached outputs to bring along; all by default.

    Raises:
        ConfigError: While it runs: an image is not in the cache, or its file is missing or damaged, or
            a transform that cannot be followed.
    """

    def __init__(self, cache: str, transforms: list[dict], taps: Sequence[str] | None = None) -> None:
        super().__init__(transforms)
        self.cache = TeacherCache(cache)
        self.taps = taps

    def transform(self, results: dict) -> dict | None:
        packed = super().transform(results)
        if packed is None:
            return None
        sample = packed['data_samples']
        entry = self.cache.read(sample.img_path, self.taps)
        if sample.loaded_shape != entry.loaded_shape:
            raise ConfigError(
                f'image {sample.img_path!r} was loaded as {entry.loaded_shape} pixels when the cache was '
                f'made, now as {sample.loaded_shape}'
            )
        sample.set_metainfo(
            {
                'teacher_cache': str(self.cache.folder),
                'teacher_geometry': np.linalg.inv(entry.geometry) @ sample.geometry,
                'teacher_input_shape': entry.input_shape,
            }
        )
        for tap, output in entry.outputs.items():
            sample.set_field(output, f'teacher/{tap}')
        return packed


def read_teacher_cache(cfg: Config) -> None:
    """Let the training data of a config bring along the outputs that its ``CachedTeacher`` answers with.

    Wraps the pipelines of the training data sets in :class:`ReadTeacherCache`. Does nothing where the
    config has no ``CachedTeacher``.

    Args:
        cfg: The whole config, changed in place.

    Raises:
        ConfigError: There is no such cache, or files of it are missing or cut.
    """
    teacher = cfg.model.get('teacher') or {}
    if not isinstance(teacher, dict) or teacher.get('type') != 'CachedTeacher':
        return
    if 'cache' not in teacher:
        raise ConfigError(
            'CachedTeacher needs model.teacher.cache: the folder that tools/cache_teacher.py wrote'
        )
    cache = str(teacher['cache'])
    manifest = TeacherCache(cache).manifest
    TeacherCache(cache).check_files()
    losses = cfg.model.get('distill_losses', [])
    wanted = {named_tap(loss.get('teacher_tap'), manifest.logits_tap) for loss in losses}
    taps = sorted((wanted | {manifest.logits_tap}) & manifest.strides.keys())
    for settings, _ in leaf_datasets(cfg.train_dataloader.dataset, 'train_dataloader.dataset'):
        pipeline = settings.get('pipeline')
        if pipeline is None:
            raise ConfigError(
                'a training data set gives no pipeline, which brings the cached outputs along. Give it one, '
                'or use a live teacher'
            )
        if pipeline and pipeline[0]['type'] == 'ReadTeacherCache':  # the config that an earlier run dumped
            pipeline = pipeline[0]['transforms']
        settings['pipeline'] = [dict(type='ReadTeacherCache', cache=cache, taps=taps, transforms=pipeline)]
