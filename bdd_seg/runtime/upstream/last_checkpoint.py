"""Find the checkpoint to resume from.

Reason: mmengine writes its note ``last_checkpoint`` in place, puts an absolute path into it, and trusts it. A
kill leaves an empty note or half a checkpoint, and a work dir that was moved is not found again.
Test: tests/runtime/upstream/test_last_checkpoint.py.
Goes when: mmengine's ``find_latest_checkpoint`` reads what it returns, and looks beside its note.
"""

from pathlib import Path

from mmengine.logging import print_log

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint


def latest_checkpoint(work_dir: str | Path) -> str | Path | None:
    """Return the newest checkpoint in a work dir that can be read.

    It is the one that mmengine's note ``last_checkpoint`` names, even if the folder has moved since. If the
    note or its checkpoint is cut short or missing, it is the youngest other one, and the log says so.

    Args:
        work_dir: The folder, which need not exist.

    Returns:
        Its path, or None where training has saved no checkpoint. A name that is no local file, such as
        ``s3://...`` or a folder of DeepSpeed's, is returned as noted.

    Raises:
        ConfigError: There are checkpoints, and none can be read; or there is none, but one was noted.
    """
    folder = Path(work_dir)
    note = folder / 'last_checkpoint'
    text = note.read_text().strip() if note.is_file() else ''
    noted = Path(text)
    if '://' in text or (text and noted.is_dir()):
        return text
    others = sorted(
        [*folder.glob('iter_*.pth'), *folder.glob('epoch_*.pth')], key=lambda path: -path.stat().st_mtime
    )
    problems = []
    for path in dict.fromkeys([folder / noted.name, noted, *others]):  # each once, in this order
        if path.suffix and path.is_file():
            try:
                load_checkpoint(path)
            except ConfigError as error:
                problems.append(str(error))
                print_log(f'Passed over: {error}')
            else:
                return path
    if text and not problems:
        problems.append(f'{str(note)!r} names {text!r}, which is gone. To begin anew, remove the note')
    if problems:
        raise ConfigError(f'nothing to resume from in {str(folder)!r}: {problems[0]}')
    return None
