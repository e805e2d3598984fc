"""A teacher's outputs for whole images, on disk.

A cache is a folder with a ``manifest.json`` and one safetensors file an image, which is found by the
content of the image: the data may move, and a changed image is noticed.
"""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.fileio import get
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import file_digest, write_atomically, write_json

_MANIFEST = 'manifest.json'
_VERSION = 1


@dataclass
class Manifest:
    """The contents of a cache and their origin.

    Attributes:
        teacher: The teacher's fingerprint, as :meth:`NetworkTeacher.fingerprint` gives it.
        num_classes: How many classes it predicts, None for a network without classes.
        class_names: Their names, where its checkpoint tells.
        logits_tap: The tap that holds the logits, empty if there are none.
        strides: Tap name → input pixels per output cell, (vertical, horizontal).
        align_corners: How its head relates output cells to input pixels.
        pipeline: The transforms that made its input of an image file.
        images: SHA-256 of an image file → its ``path`` when it was read, its ``size`` (H, W), and of its
            outputs' file the ``sha256`` and the length in ``bytes``. Empty until the cache is complete.
        version: Of this format.
    """

    teacher: dict[str, Any]
    num_classes: int | None
    class_names: list[str] | None
    logits_tap: str
    strides: dict[str, list[int]]
    align_corners: bool
    pipeline: list[dict[str, Any]]
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = _VERSION


@dataclass
class CachedOutputs:
    """One image's entry.

    Attributes:
        outputs: Tap name → (C, h, w) float16.
        geometry: (3, 3) float64, from pixels of the teacher's input to pixels of the loaded image.
        input_shape: (H, W) of the teacher's input.
        loaded_shape: (H, W) of the image as it was loaded.
    """

    outputs: dict[str, Tensor]
    geometry: np.ndarray
    input_shape: tuple[int, int]
    loaded_shape: tuple[int, int]


class TeacherCache:
    """The files of a cache.

    Args:
        folder: The folder that holds them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest: Manifest | None = None
        self._digests: dict[str, str] = {}  # of images that this process has met
        self._intact: set[str] = set()  # files whose content this process has verified

    @property
    def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            ConfigError: There is none, or it cannot be read.
        """
        if self._manifest is None:
            self._manifest = self._read_manifest()
        return self._manifest

    def has_manifest(self) -> bool:
        """Return whether a manifest was written."""
        return (self.folder / _MANIFEST).exists()

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _MANIFEST, asdict(manifest))
        self._manifest = manifest

    def file_of(self, digest: str) -> Path:
        """Return the path of the outputs for the image whose content has this SHA-256."""
        return self.folder / f'{digest}.safetensors'

    def digest(self, img_path: str) -> str:
        """Return the SHA-256 of an image file, computed once in each process."""
        if img_path not in self._digests:
            self._digests[img_path] = hashlib.sha256(get(img_path)).hexdigest()
        return self._digests[img_path]

    def write(self, digest: str, entry: CachedOutputs) -> None:
        """Write one image's outputs, whole or not at all.

        Raises:
            ConfigError: A value does not fit into float16.
        """
        outputs = {tap: output.half().contiguous() for tap, output in entry.outputs.items()}
        for tap, output in outputs.items():
            if not output.isfinite().all():
                raise ConfigError(f'{tap} has values that float16 cannot hold, so it cannot be cached')
        geometry = {
            'geometry': entry.geometry.tolist(),
            'input_shape': entry.input_shape,
            'loaded_shape': entry.loaded_shape,
        }
        try:
            # Not by save_file, whose files nobody else may read, whatever the umask.
            write_atomically(self.file_of(digest), save(outputs, metadata={'bdd_seg': json.dumps(geometry)}))
        except (OSError, SafetensorError) as error:
            raise ConfigError(f'{str(self.file_of(digest))!r} cannot be written: {error}') from error

    def read(self, img_path: str, taps: Collection[str] | None = None) -> CachedOutputs:
        """Read the outputs for an image: of the given taps, or of all.

        Raises:
            ConfigError: The image is not in the cache, or its file is missing or damaged.
        """
        digest = self.digest(img_path)
        known = self.manifest.images.get(digest)
        if known is None:
            raise ConfigError(
                f'image {img_path!r} is not in the cache {str(self.folder)!r}, which holds '
                f'{len(self.manifest.images)} others: it was changed, or the cache was made from other data. '
                'Run tools/cache_teacher.py again'
            )
        file = self.file_of(digest)
        if digest not in self._intact:
            where = f'cached outputs {str(file)!r} of {img_path!r}'
            try:
                intact = file_digest(file) == known['sha256']
            except FileNotFoundError as error:
                raise ConfigError(f'{where} are missing; {_RENEW}') from error
            except OSError as error:
                raise ConfigError(f'{where} cannot be read: {error.strerror}') from error
            if not intact:
                raise ConfigError(f'{where} are damaged; {_RENEW}')
            self._intact.add(digest)
        return self.read_file(digest, taps)

    def read_file(self, digest: str, taps: Collection[str] | None = None) -> CachedOutputs:
        """Read a file without a look at the manifest.

        Raises:
            SafetensorError, OSError, KeyError, ValueError: It is not there, or cannot be read.
        """
        with safe_open(self.file_of(digest), framework='pt') as file:
            outputs = {tap: file.get_tensor(tap) for tap in (file.keys() if taps is None else taps)}
            told = json.loads(file.metadata()['bdd_seg'])
        return CachedOutputs(
            outputs, np.array(told['geometry']), tuple(told['input_shape']), tuple(told['loaded_shape'])
        )

    def faults(self) -> dict[str, str]:
        """Return what is wrong with files that the manifest names, by the digests of their images.

        Only names and lengths are compared here; :meth:`read` compares the content.
        """
        with os.scandir(self.folder) as files:
            lengths = {file.name: file.stat().st_size for file in files}
        faults = {}
        for digest, entry in self.manifest.images.items():
            length = lengths.get(self.file_of(digest).name)
            if length is None:
                faults[digest] = 'is missing'
            elif length != entry['bytes']:
                faults[digest] = f'has {length} bytes instead of {entry["bytes"]}'
        return faults

    def check_files(self) -> None:
        """Check that all files are there, and as long as they were written.

        Raises:
            ConfigError: One is not.
        """
        images, faults = self.manifest.images, self.faults()
        if faults:
            digest, fault = next(iter(faults.items()))
            raise ConfigError(
                f'{len(faults)} of {len(images)} files of the cache {str(self.folder)!r} are missing or cut, '
                f'the first: {self.file_of(digest).name} of {images[digest].get("path")!r} {fault}; {_RENEW}'
            )

    def is_whole(self, digest: str) -> bool:
        """Return whether a file is there and can be read."""
        try:
            self.read_file(digest)
        except (SafetensorError, OSError, KeyError, ValueError):
            return False
        return True

    def _read_manifest(self) -> Manifest:
        path = self.folder / _MANIFEST
        if not path.is_file():
            raise ConfigError(
                f'{str(self.folder)!r} is no cache of a teacher (no {_MANIFEST} in it). '
                'Make one: python tools/cache_teacher.py CONFIG --out FOLDER'
            )
        try:
            content = json.loads(path.read_text())
            version = content['version']
            if version == _VERSION:
                return Manifest(**content)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f'{str(path)!r} cannot be read ({error}); delete the folder, make it again'
            ) from error
        raise ConfigError(
            f'{str(path)!r} is of format {version}, this version reads {_VERSION}; make it again'
        )


_RENEW = 'run tools/cache_teacher.py again, it makes what is missing'
