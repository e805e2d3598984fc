"""Teachers that were trained for other classes than the student's."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdd_seg.errors import ConfigError, similar_to

_CITYSCAPES_TO_CAMVID: dict[str, str | None] = {
    'sky': 'sky',
    'building': 'building',
    'wall': 'building',
    'pole': 'pole',
    'traffic light': 'sign',
    'traffic sign': 'sign',
    'road': 'road',
    'sidewalk': 'sidewalk',
    'vegetation': 'tree',
    'terrain': None,
    'fence': 'fence',
    'car': 'car',
    'truck': 'car',
    'bus': 'car',
    'train': None,
    'person': 'pedestrian',
    'rider': 'bicyclist',
    'bicycle': 'bicyclist',
    'motorcycle': None,
}

_ADE20K_TO_CITYSCAPES: dict[str, str | None] = {
    'road': 'road',
    'sidewalk': 'sidewalk',
    'building': 'building',
    'house': 'building',
    'skyscraper': 'building',
    'wall': 'wall',
    'fence': 'fence',
    'railing': 'fence',
    'pole': 'pole',
    'streetlight': 'pole',
    'traffic light': 'traffic light',
    'signboard': 'traffic sign',
    'tree': 'vegetation',
    'plant': 'vegetation',
    'palm': 'vegetation',
    'grass': 'terrain',
    'earth': 'terrain',
    'field': 'terrain',
    'sky': 'sky',
    'person': 'person',
    'car': 'car',
    'van': 'car',
    'truck': 'truck',
    'bus': 'bus',
    'minibike': 'motorcycle',
    'bicycle': 'bicycle',
}

# Terrain has no class in CamVid: it is dropped on the way.
_ADE20K_TO_CAMVID = {
    name: None if street is None else _CITYSCAPES_TO_CAMVID[street]
    for name, street in _ADE20K_TO_CITYSCAPES.items()
}

CLASS_MAPS: dict[str, dict[str, str | None]] = {
    'cityscapes_to_camvid': _CITYSCAPES_TO_CAMVID,
    'ade20k_to_cityscapes': _ADE20K_TO_CITYSCAPES,
    'ade20k_to_camvid': _ADE20K_TO_CAMVID,
}
"""Maps that ``class_map='NAME'`` names: a teacher's class → the student's, None for no class."""


class ClassMap:
    """Which of a teacher's classes stand for which of the student's.

    The probabilities of several classes that stand for one add up. Those of classes that stand for none are
    left out, and the others are scaled to a sum of 1. Classes of the student for which nothing stands are
    unknown to the teacher: they are left out of the student's map, too, wherever the two are compared.

    Args:
        names: A teacher's class → the student's, None for no class; or the name of one of
            :data:`CLASS_MAPS`.
        teacher: The teacher's classes, in the order of its logits.
        student: The student's classes, in the order of its logits.

    Attributes:
        known: Indices of the student's classes for which something stands, ascending; K of them.
        sizes: The number of classes of the student and of the teacher.

    Raises:
        ConfigError: A name is no class of its side, or one twice, or fewer than two classes of the student
            are known.
    """

    def __init__(
        self, names: Mapping[str, str | None] | str, teacher: Sequence[str], student: Sequence[str]
    ) -> None:
        own = {_plain(name): index for index, name in enumerate(teacher)}
        theirs = {_plain(name): index for index, name in enumerate(student)}
        sources: dict[int, list[int]] = {}
        seen: set[int] = set()
        for name, target in self.named(names).items():
            if _plain(name) not in own:
                raise ConfigError(_unknown(name, 'teacher', teacher))
            if own[_plain(name)] in seen:
                raise ConfigError(f'teacher.class_map names the class {name!r} of the teacher twice')
            seen.add(own[_plain(name)])
            if target is None:
                continue
            if _plain(target) not in theirs:
                raise ConfigError(_unknown(target, 'student', student))
            sources.setdefault(theirs[_plain(target)], []).append(own[_plain(name)])
        if len(sources) < 2:
            raise ConfigError(
                f'teacher.class_map leaves {len(sources)} of the {len(student)} classes of the student, and '
                'at least two are needed'
            )
        self.known = sorted(sources)
        self._sources = [sources[index] for index in self.known]
        self.sizes = len(student), len(teacher)
        self._unknown = [name for index, name in enumerate(student) if index not in sources]

    @staticmethod
    def named(names: Mapping[str, str | None] | str) -> Mapping[str, str | None]:
        """Return a map as a dict.

        Raises:
            ConfigError: No map of this name is shipped, or it is no dict.
        """
        if isinstance(names, str):
            if names not in CLASS_MAPS:
                raise ConfigError(
                    f'teacher.class_map: no map is called {names!r}, there are {", ".join(CLASS_MAPS)}.'
                    f'{similar_to(names, CLASS_MAPS)} Or give a dict: a '
                    "teacher's class → the student's"
                )
            return CLASS_MAPS[names]
        if not isinstance(names, Mapping):
            raise ConfigError(
                f"teacher.class_map must be a dict, a teacher's class → the student's, got {names!r}"
            )
        return names

    def teacher_logits(self, logits: Tensor) -> Tensor:
        """Return the teacher's logits (N, C_t, h, w) as logits of the K known classes, (N, K, h, w)."""
        if logits.shape[1] != self.sizes[1]:
            raise ConfigError(
                f'teacher.class_map needs one logit for each of the {self.sizes[1]} classes of the '
                f'teacher, which gives {logits.shape[1]}'
            )
        # exp(logsumexp) adds the probabilities; the common denominator of the softmax cancels.
        return torch.stack([logits[:, indices].logsumexp(1) for indices in self._sources], dim=1)

    def student_logits(self, logits: Tensor) -> Tensor:
        """Return the K known classes (N, K, H, W) of the student's logits (N, C_s, H, W)."""
        return logits if len(self.known) == self.sizes[0] else logits[:, self.known]

    def labels(self, label: Tensor, ignore_index: int) -> Tensor:
        """Return labels, (N, H, W) indices of the student's classes, as indices of the K known ones.

        Those of other classes become ``ignore_index``.

        Raises:
            ConfigError: ``ignore_index`` is the index of another class among the known ones.
        """
        if ignore_index in range(len(self.known)) and self.known[ignore_index] != ignore_index:
            raise ConfigError(
                f'teacher.class_map leaves {len(self.known)} classes, numbered from 0, and the ignored label '
                f'is {ignore_index}. Ignore another label, such as 255: ignore_index of the heads and of the '
                'data set, and data_preprocessor.seg_pad_val'
            )
        table = torch.full((self.sizes[0],), ignore_index, dtype=label.dtype, device=label.device)
        table[self.known] = torch.arange(len(self.known), dtype=label.dtype, device=label.device)
        is_class = (label >= 0) & (label < self.sizes[0]) & (label != ignore_index)
        return torch.where(is_class, table[label.clamp(0, self.sizes[0] - 1).long()], ignore_index)

    def describe(self) -> str:
        """Return a few words for the log: how many classes are mapped, and which are unknown."""
        used = sum(map(len, self._sources))
        text = f"{used} of the teacher's {self.sizes[1]} classes stand for {len(self.known)} of "
        text += f'{self.sizes[0]}'
        return text + (f'; unknown to it: {", ".join(self._unknown)}' if self._unknown else '')


def draft(teacher: Sequence[str], student: Sequence[str]) -> dict[str, str | None]:
    """Return the map to start from: equal names, and None for the others."""
    theirs = {_plain(name): name for name in student}
    return {name: theirs.get(_plain(name)) for name in teacher}


def fitting_map(teacher: Sequence[str], student: Sequence[str]) -> str | None:
    """Return the name of the shipped map for these classes, None if there is none."""
    own, theirs = {*map(_plain, teacher)}, {*map(_plain, student)}
    for name, names in CLASS_MAPS.items():
        targets = {_plain(target) for target in names.values() if target is not None}
        if own >= {*map(_plain, names)} and theirs >= targets:
            return name
    return None


def _plain(name: str) -> str:
    """Return a name by which spellings such as 'Traffic Light' and 'traffic_light' are the same."""
    return ' '.join(name.lower().replace('_', ' ').replace('-', ' ').split())


def _unknown(name: str, side: str, names: Sequence[str]) -> str:
    return (
        f'teacher.class_map: {name!r} is no class of the {side}, which has {", ".join(names)}.'
        f'{similar_to(name, names)}'
    )
