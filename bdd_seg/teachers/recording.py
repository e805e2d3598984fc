"""A teacher's answers on disk, found by the content of the images."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
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

    def answer(self, images: Tensor, taps: Collection[str], compute: Compute) -> dict[str, Tensor]:
        """Return tap name → (N, C, h, w) in the dtype of the images, from the recording where it has them.

        Args:
            images: (N, bands, H, W) as the teacher receives them.
            taps: Names of the wanted maps.
            compute: Called with ``images`` where one of their answers is missing. Returns the maps.

        Raises:
            ConfigError: A value does not fit into float16, or the disk is full.
        """
        digests = image_digests(images)
        recorded = self._read(digests, taps)
        stored = recorded or {tap: [compact(one) for one in maps] for tap, maps in compute(images).items()}
        self._announce(stored, is_replayed=recorded is not None)
        if recorded is None:
            self._write(digests, stored)
        return {tap: torch.stack([one.to(images) for one in maps]) for tap, maps in stored.items()}

    def _read(self, digests: Sequence[str], taps: Collection[str]) -> dict[str, list[Tensor]] | None:
        """Return tap name → a map for each image, None if one of them is not recorded or is damaged."""
        maps: dict[str, list[Tensor]] = {tap: [] for tap in taps}
        for digest in digests:
            one = self._read_file(digest, taps)
            if one is None:
                return None
            for tap, value in one.items():
                maps[tap].append(value)
        return maps

    def _read_file(self, digest: str, taps: Collection[str] | None = None) -> dict[str, Tensor] | None:
        try:
            with safe_open(self._file(digest), framework='pt') as file:
                maps = {tap: file.get_tensor(tap) for tap in (file.keys() if taps is None else taps)}
                checksums = file.metadata()
        except (OSError, SafetensorError):
            return None
        intact = all(checksums.get(tap) == _checksum(value) for tap, value in maps.items())
        return maps if intact else None

    def _write(self, digests: Sequence[str], stored: Mapping[str, Sequence[Tensor]]) -> None:
        for i, digest in enumerate(digests):
            maps = {tap: values[i] for tap, values in stored.items()}
            for tap, value in maps.items():
                if not value.isfinite().all():
                    raise ConfigError(
                        f'teacher.record: {tap} has values that float16 cannot hold. Train without record'
                    )
            maps = {**(self._read_file(digest) or {}), **maps}  # the taps that other students compare
            checksums = {tap: _checksum(value) for tap, value in maps.items()}
            try:
                self._file(digest).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file(digest), save(maps, metadata=checksums))
            except (OSError, SafetensorError) as error:
                raise ConfigError(
                    f'teacher.record: {str(self._file(digest))!r} cannot be written: {error}. Make room, or '
                    'train without record; --resume goes on from the last checkpoint'
                ) from error

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / f'{digest}.safetensors'

    def _announce(self, stored: Mapping[str, Sequence[Tensor]], is_replayed: bool) -> None:
        """Log once where the first answers come from, and the space that a recording will take.

        Raises:
            ConfigError: The disk has less.
        """
        if self._is_announced:
            return
        self._is_announced = True
        if is_replayed:
            print_log(f'The teacher is replayed from {str(self.folder)!r}', logger='current')
            return
        batches = list(stored.values())
        each = sum(maps[0].numel() * maps[0].element_size() for maps in batches)
        hub = MessageHub.get_current_instance()
        iterations = (hub.get_info('max_iters') or 0) - (hub.get_info('iter') or 0)
        whole = each * len(batches[0]) * get_world_size() * max(iterations, 0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if is_main_process():
                write_json(self.folder / 'teacher.json', self._teacher)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise ConfigError(f'teacher.record: {str(self.folder)!r} cannot be written: {error}') from error
        space = f'{decimal(whole)} for the rest of this training, {decimal(free)} are free'
        print_log(
            f'The teacher is recorded in {str(self.folder)!r}: {decimal(each)} a crop, at most {space}',
            logger='current',
        )
        if whole > free:
            raise ConfigError(
                f'teacher.record: {str(self.folder)!r} may need {space}. Choose a folder on another disk, or '
                'let the data have FixedViews, whose recording stops growing'
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


def _checksum(value: Tensor) -> str:
    return str(zlib.crc32(value.contiguous().view(torch.uint8).numpy().tobytes()))
