"""The notebooks under examples/: small, shown as they come out, and run from the first cell to the last."""

import base64
import json
from pathlib import Path

import pytest
from notebooks import code_of, executed

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def outputs_of(notebook):
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_a_notebook_is_kept_with_its_outputs_and_small_pictures(notebook):
    assert len(json.dumps(notebook)) < 100_000 and notebook["nbformat"] == 4
    shown = [output.get("data", {}) for outputs in outputs_of(notebook) for output in outputs]
    pictures = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
    assert pictures and all(picture.startswith(b"\x89PNG") and len(picture) < 30_000 for picture in pictures)
    assert any("<table>" in "".join(data.get("text/html", [])) for data in shown)
    assert "Traceback" not in json.dumps(notebook)


@pytest.mark.slow
def test_a_notebook_runs_and_shows_what_it_is_kept_with(notebook, tmp_path, monkeypatch):
    """The same kinds of outputs; numbers depend on the machine."""
    monkeypatch.chdir(tmp_path)
    found = list(executed(notebook))
    assert len(found) == len(code_of(notebook))
    for now, kept in zip(found, outputs_of(notebook), strict=True):
        assert [output["output_type"] for output in now] == [output["output_type"] for output in kept]
        assert [output.get("data", {}).keys() for output in now] == [o.get("data", {}).keys() for o in kept]
