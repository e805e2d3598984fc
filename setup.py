from setuptools import find_packages, setup

# The packages that share the import names mmcv, mmengine and mmseg exist as two sets of distributions that
# corrupt each other. Neither is a base dependency; the extra `mmseg` brings the maintained ones.
setup(
    name='bdd-seg',
    version='0.1.0',
    description='Semantic-segmentation distillation on MMSegmentation with Balance Divergence Distillation',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['bdd_seg', 'bdd_seg.*']),
    package_data={'bdd_seg.study': ['demo.yaml']},
    # Before 2.10 a crafted file could get past torch.load(weights_only=True): CVE-2025-32434, CVE-2026-24747.
    install_requires=['torch>=2.10', 'numpy', 'safetensors'],
    extras_require={
        'mmseg': ['onedl-mmcv==2.3.6', 'onedl-mmengine==0.10.12', 'onedl-mmsegmentation==1.4.2'],
        'study': ['pydantic'],
        'dev': ['hypothesis', 'mypy', 'pytest', 'pytest-cov', 'pytest-xdist', 'ruff'],
    },
)
