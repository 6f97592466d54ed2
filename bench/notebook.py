"""Execute docs/analysis.ipynb and store its outputs: `python bench/notebook.py`, or `make notebook`.

The cells run in order in one namespace of this process, in the notebook's folder, without Jupyter. Stored are printed text, the
value of a cell's last expression as text and HTML, and the open matplotlib figures as PNG. The test compares them with those of
a new execution.
"""

import ast
import base64
import contextlib
import io
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import matplotlib

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "analysis.ipynb"
DPI = 72
Cell = dict[str, Any]


def read(path: Path = NOTEBOOK) -> dict[str, Any]:
    """Return a notebook as it is stored: JSON of nbformat 4."""
    return json.loads(path.read_text())


def execute(notebook: dict[str, Any], folder: Path = NOTEBOOK.parent) -> dict[str, Any]:
    """Return the notebook with the outputs of a new execution in `folder`; raise RuntimeError, with the cell, for an error."""
    matplotlib.use("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                cell = cell | {"execution_count": count, "outputs": outputs_of("".join(cell["source"]), namespace, count)}
            cells.append(cell)
    return notebook | {"cells": cells}


def outputs_of(source: str, namespace: dict[str, Any], count: int) -> list[Cell]:
    """Execute a cell's source in a namespace and return its outputs."""
    from matplotlib import pyplot

    *statements, last = ast.parse(source).body
    expression = last if isinstance(last, ast.Expr) else None
    body = statements if expression else [*statements, last]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), f"cell {count}", "exec"), namespace)
            value = eval(compile(ast.Expression(expression.value), f"cell {count}", "eval"), namespace) if expression else None
    except Exception as error:
        raise RuntimeError(f"Cell {count} fails:\n{source}\n\n{traceback.format_exc()}") from error
    outputs: list[Cell] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines(printed.getvalue())})
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        if hasattr(value, "_repr_html_") and (html := value._repr_html_()):
            data["text/html"] = lines(html)
        outputs.append({"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}})
    for number in pyplot.get_fignums():
        picture = io.BytesIO()
        pyplot.figure(number).savefig(picture, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    pyplot.close("all")
    return outputs


def lines(text: str) -> list[str]:
    """Return a text as nbformat stores it: a list of lines with their ends."""
    return text.splitlines(keepends=True)


def text_of(notebook: dict[str, Any]) -> list[str]:
    """Return the text of each code cell's outputs: printed lines, values, and `<Figure>` for a picture."""
    return [
        "\n".join("".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in cell["outputs"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def pictures_of(notebook: dict[str, Any]) -> list[bytes]:
    """Return the pictures of the outputs, as PNG."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def main() -> None:
    """Execute the notebook and replace its stored outputs."""
    notebook = execute(read())
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    sizes = [len(picture) for picture in pictures_of(notebook)]
    print(f"{NOTEBOOK}: {len(notebook['cells'])} cells, {len(sizes)} pictures with {sum(sizes) / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
