"""How Sphinx builds the site: `make docs`."""

import sys
from pathlib import Path

import mlx_recurrent

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "mlx-recurrent"
author = "the authors of mlx-recurrent"
version = release = mlx_recurrent.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "command_help",
    "mathml",
]
exclude_patterns = ["extensions"]

# Pages: Markdown that a code host shows too.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Indented blocks are formulas and drawings.
highlight_language = "none"

# The reference: what docstrings say, types and all, so signatures need none.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False

# Every reference must lead somewhere, but for those to names of Python, MLX and others.
nitpicky = True
nitpick_ignore = [
    ("py:exc", "ImportError"),
    ("py:exc", "TypeError"),
    ("py:exc", "ValueError"),
    ("py:mod", "contextvars"),
]
nitpick_ignore_regex = [
    (r"py:(class|func)", r"(mlx\.(core|nn)|torch|keras|flax|onnx|numpy)\..+")
]

html_theme = "furo"
html_title = "mlx-recurrent"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# A reader copies what runs: neither prompts nor results.
copybutton_exclude = ".linenos, .gp, .go"
html_math_renderer = "mathml"
