"""Tables of rows from files: CSV, TSV, JSON lines and Parquet, read strictly.

A cell of a CSV file is a text, whatever it looks like: `NA` is no missing value and `007` no number. An
empty cell is a missing value. Every fault names the file and the row; rows count from 0, below the header.
"""

import csv
import json
from pathlib import Path

import datasets

SEPARATORS = ",;\t|"  # of CSV files: the one that finds most columns in the header is taken


def read(file: str | Path) -> datasets.Dataset:
    """A file's rows, with a column for each of its columns.

    Args:
        file: its name ends in .csv, .tsv, .jsonl, .json (with an object on each line) or .parquet.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read as what its name says, or has no rows; the message names the row.
    """
    file = Path(file)
    if file.suffix.lower() not in READERS:
        raise ValueError(f"{file}: its name must end in one of {', '.join(READERS)}")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        rows = READERS[file.suffix.lower()](file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}, byte {error.start}); save it so") from None
    if not len(rows):
        raise ValueError(f"{file} has no rows")
    if isinstance(rows, list):
        try:
            rows = datasets.Dataset.from_list(rows)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: a column changes its type between rows ({error})") from None
    rows.info.description = str(file)
    return rows


def write_csv(file: str | Path, rows: list[dict]) -> None:
    """Writes rows, whose columns are those of the first, as CSV in UTF-8."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _read_csv(file, separators=SEPARATORS):
    with file.open(encoding="utf-8-sig", newline="") as opened:  # a byte order mark is no part of a name
        header = opened.readline()
        separator = max(separators, key=lambda one: len(next(csv.reader([header], delimiter=one), [])))
        opened.seek(0)
        reader, rows = csv.reader(opened, delimiter=separator, skipinitialspace=True, strict=True), []
        try:
            header = next(reader, [])
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise ValueError(f"{file}: its header names {repeated} more than once")
            for cells in reader:
                if cells and len(cells) != len(header):
                    advice = f"a cell with {separator!r} in it stands in quotes"
                    given = f"{len(cells)} cells, but the header has {len(header)}"
                    raise ValueError(f"{file}, row {len(rows)} (line {reader.line_num}): {given}; {advice}")
                if cells:
                    rows.append({k: c if c.strip() else None for k, c in zip(header, cells, strict=True)})
        except csv.Error as error:
            where = f"row {len(rows)} (up to line {reader.line_num})"
            advice = "a quote inside of a quoted cell is doubled"
            raise ValueError(f"{file}, {where}: {error}; {advice}") from None
    return rows


def _read_tsv(file):
    return _read_csv(file, "\t")


def _read_lines(file):
    rows = []
    with file.open("rb") as lines:
        for i, line in enumerate(lines):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise ValueError(f"{file}, row {i}: not JSON in UTF-8 ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}, row {i}: not a JSON object of columns")
            rows.append(row)
            if row.keys() != rows[0].keys():
                differ = sorted(row.keys() ^ rows[0].keys())
                raise ValueError(f"{file}, row {i}: columns {differ} are not those of row 0")
    return rows


def _read_parquet(file):
    try:
        return datasets.Dataset.from_parquet(str(file), keep_in_memory=True)
    except Exception as error:  # of whichever library is behind
        raise ValueError(f"{file} is not a Parquet file: {error.__cause__ or error}") from None


READERS = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_lines,
    ".json": _read_lines,
    ".parquet": _read_parquet,
}
