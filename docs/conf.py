"""How Sphinx makes linked HTML pages of the Markdown files and the tutorials: CONTRIBUTING.md has the command."""

project = "ao_arm"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**.md", "tutorials/**.ipynb"]
exclude_patterns = ["**/.ipynb_checkpoints"]
html_theme = "furo"
nb_execution_mode = "off"
myst_heading_anchors = 3
default_role = "code"
napoleon_use_ivar = True
autodoc_member_order = "bysource"

PAGES = """

```{toctree}
:hidden:
:glob:
docs/*
tutorials/*
CONTRIBUTING
CHANGELOG
SECURITY
```
"""


def setup(app):
    """README.md is the first page, and lists the others, without showing Sphinx's words where it is read as it is."""
    app.connect("source-read", lambda _, name, source: source.append(source.pop() + PAGES * (name == root_doc)))
