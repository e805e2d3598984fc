"""Registries of the scope ``bdd_seg``, in which mmengine builds what a config inherits by ``bdd_seg::…``.

They hold nothing themselves. What they are asked for is found in mmseg's registries, their parents, where
this package registers all that it has. mmengine imports this module by its name.
"""

from mmengine.registry import Registry
from mmseg import registry

_PARENTS = [node for node in vars(registry).values() if isinstance(node, Registry)]

REGISTRIES = [
    Registry(parent.name, parent=parent, scope='bdd_seg', locations=['bdd_seg']) for parent in _PARENTS
]
"""One for each of mmseg's."""

for _parent in _PARENTS:
    _parent.import_from_location()  # a child does not ask its parent to fill itself
