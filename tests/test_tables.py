"""Tables as people save them: what is read from a file, and what a bad file gets."""

import datasets
import pytest

from lab.real import tables


def read(tmp_path, raw, name="rows.csv"):
    file = tmp_path / name
    file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return tables.read(file).to_list()


@pytest.mark.parametrize(
    "raw, rows",
    [
        (b"\xef\xbb\xbftext,label\nhello,1\n", [{"text": "hello", "label": "1"}]),  # as Excel writes UTF-8
        ("text,label\r\nhello,1\r\n", [{"text": "hello", "label": "1"}]),
        (
            'text,label\n"two\nlines, and ""quotes""",1\n',
            [{"text": 'two\nlines, and "quotes"', "label": "1"}],
        ),
        ("text;label\nfirst, second;1\n", [{"text": "first, second", "label": "1"}]),
        ("text\tlabel\nfirst, second\t1\n", [{"text": "first, second", "label": "1"}]),
        ('text, label\n"first, second", 1\n', [{"text": "first, second", "label": "1"}]),
        (
            "text,label\nNA,007\nnull,1.0\n",
            [{"text": "NA", "label": "007"}, {"text": "null", "label": "1.0"}],
        ),
        ("text,label\n,1\n  ,2\n", [{"text": None, "label": "1"}, {"text": None, "label": "2"}]),
        ("text,label\n\nhello,1\n\n", [{"text": "hello", "label": "1"}]),
        ("text\nhello\n", [{"text": "hello"}]),
        ("text,label\n東京,1\n", [{"text": "東京", "label": "1"}]),
    ],
)
def test_a_csv_file_is_read_as_it_was_meant(tmp_path, raw, rows):
    assert read(tmp_path, raw) == rows


def test_a_tsv_file_has_one_separator(tmp_path):
    assert read(tmp_path, "a,b\tc;d\n1,2\t3;4\n", "rows.tsv") == [{"a,b": "1,2", "c;d": "3;4"}]


def test_parquet_and_json_lines_keep_types(tmp_path):
    rows = [
        {"text": "a", "label": 1, "choices": ["x", "y"]},
        {"text": None, "label": 0, "choices": ["z", "w"]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert tables.read(tmp_path / "rows.parquet").to_list() == rows
    datasets.Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    assert tables.read(tmp_path / "rows.jsonl").to_list() == rows


def test_what_is_written_is_read(tmp_path):
    rows = [{"text": 'a "b",\nc;d', "label": "1"}, {"text": "é", "label": None}]
    tables.write_csv(tmp_path / "new" / "rows.csv", rows)
    assert tables.read(tmp_path / "new" / "rows.csv").to_list() == rows


@pytest.mark.parametrize(
    "raw, message",
    [
        ("text,label\nI came, I saw,1\n", r"row 0 \(line 2\): 3 cells, but the header has 2; .* in quotes"),
        ('text,label\n"a\nb",1\nalone\n', r"row 1 \(line 4\): 1 cells, but the header has 2"),
        (
            'text,label\nfine,1\n"never closed,1\nx,2\n',
            r"row 1 \(up to line 4\): unexpected end of data; a quote",
        ),
        ('text,label\n"a"b,1\n', r"row 0 \(up to line 2\): .*; a quote inside of a quoted cell is doubled"),
        ("text,text\na,b\n", r"its header names \['text'\] more than once"),
        ("text,label\n", "has no rows"),
        ("", "has no rows"),
        (
            b"text,label\nd\xe9j\xe0 vu,1\n",
            r"is not UTF-8 \(invalid continuation byte, byte 12\); save it so",
        ),
        ("text,label\na,1\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_bad_csv_file_is_told_with_its_row(tmp_path, raw, message):
    with pytest.raises(ValueError, match=rf"rows\.csv.*{message}"):
        read(tmp_path, raw)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.xlsx: its name must end in one of \.csv, \.tsv, \.jsonl"):
        read(tmp_path, b"PK", "rows.xlsx")
    with pytest.raises(ValueError, match=r"rows\.parquet is not a Parquet file: "):
        read(tmp_path, b"nonsense", "rows.parquet")
    with pytest.raises(FileNotFoundError, match=r"rows\.csv is missing"):
        tables.read(tmp_path / "rows.csv")
