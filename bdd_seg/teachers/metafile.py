"""Published results and weights of mmseg's own configs, from its metafiles."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import mmseg
import yaml

_FOLDER = Path(mmseg.__file__).parent / '.mim/configs'


class Published(NamedTuple):
    """One entry of a metafile.

    Attributes:
        dataset: The data set on which it was evaluated.
        miou: In percent, at a single scale.
        weights: URL of the checkpoint, None where there is none.
    """

    dataset: str
    miou: float
    weights: str | None


@cache
def published(config: str) -> Published | None:
    """Return what mmseg's metafiles say of a config, None if they do not know it.

    Args:
        config: Its path or ``mmseg::FOLDER/NAME.py``. It is known by its file name.
    """
    name = Path(config.rpartition('::')[2]).stem
    for file in sorted(_FOLDER.glob('*/metafile.yaml')):
        text = file.read_text(encoding='utf-8')
        if f'{name}\n' not in text:
            continue
        for model in yaml.safe_load(text).get('Models') or ():
            results = model.get('Results') or {}
            if isinstance(results, list):  # on several data sets
                results = results[0]
            miou = (results.get('Metrics') or {}).get('mIoU')
            if model.get('Name') == name and miou is not None:
                return Published(str(results.get('Dataset')), float(miou), model.get('Weights'))
    return None
