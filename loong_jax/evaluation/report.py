"""Prints and writes the results of an evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def format_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return ``rows`` as a Markdown table; floats have three decimals, a value that a row lacks is left blank."""
    cells = [list(columns)] + [[_text(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def write_report(path: str | Path, report: dict) -> None:
    """Write ``report`` as JSON, making the folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
