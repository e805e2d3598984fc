"""Versions of this package and of the stack it runs on."""

from importlib import metadata

_PACKAGES = ('bdd-seg', 'onedl-mmsegmentation', 'onedl-mmengine', 'onedl-mmcv')


def package_versions() -> dict[str, str | None]:
    """Return the version of each package, None for one that is run from its source, not installed."""
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
