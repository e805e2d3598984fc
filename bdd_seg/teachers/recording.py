"""A teacher's answers on disk, found by the content of the images."""

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import MessageHub, print_log
from rich.filesize import decimal
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_atomically, write_json

RESERVE = 2_000_000_000
"""Bytes that a recording leaves free on its disk."""

Compute = Callable[[Tensor], dict[str, Tensor]]


class Recording:
    """The answers of one teacher, one file an image.

    Trainings with one seed show their teacher the same crops, bit for bit. The first of them records its
    answers, the others replay them. A crop that is not recorded is answered by the teacher, so a recording
    may be incomplete, or made by a training that was killed.

    Answers are stored as bfloat16 where they are exact in it, as those of a network that runs in bfloat16
    are; else as float16. The training that records learns from the stored values, too, so that all trainings
    have the same teacher.

    Args:
        folder: May hold the recordings of several teachers.
        teacher: What tells this teacher's answers from those of another, as plain data.
    """

    def __init__(self, folder: str | Path, teacher: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(teacher, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / digest[:16]
        self._teacher = teacher
        self._is_announced = False
        self._is_full = False

    def answer(self, images: Tensor, taps: Collection[str], compute: Compute) -> dict[str, Tensor]:
        """Return tap name → (N, C, h, w) in the dtype of the images, from the recording where it has them.

        Args:
            images: (N, bands, H, W) as the teacher receives them.
            taps: Names of the wanted maps.
            compute: Called with those images whose answers are missing. Returns the maps.

        Raises:
            ConfigError: A value is not finite, or does not fit into float16; or a file cannot be written.
        """
        digests = image_digests(images)
        stored = [self._read_file(digest, taps) for digest in digests]
        missing = [i for i, one in enumerate(stored) if one is None]
        if missing:
            maps = compute(images[missing] if len(missing) < len(images) else images)
            for position, i in enumerate(missing):
                stored[i] = {tap: _checked(tap, compact(values[position])) for tap, values in maps.items()}
        found = [one for one in stored if one is not None]
        self._announce(found[0], len(missing), len(images))
        for i in missing:
            self._write(digests[i], found[i])
        return {tap: torch.stack([one[tap].to(images) for one in found]) for tap in taps}

    def _read_file(self, digest: str, taps: Collection[str] | None = None) -> dict[str, Tensor] | None:
        try:
            with safe_open(self._file(digest), framework='pt') as file:
                maps = {tap: file.get_tensor(tap) for tap in (file.keys() if taps is None else taps)}
                checksums = file.metadata()
        except (OSError, SafetensorError):
            return None
        intact = all(checksums.get(tap) == _checksum(value) for tap, value in maps.items())
        return maps if intact else None

    def _write(self, digest: str, maps: dict[str, Tensor]) -> None:
        """Write the maps of one image, unless the disk is nearly full."""
        file = self._file(digest)
        maps = {**(self._read_file(digest) or {}), **maps}  # the taps that other students compare
        checksums = {tap: _checksum(value) for tap, value in maps.items()}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < RESERVE:
                self._warn_once()
                return
            write_atomically(file, save(maps, metadata=checksums))
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f'teacher.record: {str(file)!r} cannot be written: {error}. Choose another folder, or train '
                'without record (in a study file record: false)'
            ) from error

    def _warn_once(self) -> None:
        if not self._is_full:
            print_log(
                f'The disk of {str(self.folder)!r} has less than {decimal(RESERVE)} left: nothing more is '
                'recorded, and the teacher goes on live',
                logger='current',
                level=logging.WARNING,
            )
        self._is_full = True

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / f'{digest}.safetensors'

    def _announce(self, maps: Mapping[str, Tensor], missing: int, images: int) -> None:
        """Log once where the first answers come from, and the space that a recording will take.

        Args:
            maps: Those of one image.
            missing: Number of images of the first batch that were not recorded.
            images: Number of images in the batch.
        """
        if self._is_announced:
            return
        self._is_announced = True
        if not missing:
            print_log(f'The teacher is replayed from {str(self.folder)!r}', logger='current')
            return
        each = sum(value.numel() * value.element_size() for value in maps.values())
        hub = MessageHub.get_current_instance()
        iterations = (hub.get_info('max_iters') or 0) - (hub.get_info('iter') or 0)
        whole = each * images * get_world_size() * max(iterations, 0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if is_main_process():
                write_json(self.folder / 'teacher.json', self._teacher)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise ConfigError(f'teacher.record: {str(self.folder)!r} cannot be written: {error}') from error
        print_log(
            f'The teacher is recorded in {str(self.folder)!r}: {decimal(each)} a crop, at most '
            f'{decimal(whole)} for the rest of this training, {decimal(free)} are free',
            logger='current',
        )


def image_digests(images: Tensor) -> list[str]:
    """Return a digest of the content of each image (N, bands, H, W), in hexadecimal."""
    images = images.detach().cpu().contiguous()
    kind = f'{images.dtype} {tuple(images.shape[1:])}'.encode()
    return [hashlib.sha256(kind + image.view(torch.uint8).numpy().tobytes()).hexdigest() for image in images]


def compact(value: Tensor) -> Tensor:
    """Return a tensor as bfloat16 if it is exact in it, else as float16, on the CPU."""
    exact = value.bfloat16()
    stored = exact if torch.equal(exact.to(value.dtype), value) else value.half()
    return stored.cpu().contiguous()


def _checked(tap: str, value: Tensor) -> Tensor:
    """Return a stored map.

    Raises:
        ConfigError: It has values that are not finite.
    """
    if not value.isfinite().all():
        raise ConfigError(
            f'teacher.record: {tap} has values that are not finite, or too large for float16. Train without '
            'record'
        )
    return value


def _checksum(value: Tensor) -> str:
    return str(zlib.crc32(value.contiguous().view(torch.uint8).numpy().tobytes()))
