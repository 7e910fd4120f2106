"""How the site is built: `make docs` writes it to docs/_build."""

import logging
import re

import matplotlib
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import moe_search as ms

matplotlib.use("agg")
# That a kernel is compiled, which a new installation tells, is no output of an example.
logging.getLogger("moe_search").setLevel(logging.ERROR)

project = "moe-search"
author = "The moe-search developers"
copyright = "2026, the moe-search developers"
version = release = ms.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
templates_path = ["_templates"]

# The public names of a package are those of its ``__all__``, which lazy_loader reads from the stub. Its ``__dir__``
# does not list ``__all__`` itself, so that autosummary would take them for imported ones and leave them out.
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say what a parameter is
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"
default_role = "py:obj"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

PACKAGES = (
    "problems",
    "solvers",
    "gates",
    "layers",
    "training",
    "huggingface",
    "serving",
    "analysis",
    "plotting",
    "integrations",
)
# Where a public name is documented: a docstring writes `TabuSearch`, whatever package it stands in.
HOMES = {name: f"moe_search.{package}.{name}" for package in PACKAGES for name in getattr(ms, package).__all__}
HOMES |= {name: f"moe_search.{name}" for name in ms.__all__ if name not in HOMES and name not in PACKAGES}

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "capture_repr": (),
}

html_theme = "pydata_sphinx_theme"
html_title = "moe-search"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
}


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Lead a reference to a public name, with or without ``ms.`` or ``moe_search.`` before it, to where it is."""
    name, *rest = node.get("reftarget", "").removeprefix("moe_search.").removeprefix("ms.").split(".")
    if node.get("refdomain") != "py" or name not in HOMES:
        return None
    target = ".".join((HOMES[name], *rest))
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)


def escape_initials(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep a reference that begins with a name, such as "E. D. Taillard", from being read as a list A, B, C ..."""
    lines[:] = [re.sub(r"^(\s*)([A-Z])\. ", r"\1\2\\. ", line) for line in lines]


def link_code(app: Sphinx, doctree: nodes.document) -> None:
    """Lead the public names that stand as code in a page, such as ``ms.solve(problem)``, to their pages."""
    for code in list(doctree.findall(nodes.literal)):
        name = code.astext().split("(")[0].removeprefix("ms.")
        if name in HOMES and not isinstance(code.parent, nodes.reference | addnodes.pending_xref):
            where = {"refdomain": "py", "reftype": "obj", "reftarget": name, "refdoc": app.env.docname}
            code.replace_self(addnodes.pending_xref("", code.deepcopy(), **where))


def join_errors(app: Sphinx, doctree: nodes.document) -> None:
    """Keep a mean and its standard error on one line of a cell."""
    for cell in doctree.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            text.parent.replace(text, nodes.Text(text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")))


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("missing-reference", resolve_public_name)
    app.connect("autodoc-process-docstring", escape_initials)
    app.connect("doctree-read", link_code)
    app.connect("doctree-read", join_errors)
