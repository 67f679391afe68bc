"""Tables of captions and cuts: .jsonl and .csv files."""

import csv
import io
import json
from pathlib import Path


def read_rows(table: Path) -> list[tuple[int, dict]]:
    """The rows of a .jsonl or .csv file as dicts, each with the number of its line.

    Raises:
        ValueError: a line is not a JSON object, or not CSV.
    """
    # utf-8-sig: spreadsheets put a byte-order mark in front, which would become part of the first column's name.
    lines = io.StringIO(table.read_text(encoding="utf-8-sig", errors="replace"))
    if table.suffix == ".csv":
        reader = csv.DictReader(lines)
        try:
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise ValueError(f"{table}, line {reader.line_num} is not CSV: {error}.") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{table}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{table}, line {number} is not a JSON object.")
        rows.append((number, row))
    return rows
