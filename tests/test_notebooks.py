"""Every notebook runs, says what its file says, and stays small."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def said(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each code cell prints and shows as text; figures count by their kind."""
    cells = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        data = [output.get("data", {"text/plain": output.get("text", "")}) for output in outputs]
        cells.append([d.get("text/latex", d.get("text/plain", "")) for d in data])
    return cells


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.from_dict(stored)
    nbclient.NotebookClient(fresh, timeout=120, kernel_name="python3").execute(cwd=path.parent)
    assert said(fresh) == said(stored), "the file shows other results: run it and save it again"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_an_essay(path: Path) -> None:
    assert path.stat().st_size < 400_000
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            for definition in re.findall(
                r"^(?:def|class) .*(?:\n(?:[ \t].*|))*", cell.source, re.M
            ):
                assert len(definition.strip().splitlines()) <= 5, definition
    assert NOTEBOOKS
