import os
from pathlib import Path

import mmengine
from mmengine.fileio import LocalBackend, register_backend

from bdd_seg.errors import ConfigError


@register_backend('local', prefixes='', force=True)
class WholeFileBackend(LocalBackend):
    """mmengine's local files, but written whole or not at all.

    All that mmengine and mmcv save through their file backends comes here, checkpoints above all. A process
    killed while it writes, or a full disk, leaves what was there before.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` beside ``filepath``, then move it there.

        Raises:
            ConfigError: It cannot be written, for want of space or of permission.
        """
        path = Path(filepath)
        beside = path.with_name(f'{path.name}.part')
        try:
            mmengine.mkdir_or_exist(path.parent)
            try:
                with beside.open('wb') as file:
                    file.write(obj)
                    file.flush()
                    os.fsync(
                        file.fileno()
                    )  # a machine that goes down could keep the name and lose the content
                beside.replace(path)
            except OSError:
                beside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ConfigError(
                f'{str(path)!r} cannot be written: {error.strerror}. What was written before is '
                'whole: when that is mended, a training goes on with --resume'
            ) from error
