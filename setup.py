from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Older onnxruntimes let a crafted file read others outside of its folder; none for Python 3.10 is new enough.
ONNX = [f'{package}; python_version >= "3.11"' for package in ('onnx', 'onnxruntime>=1.24.4', 'onnxscript')]
SPHINX = ('furo', 'myst-parser', 'sphinx', 'sphinx-design')
DOCS = [f'{package}; python_version >= "3.11"' for package in SPHINX]  # Sphinx has left 3.10 behind
REPORT = ['jinja2', 'plotly']
TRANSFORMERS = ['transformers>=5.20']

setup(
    name='bdd-seg',
    version='0.2.0',
    description='Semantic-segmentation distillation on MMSegmentation with Balance Divergence Distillation',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    project_urls={'Paper': 'https://arxiv.org/abs/2501.07804'},
    keywords='semantic segmentation, knowledge distillation, mmsegmentation, openmmlab, pytorch',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 15)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['bdd_seg', 'bdd_seg.*']),
    # The command `bdd-seg` stands apart from the package, whose import takes seconds.
    py_modules=['bdd_seg_cli'],
    entry_points={'console_scripts': ['bdd-seg = bdd_seg_cli:main']},
    # bdd_seg/.mim/configs and bdd_seg/.mim/tools are links to the folders beside the package.
    package_data={
        'bdd_seg': ['.mim/*.yml', '.mim/configs/**/*.py', '.mim/configs/**/*.md', '.mim/tools/*.py'],
        'bdd_seg.report': ['templates/*'],
        'bdd_seg.study': ['demo.yaml'],
    },
    install_requires=[
        # A crafted file could get past the weights_only of older ones: CVE-2025-32434, CVE-2026-24747.
        'torch>=2.10',
        'numpy',
        'safetensors',
        'pydantic',
        # The maintained builds. OpenMMLab's mmcv, mmengine and mmsegmentation write the same folders.
        'onedl-mmcv==2.3.6',
        'onedl-mmengine==0.10.12',
        'onedl-mmsegmentation==1.4.2',
    ],
    extras_require={
        'dev': [
            *('hypothesis', 'mypy', 'playwright', 'pytest', 'pytest-cov', 'pytest-xdist', 'ruff'),
            *DOCS,
            *ONNX,
            *REPORT,
            *TRANSFORMERS,
        ],
        'docs': DOCS,
        'onnx': ONNX,
        'report': REPORT,
        'transformers': TRANSFORMERS,
        'tensorboard': ['tensorboard'],
        'wandb': ['wandb'],
        'mlflow': ['mlflow'],
    },
)
