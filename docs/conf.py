"""Settings of Sphinx. ``make docs`` builds the pages, with the repository as the folder of sources."""

from importlib.metadata import version as version_of

project = 'bdd_seg'
author = 'the authors of bdd_seg'
copyright = f'2026, {author}'
version = release = version_of('bdd-seg')

extensions = [
    'myst_parser',
    'sphinx_design',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
]
root_doc = 'docs/index'
include_patterns = [
    'docs/*.md',
    'configs/*/README.md',
    'benchmarks/README.md',
    'benchmarks/studies/*/report.md',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
]
myst_enable_extensions = ['colon_fence', 'deflist']
myst_heading_anchors = 3

html_theme = 'furo'
html_title = 'bdd_seg'
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_extra_path = ['site']  # an index.html that leads to docs/index.html

autodoc_typehints = 'none'  # the signature has them
autodoc_member_order = 'bysource'
