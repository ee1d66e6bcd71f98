"""The Python of the README and of the site's pages runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What a page may need and an environment lack.
PEERS = {"flax", "jax", "keras", "onnx", "torch"}
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks(page, tmp_path, monkeypatch):
    """One after another, in one namespace."""
    monkeypatch.chdir(tmp_path)  # some write files
    text = page.read_text("utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    names = {"__name__": page.stem}
    for block in blocks:
        # Errors show the line of the page.
        above = "\n" * text.count("\n", 0, block.start(1))
        try:
            exec(compile(above + block[1], str(page), "exec"), names)
        except ModuleNotFoundError as error:
            if error.name not in PEERS:
                raise
            pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_files(page):
    for link in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


def test_every_page_of_the_layer_is_reached():
    """On a code host; Sphinx sees to it in the site."""
    text = (ROOT / "README.md").read_text("utf-8")
    text += (ROOT / "docs" / "api" / "layer.md").read_text("utf-8")
    pages = [page.name for page in PAGES if page.parent.name == "api"]
    assert not [name for name in pages if f"{name})" not in text]
