"""The site builds without a warning, and needs no network where it is read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the site is built with sphinx")
pytest.importorskip("furo", reason="the site's theme is furo")
pytest.importorskip("myst_parser", reason="the site's pages are read by myst_parser")
pytest.importorskip("sphinx_copybutton", reason="the site has copy buttons")

import mlx_recurrent
from mlx_recurrent import interop
from mlx_recurrent.command import cli
from test_examples import PUBLIC

DOCS = Path(__file__).resolve().parents[1] / "docs"
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//")
STYLE = re.compile(r"<link\b[^>]*rel=\"(?:stylesheet|preload|icon)\"[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Every page's HTML, by its name."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going"]
    command += ["--quiet", "--doctree-dir", folder / "trees", DOCS, folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = folder / "html"
    return {
        str(page.relative_to(html).with_suffix("")): page.read_text("utf-8")
        for page in html.rglob("*.html")
    }


def test_every_page_is_built(site):
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert pages <= site.keys()


def test_nothing_is_loaded_from_the_network(site):
    for name, html in site.items():
        assert not LOADED.search(html), name
        assert not [tag for tag in STYLE.findall(html) if "//" in tag], name


def test_formulas_are_read(site):
    html = site["mathematics"]
    assert html.count("<math") > 50
    assert "$" not in re.sub(r"<pre.*?</pre>|<code.*?</code>", "", html, flags=re.S)


def test_reference_names_everything(site):
    html = "".join(site[name] for name in site if name.startswith("reference/"))
    found = set(re.findall(r'id="(?:module-)?(mlx_recurrent[\w.]*)"', html))
    assert PUBLIC.keys() <= found
    assert {f"mlx_recurrent.{name}" for name in mlx_recurrent.__all__} <= found
    assert {f"mlx_recurrent.interop.{name}" for name in interop.__all__} <= found


def test_the_command_s_page_names_every_subcommand(site, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = re.findall(r"^    (\w+)  ", capsys.readouterr().out, flags=re.M)
    assert commands
    text = (DOCS / "reference" / "command.md").read_text("utf-8")
    assert not [name for name in commands if f"## {name}\n" not in text]
