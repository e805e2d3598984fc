"""Write files whole or not at all.

Reason: mmengine writes checkpoints and mmcv writes images in place, so a kill or a full disk leaves half
a file under the final name.
Test: tests/runtime/upstream/test_atomic_files.py.
Goes when: mmengine's ``LocalBackend.put`` writes beside the file and moves.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mmengine
from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.io import backend_instances

from bdd_seg.errors import ConfigError


def write_atomically(path: str | Path, content: bytes | str, durable: bool = False) -> None:
    """Write a file beside its place, then move it there. Links and permissions stay as they are.

    Args:
        path: The file. Its folder must exist.
        content: Text is encoded in UTF-8.
        durable: Wait until the disk has it: a machine that goes down could keep the name and lose the
            content.

    Raises:
        OSError: It cannot be written. What was there before is still there.
    """
    path = Path(os.path.realpath(path))
    # Several processes may write one image. Checkpoints have one writer, and the next one writes over what a
    # kill left behind.
    beside = path.with_name(f'{path.name}.part' if durable else f'.{uuid.uuid4().hex}.part')
    try:
        with beside.open('wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, indented by one space, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=1))


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the names and contents of files, in their order, whatever folder they lie in."""
    listed = '\n'.join(f'{file.name} {file_digest(file)}' for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with :func:`write_atomically`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` to ``filepath``; devices and pipes are written to directly.

        Raises:
            ConfigError: It cannot be written, for want of space or of permission.
        """
        path = Path(os.path.realpath(filepath))
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # /dev/null, a pipe
                return super().put(obj, filepath)
            mmengine.mkdir_or_exist(path.parent)
            write_atomically(path, obj, durable=path.suffix == '.pth')
        except OSError as error:
            raise ConfigError(
                f'{str(path)!r} cannot be written: {error.strerror}. What was written before is '
                'whole: when that is mended, a training goes on with --resume'
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text as :meth:`put` writes bytes."""
        self.put(obj.encode(encoding), filepath)


def apply() -> None:
    """Make :class:`AtomicLocalBackend` mmengine's backend for local paths."""
    register_backend('local', AtomicLocalBackend, prefixes='', force=True)
    backend_instances.clear()  # of the backend registered before
