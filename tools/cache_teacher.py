"""Run a teacher once over the whole training images and keep its outputs, to train without it.

Training reads them with tools/train.py CONFIG --cfg-options model.teacher.type=CachedTeacher
model.teacher.cache=FOLDER. An interrupted run goes on where it stopped; so does one after more images came.
"""

import argparse
import dataclasses
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.dist import all_gather_object, barrier, get_dist_info, init_dist, is_main_process
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, Subset

from bdd_seg.datasets.teacher_cache import CachedOutputs, Manifest, TeacherCache, file_digest
from bdd_seg.distillers import SegDistiller
from bdd_seg.engine import add_config_arguments, check_datasets, config_from, leaf_datasets
from bdd_seg.errors import ConfigError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--out', help='folder of the cache (default: WORK_DIR/teacher_cache)')
    parser.add_argument(
        '--taps', nargs='+', default=[], help='outputs to keep beside those the losses compare'
    )
    parser.add_argument('--workers', type=int, default=2, help='processes that load images (default: 2)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = config_from(args)
    init_default_scope('mmseg')
    MMLogger.get_instance('mmengine', log_level=logging.WARNING)
    if args.launcher != 'none' and get_device() == 'cpu':
        torch.distributed.init_process_group('gloo')  # mmengine's own insists on a GPU
    elif args.launcher != 'none':
        init_dist(args.launcher)
    check_datasets(cfg, 'train_dataloader')
    model = build_model(cfg, args.taps)
    cache = TeacherCache(args.out or Path(cfg.work_dir) / 'teacher_cache')
    images = Images(cfg)
    previous = check_previous(cache, model)
    cache.folder.mkdir(parents=True, exist_ok=True)
    write_outputs(cache, model, images, previous, args.workers)
    if torch.distributed.is_initialized():
        barrier()
        torch.distributed.destroy_process_group()


class Images(Dataset):
    """The whole training images, each once, transformed as the validation images are."""

    def __init__(self, cfg: Config) -> None:
        validation, _ = next(leaf_datasets(cfg.val_dataloader.dataset, 'val_dataloader.dataset'))
        pipeline = [dict(type='FollowGeometry', transforms=validation['pipeline'])]
        self._samples: dict[str, tuple[Any, int]] = {}
        for settings, _ in leaf_datasets(cfg.train_dataloader.dataset, 'train_dataloader.dataset'):
            dataset = DATASETS.build({**settings, 'pipeline': pipeline, 'test_mode': True})
            for i in range(len(dataset)):
                self._samples[dataset.get_data_info(i)['img_path']] = dataset, i
        self.paths = list(self._samples)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> dict[str, Any]:
        dataset, position = self._samples[self.paths[i]]
        return dataset[position]


def build_model(cfg: Config, taps: list[str]) -> SegDistiller:
    """The config's student, for its data preprocessor, with the live teacher."""
    teacher = cfg.model.get('teacher')
    if teacher is None:
        raise ConfigError(f'{cfg.filename} has no model.teacher: give the config of a distillation')
    live = {key: value for key, value in teacher.items() if key not in ('type', 'cache')}
    model = MODELS.build({**cfg.model, 'teacher': live})
    wanted = [loss.get('teacher_tap') for loss in cfg.model.distill_losses]
    model.teacher.build(model, [*wanted, *taps])
    return model.to(get_device())


def check_previous(cache: TeacherCache, model: SegDistiller) -> dict[str, dict[str, Any]]:
    """What an earlier run has finished, if it was of the same teacher."""
    if not cache.has_manifest():
        return {}
    earlier, now = cache.manifest.teacher, model.teacher.fingerprint()
    for key, value in now.items():
        if earlier.get(key) != value:
            raise ConfigError(
                f'{str(cache.folder)!r} holds outputs of another teacher: its {key} was {earlier.get(key)}, '
                f'is now {value}. Delete that folder, or choose another --out'
            )
    if set(cache.manifest.strides) != set(model.teacher.taps):
        raise ConfigError(
            f'{str(cache.folder)!r} holds {", ".join(cache.manifest.strides)}, asked for is '
            f'{", ".join(model.teacher.taps)}. Choose another --out'
        )
    return cache.manifest.images


def write_outputs(
    cache: TeacherCache,
    model: SegDistiller,
    images: Images,
    previous: dict[str, dict[str, Any]],
    workers: int,
) -> None:
    """Write what is missing, each process its share, and then the complete manifest."""
    rank, processes = get_dist_info()
    entries: dict[str, dict[str, Any]] = {}
    todo = []
    silent = not is_main_process()
    for i in track(range(rank, len(images), processes), 'Looking for what is there', disable=silent):
        digest = cache.digest(images.paths[i])
        entry = finished(cache, digest, previous.get(digest))
        if entry is None:
            todo.append(i)
        else:
            entries[digest] = {**entry, 'path': images.paths[i]}
    missing = sum(all_gather_object(len(todo)))
    loader = DataLoader(Subset(images, todo), num_workers=workers, collate_fn=pseudo_collate)
    manifest = cache.manifest if cache.has_manifest() else None
    barrier()  # nobody writes before everybody has looked
    for count, data in enumerate(track(loader, 'Running the teacher', total=len(todo), disable=silent)):
        path, outputs = run(model, data)
        if count == 0:
            announce(cache.folder, outputs, missing, len(images))
            if manifest is None:
                manifest = describe(model, outputs)
                if is_main_process():
                    cache.write_manifest(manifest)
        digest = cache.digest(path)
        cache.write(digest, outputs)
        sha256 = file_digest(cache.file_of(digest))
        entries[digest] = {'path': path, 'size': list(outputs.loaded_shape), 'sha256': sha256}
    shares = all_gather_object(entries)
    everything = {digest: entry for share in shares for digest, entry in share.items()}
    if is_main_process():
        assert manifest is not None  # the first image is this process's
        cache.write_manifest(dataclasses.replace(manifest, images={**previous, **everything}))
        print(f'{cache.folder}: {missing} images run, {len(images) - missing} were there already')


def finished(cache: TeacherCache, digest: str, known: dict[str, Any] | None) -> dict[str, Any] | None:
    """The manifest's entry for outputs that are there and whole, None for others."""
    file = cache.file_of(digest)
    if not file.exists():
        return None
    sha256 = file_digest(file)
    if known is not None:
        return known if known['sha256'] == sha256 else None
    if not cache.is_whole(digest):
        return None
    return {'size': list(cache.read_file(digest).loaded_shape), 'sha256': sha256}


def run(model: SegDistiller, data: dict[str, Any]) -> tuple[str, CachedOutputs]:
    """The teacher's outputs for one image, and that image's path."""
    with torch.no_grad():
        inputs = model.data_preprocessor(data, training=False)['inputs']
    outputs, _ = model.teacher(inputs)
    (sample,) = data['data_samples']
    return sample.img_path, CachedOutputs(
        {tap: output[0].cpu() for tap, output in outputs.items()},
        sample.geometry,
        tuple(inputs.shape[2:]),
        tuple(sample.loaded_shape),
    )


def describe(model: SegDistiller, outputs: CachedOutputs) -> Manifest:
    teacher = model.teacher
    strides = {
        tap: [
            round(length / cells) for length, cells in zip(outputs.input_shape, output.shape[1:], strict=True)
        ]
        for tap, output in outputs.outputs.items()
    }
    return Manifest(
        teacher=teacher.fingerprint(),
        num_classes=teacher.model.out_channels,
        class_names=None if teacher.class_names is None else list(teacher.class_names),
        logits_tap=teacher.logits_tap,
        strides=strides,
        align_corners=teacher.model.align_corners,
    )


def announce(folder: Path, outputs: CachedOutputs, missing: int, images: int) -> None:
    """Say how much will be written, from the first image.

    Raises:
        ConfigError: The disk has less than that.
    """
    each = sum(2 * output.numel() for output in outputs.outputs.values())
    free = shutil.disk_usage(folder).free
    if is_main_process():
        shapes = ', '.join(f'{tap} {tuple(output.shape)}' for tap, output in outputs.outputs.items())
        print(
            f'{missing} of {images} images to do, {shapes} in float16: {each / 1e6:.2f} MB each, about '
            f'{missing * each / 1e9:.2f} GB in {folder}, where {free / 1e9:.0f} GB are free'
        )
    if missing * each > free:
        raise ConfigError(
            f'{str(folder)!r} has {free / 1e9:.1f} GB free, about {missing * each / 1e9:.1f} GB are needed. '
            'Choose another --out, or fewer --taps'
        )


if __name__ == '__main__':
    try:
        main()
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on from here')
