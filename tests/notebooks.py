"""Runs a notebook's code without a notebook's server, and keeps what it shows.

`python tests/notebooks.py examples/*.ipynb` writes the outputs into the files.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path

from PIL import Image


def code_of(notebook):
    """The code cells' texts, in order."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def executed(notebook):
    """Yields the outputs of each code cell, all of them run in one namespace."""
    namespace = {"__name__": "__main__"}
    for number, text in enumerate(code_of(notebook), start=1):
        *statements, last = ast.parse(text).body
        shown = isinstance(last, ast.Expr)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(
                compile(ast.Module(statements if shown else [*statements, last], []), "cell", "exec"),
                namespace,
            )
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace) if shown else None
        yield [*printed_output(printed.getvalue()), *value_output(value, number)]


def printed_output(text):
    return (
        [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}] if text else []
    )


def value_output(value, number):
    if value is None:
        return []
    data = {"text/plain": str(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = [value._repr_html_()]
    if isinstance(value, Image.Image):
        content = io.BytesIO()
        value.save(content, "png", optimize=True)
        data = {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": ["a picture"]}
    return [{"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}]


def write_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(cells, executed(notebook), strict=True), start=1):
        cell |= {"outputs": outputs, "execution_count": number}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_outputs(Path(name))
