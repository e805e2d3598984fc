import os
import shutil
import uuid
from pathlib import Path

import mmengine
from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.io import backend_instances

from bdd_seg.errors import ConfigError


@register_backend('local', prefixes='', force=True)
class WholeFileBackend(LocalBackend):
    """mmengine's local files, but written whole or not at all.

    What mmengine and mmcv save through their file backends comes here, checkpoints above all. A process
    killed while it writes, or a full disk, leaves what was there before.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` beside ``filepath``, then move it there. Links, permissions and devices stay.

        Raises:
            ConfigError: It cannot be written, for want of space or of permission.
        """
        path = Path(os.path.realpath(filepath))
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # /dev/null, a pipe
                return super().put(obj, filepath)
            mmengine.mkdir_or_exist(path.parent)
            self._replace(obj, path)
        except OSError as error:
            raise ConfigError(
                f'{str(path)!r} cannot be written: {error.strerror}. What was written before is '
                'whole: when that is mended, a training goes on with --resume'
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)

    def _replace(self, obj: bytes, path: Path) -> None:
        checkpoint = path.suffix == '.pth'
        # Images may be written by several processes at once. Checkpoints are not, and what a kill leaves of
        # one is written over when the resumed training comes to it again.
        beside = path.with_name(f'{path.name}.part' if checkpoint else f'.{uuid.uuid4().hex}.part')
        try:
            with beside.open('wb') as file:
                file.write(obj)
                if checkpoint:  # a machine that goes down could keep the name and lose the content
                    file.flush()
                    os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, beside)
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


backend_instances.clear()  # of the backend that was registered before
