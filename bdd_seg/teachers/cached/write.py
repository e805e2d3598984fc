"""Run a teacher once over the whole training images, and write its outputs into a cache."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.dist import all_gather_object, barrier, get_dist_info, is_main_process
from mmseg.registry import DATASETS, MODELS
from rich.filesize import decimal
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, Subset

from bdd_seg.distill.segmentor import SegDistiller
from bdd_seg.distill.settings import checked_teacher
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import name_files, without_checks
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.runtime.upstream.configs import leaf_datasets
from bdd_seg.teachers.cached.store import CachedOutputs, Manifest, TeacherCache
from bdd_seg.teachers.network import NetworkTeacher


class Images(Dataset):
    """The whole training images, each once, transformed as the validation images are.

    Args:
        cfg: The whole config.

    Raises:
        ConfigError: There is no training image.
    """

    def __init__(self, cfg: Config) -> None:
        validation, _ = next(leaf_datasets(cfg.val_dataloader.dataset, 'val_dataloader.dataset'))
        self.transforms = without_checks(validation['pipeline'])
        pipeline = [dict(type='FollowGeometry', transforms=name_files(self.transforms))]
        self._samples: dict[str, tuple[Any, int]] = {}
        for settings, _ in leaf_datasets(cfg.train_dataloader.dataset, 'train_dataloader.dataset'):
            dataset = DATASETS.build({**settings, 'pipeline': pipeline, 'test_mode': True})
            for i in range(len(dataset)):
                self._samples[dataset.get_data_info(i)['img_path']] = dataset, i
        self.paths = list(self._samples)
        if not self.paths:
            raise ConfigError(f'{cfg.filename}: there is no training image')

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> dict[str, Any]:
        dataset, position = self._samples[self.paths[i]]
        return dataset[position]


def build_model(cfg: Config, taps: Sequence[str]) -> SegDistiller:
    """Build the config's student, for its data preprocessor, with the live teacher.

    Args:
        cfg: The whole config of a distillation.
        taps: Outputs to keep beside those that the losses compare.

    Raises:
        ConfigError: The config has no teacher, or the teacher cannot be built.
    """
    if cfg.model.get('teacher') is None:
        raise ConfigError(f'{cfg.filename} has no model.teacher: give the config of a distillation')
    live = {
        key: value
        for key, value in checked_teacher(cfg.model.teacher).items()
        if key not in ('cache', 'record')
    }
    if live['type'] == 'CachedTeacher':
        if 'config' not in live:
            raise ConfigError(
                f'{cfg.filename}: its teacher is a cache. Give the config with the live teacher'
            )
        del live['type']
    model = MODELS.build({**cfg.model, 'teacher': live})
    if not isinstance(model.teacher, NetworkTeacher):
        raise ConfigError(
            f'outputs of a {type(model.teacher).__name__} cannot be cached, only of a teacher that runs one '
            'network'
        )
    wanted = [loss.get('teacher_tap') for loss in cfg.model.distill_losses]
    model.teacher.build(model, [*wanted, *taps])
    return model.to(get_device())


def describe(model: SegDistiller, images: Images) -> Manifest:
    """Return the manifest of a cache that has no image yet."""
    teacher, side = model.teacher, 256
    bands = images[0]['inputs'].shape[0]
    maps = teacher(torch.randn(1, bands, side, side, device=get_device())).maps
    transforms = [
        *images.transforms,
        {'type': 'SegDataPreProcessor', 'test_cfg': model.data_preprocessor.test_cfg},
    ]
    return Manifest(
        teacher=teacher.fingerprint(),
        num_classes=teacher.facts.num_classes,
        class_names=None if teacher.class_names is None else list(teacher.class_names),
        logits_tap=teacher.logits_tap,
        strides={tap: [max(side // cells, 1) for cells in output.shape[2:]] for tap, output in maps.items()},
        align_corners=teacher.facts.align_corners,
        pipeline=json.loads(json.dumps(transforms, default=str)),
    )


def open_cache(cache: TeacherCache, fresh: Manifest) -> Manifest:
    """Return the manifest of an earlier run that made the same or more, or write and return the fresh one.

    From here on a folder's files belong to its manifest.

    Raises:
        ConfigError: The folder holds something else, or cannot be written.
    """
    barrier()
    found = cache.has_manifest()
    barrier()  # nobody writes before everybody has looked
    if not found:
        if is_main_process():
            try:
                cache.folder.mkdir(parents=True, exist_ok=True)
                for leftover in [*cache.folder.glob('*.safetensors'), *cache.folder.glob('*.part')]:
                    leftover.unlink()
                cache.write_manifest(fresh)
            except OSError as error:
                raise ConfigError(f'{str(cache.folder)!r} cannot be written: {error}') from error
        return fresh
    _check_same_source(cache, fresh)
    return cache.manifest


def _check_same_source(cache: TeacherCache, fresh: Manifest) -> None:
    """Check that a folder holds the outputs of this teacher for this pipeline, of all these taps."""
    earlier = cache.manifest
    for what, was, now in [
        *(
            (key, earlier.teacher.get(key), fresh.teacher.get(key))
            for key in sorted({*earlier.teacher, *fresh.teacher})
        ),
        ('pipeline', earlier.pipeline, fresh.pipeline),
    ]:
        if was != now:
            raise ConfigError(
                f'{str(cache.folder)!r} holds something else: its {what} was {was}, is now {now}. '
                'Delete that folder, or choose another --out'
            )
    if lacking := fresh.strides.keys() - earlier.strides.keys():
        raise ConfigError(
            f'{str(cache.folder)!r} holds {", ".join(sorted(earlier.strides))}, not '
            f'{", ".join(sorted(lacking))}, and a cache cannot be extended. Delete that folder, or choose '
            f'another --out, with --taps {" ".join(sorted({*earlier.strides, *lacking}))}'
        )


def write_outputs(
    cache: TeacherCache, manifest: Manifest, model: SegDistiller, images: Images, workers: int
) -> None:
    """Write the missing outputs, each process its share, and then the complete manifest.

    Raises:
        ConfigError: The disk has too little space, or a value does not fit into float16.
    """
    rank, processes = get_dist_info()
    silent = not is_main_process()
    found: dict[str, dict[str, Any]] = {}
    missing = []
    for i in track(range(rank, len(images), processes), 'Looking for finished outputs', disable=silent):
        digest = cache.digest(images.paths[i])
        entry = finished(cache, digest, manifest.images.get(digest))
        if entry is None:
            missing.append(i)
        else:
            found[digest] = {**entry, 'path': images.paths[i]}
    todo = sorted(i for share in all_gather_object(missing) for i in share)
    loader = DataLoader(Subset(images, todo[rank::processes]), num_workers=workers, collate_fn=pseudo_collate)
    for count, data in enumerate(track(loader, 'Running the teacher', disable=silent)):
        path, outputs = run(model, data)
        if count == 0:
            announce(cache.folder, outputs, len(todo), len(images))
        digest = cache.digest(path)
        cache.write(digest, outputs)
        found[digest] = {'path': path, **entry_of(cache.file_of(digest), outputs)}
    shares = all_gather_object(found)
    everything = {digest: entry for share in shares for digest, entry in share.items()}
    if is_main_process():
        # Earlier runs may have written outputs of images that these data sets lack. Nothing makes those anew:
        # if their files are gone, forget them.
        gone = cache.faults()
        earlier = {digest: entry for digest, entry in manifest.images.items() if digest not in gone}
        cache.write_manifest(dataclasses.replace(manifest, images={**earlier, **everything}))
        print(f'{cache.folder}: {len(todo)} images run, {len(images) - len(todo)} were there already')


def finished(cache: TeacherCache, digest: str, known: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the manifest's entry for outputs that are there and whole, None for others."""
    file = cache.file_of(digest)
    if not file.exists():
        return None
    if known is not None:
        return known if known['sha256'] == file_digest(file) else None
    return entry_of(file, cache.read_file(digest)) if cache.is_whole(digest) else None


def entry_of(file: Path, outputs: CachedOutputs) -> dict[str, Any]:
    """Return the manifest's entry for an image's outputs in this file, less the image's path."""
    return {
        'size': list(outputs.loaded_shape),
        'sha256': file_digest(file),
        'bytes': file.stat().st_size,
    }


def run(model: SegDistiller, data: dict[str, Any]) -> tuple[str, CachedOutputs]:
    """Return the path of one image, and the teacher's outputs for it."""
    with torch.no_grad():
        inputs = model.data_preprocessor(data, training=False)['inputs']
    maps = model.teacher(inputs).maps
    (sample,) = data['data_samples']
    return sample.img_path, CachedOutputs(
        {tap: output[0].cpu() for tap, output in maps.items()},
        sample.geometry,
        tuple(inputs.shape[2:]),
        tuple(sample.loaded_shape),
    )


def announce(folder: Path, outputs: CachedOutputs, missing: int, images: int) -> None:
    """Print how much will be written, judged by the first image.

    Raises:
        ConfigError: The disk has less space than that.
    """
    each = sum(2 * output.numel() for output in outputs.outputs.values())
    free = shutil.disk_usage(folder).free
    if is_main_process():
        shapes = ', '.join(f'{tap} {tuple(output.shape)}' for tap, output in outputs.outputs.items())
        print(
            f'{missing} of {images} images to do, {shapes} in float16: {decimal(round(each))} each, about '
            f'{decimal(round(missing * each))} in {folder}, where {decimal(free)} are free'
        )
    if missing * each > free:
        raise ConfigError(
            f'{str(folder)!r} has {decimal(free)} free, about {decimal(round(missing * each))} are needed. '
            'Choose another --out, or fewer --taps'
        )
