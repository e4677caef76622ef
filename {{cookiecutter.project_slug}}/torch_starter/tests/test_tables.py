"""Tests of reading tables, describing and encoding their columns, and splitting their rows."""

import datetime
import random

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from torch_starter.data.splits import read_row_splits, rows_by_name, split_rows, write_row_splits
from torch_starter.data.tables import (
    TableEncoder,
    describe_columns,
    encode_rows,
    is_text,
    make_row,
    read_table,
    refuse_missing,
    unknown_words,
    unreadable_cells,
)

polars = pytest.importorskip("polars", reason="polars is not installed: pip install -e .")


@pytest.fixture
def read(tmp_path):
    """Return a function that writes content to a file and reads it by ``read_table``."""

    def read(content: "str | bytes | polars.DataFrame", name: str = "table.csv", encoding: str = "utf-8", **options):
        path = tmp_path / name
        if isinstance(content, polars.DataFrame):
            content.write_parquet(path)
        else:
            path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
        return read_table(str(path), **options)

    return read


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(MisconfigurationException) as error:
        function(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_is_detected(read, separator):
    table = read("a,b,c\n1,2.5,x\n3,4.5,y\n".replace(",", separator))
    assert table.columns == ["a", "b", "c"]
    assert table.rows() == [(1, 2.5, "x"), (3, 4.5, "y")]


def test_quoted_separator_is_ignored(read):
    assert read('"a,b,c";d\n1;2\n').columns == ["a,b,c", "d"]


def test_decimal_comma_is_detected(read):
    assert read("a;b\n1,5;2\n3;-4,25\n").rows() == [(1.5, 2.0), (3.0, -4.25)]
    assert read('a,b\n"1,5",2\n', decimal=",").rows() == [(1.5, 2.0)]
    assert read("a;b\n1,5; -2,5\n,5;x\n", as_text=True).rows() == [("1.5", "-2.5"), (".5", "x")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encoding_is_detected(read, encoding):
    table = read("größe,café\n1,naïve €\n2,x\n", encoding=encoding)
    assert table.columns == ["größe", "café"]
    assert table["café"].to_list() == ["naïve €", "x"]


def test_rare_encodings_are_detected(read):
    assert read(b"\xfe\xff" + "a;b\n1,5;é\n".encode("utf-16-be")).rows() == [(1.5, "é")]
    late = read(("a,b\n" + "1,x\n" * 20_000 + "2,é\n").encode("cp1252"))
    assert late.row(-1) == (2, "é")


def test_unknown_encoding_raises_error(read):
    assert "Save it as CSV UTF-8" in error_of(read, b"a,b\n1,x\x81\n")


def test_quoted_line_breaks_belong_to_value(read):
    assert read('a,b\r\n1,"x\r\ny"\r\n2,z\r\n')["b"].to_list() == ["x\r\ny", "z"]
    # This also holds for a name, if the last column has a missing value.
    assert read('"a\nkg",b\n1,2\n2,\n').rows() == [(1, 2), (2, None)]


def test_header_can_exceed_sample(read):
    names = [f"column {number:010}" for number in range(4000)]
    table = read(";".join(names) + "\n" + (";".join(["1,5"] * 3999) + ";\n") * 2)
    assert table.columns == names
    assert table.row(0)[:2] == (1.5, 1.5)


@pytest.mark.parametrize("row", ["3", "3,4,5", "5,6,", '"x'])
def test_error_names_line_of_ragged_row(read, row):
    error = error_of(read, f"a,b\n1,2\n{row}\n5,6\n")
    assert "table.csv, line 3 has" in error or '"x' in row
    assert "\n" not in error


def test_duplicate_names_raise_error(read):
    assert "two columns named a. Rename one" in error_of(read, "a,b, a\n1,2,3\n")
    twice = polars.DataFrame({"a": [1, 2], " a": [3, 4]})
    assert "two columns named a" in error_of(read, twice, "table.parquet")


def test_names_are_case_sensitive(read):
    assert read("Age,age\n1,2\n").columns == ["Age", "age"]


@pytest.mark.parametrize("name", ["a b", "a.b", "a,b", '"a"', "[a]", "*", "größe", "山田", "_target_", "2019"])
def test_column_names_can_contain_any_characters(read, name):
    quoted = name.replace('"', '""')
    table = read(f'"{quoted}",b\n01,x\n2,y\n', categories=["b"])
    assert table.columns == [name, "b"]
    assert [column["name"] for column in describe_columns(table, table.columns, [])] == [name, "b"]
    assert read(f'b,"{quoted}"\nx,01\ny,2\n', categories=[name])[name].to_list() == ["01", "2"]


def test_unnamed_columns_are_ignored(read):
    assert read(",a,\n0,2,5\n1,3,6\n").rows() == [(2,), (3,)]
    assert read("a;b;;\n1;2;;\n3;4;;\n").columns == ["a", "b"]


def test_empty_rows_are_ignored(read):
    assert read("a,b\n\n1,2\n\n,\n3,4\n\n").rows() == [(1, 2), (3, 4)]
    assert read("a,b\nx,y\n NA , ?\n").rows() == [("x", "y")]
    assert read("a\n1\n\n2\n").rows() == [(1,), (2,)]


def test_missing_values_have_many_spellings(read):
    spellings = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "?"]
    assert read("a,b\n" + "".join(f"1,{spelling}\n" for spelling in spellings) + "1,2.5\n")["b"].null_count() == 9
    words = read("a,b\n" + "".join(f"1, {spelling} \n" for spelling in spellings) + "1, word \n")
    assert words["b"].to_list() == [None] * 9 + ["word"]


def test_column_type_can_change_after_sample(read):
    rows = "".join(f"{number},{number},\n" for number in range(10_001))
    table = read(f"a,b,c\n{rows}1.5,word,7.5\n")
    assert table.row(-1) == (1.5, "word", 7.5)
    assert table["a"].dtype == polars.Float64
    assert is_text(table["b"])


def test_categories_keep_leading_zeros(read):
    assert read("plz,a\n01234,1\n1234,2\n", categories=["plz"])["plz"].to_list() == ["01234", "1234"]


def test_parquet_keeps_types(read):
    expected = polars.DataFrame(
        {
            "day": [datetime.date(2024, 3, 1), None],
            "flag": [True, False],
            "kind": polars.Series(["x", "y"], dtype=polars.Categorical),
            "text": [" x ", "NA"],
        }
    )
    table = read(expected, "table.parquet")
    assert table.schema == expected.schema
    assert table["text"].to_list() == ["x", None]
    assert read(expected, "table.pq", as_text=True).row(0) == ("2024-03-01", "true", "x", "x")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"PK\x03\x04...", "sales.xlsx", "sales.xlsx is a spreadsheet"),
        (b"PK\x03\x04...", "sales.csv", "sales.csv is a spreadsheet"),
        (b"\xd0\xcf\x11\xe0...", "sales.xls", "sales.csv"),
        (b"", "sales.ods", "is a spreadsheet"),
        (b"", "table.csv", "table.csv is empty"),
        (b"\xef\xbb\xbf", "table.csv", "table.csv cannot be read"),
        (b"a,b\n", "table.csv", "has no rows"),
        (b"a,b\n,\n", "table.csv", "has no rows"),
        (b"sep=;\na;b\n1;2\n", "table.csv", "begins with sep=;"),
        (b"no Parquet", "table.parquet", "is not a Parquet file"),
    ],
)
def test_files_without_rows_raise_error(read, content, name, message):
    assert message in error_of(read, content, name)


def test_error_names_nearest_file(tmp_path):
    (tmp_path / "houses.csv").write_text("a\n1\n")
    assert "Nearest: houses.csv" in error_of(read_table, str(tmp_path / "house.csv"))
    assert "is a folder" in error_of(read_table, str(tmp_path))


@pytest.mark.parametrize("separator", ["", ";;", "§", "\n", '"'])
def test_invalid_separator_raises_error(read, separator):
    assert "data.separator is" in error_of(read, "a;b\n1;2\n", separator=separator)


def test_escaped_tab_is_separator(read):
    assert read("a\tb\n1\t2\n", separator="\\t").rows() == [(1, 2)]
    assert "data.decimal is 'x'" in error_of(read, "a;b\n1;2\n", decimal="x")
    assert "data.decimal is ','" in error_of(read, "a,b\n1,2\n", separator=",", decimal=",")


def describe(**columns):
    table = polars.DataFrame(columns)
    return describe_columns(table, table.columns, [])


def test_describe_columns_handles_numbers_and_words():
    number, word = describe(a=[1.0, None, 3.0, float("nan")], b=["x", "y", "x", None])
    numbers = {"mean": 2, "std": pytest.approx(0.5**0.5), "median": 2, "min": 1, "max": 3}
    assert number == {"name": "a", **numbers, "is_whole": True, "missing": 0.5}
    assert word == {"name": "b", "words": ["x", "y"], "shares": [0.5, 0.25]}


def test_numeric_texts_and_booleans_are_numbers():
    assert [column["mean"] for column in describe(a=["1", "3"], b=[True, False])] == [2, 0.5]


def test_numeric_categoricals_are_words():
    kinds = polars.Series(["2", "1", "2"], dtype=polars.Categorical)
    sizes = polars.Series(["S", "L", "L"], dtype=polars.Enum(["S", "L"]))
    assert [column["words"] for column in describe(a=kinds, b=sizes)] == [["1", "2"], ["L", "S"]]


def test_constant_with_missing_values_is_flag():
    columns = describe(a=[7, None, 7, None])
    encoder = TableEncoder(columns)
    assert encoder.names == ["a", "a is missing"]
    assert encoder(torch.tensor([[7.0], [float("nan")]])).tolist() == [[0, -0.5], [0, 0.5]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 1, 1], "only one value: a. Ignore them: data.ignore=[a]"),
        (["x", "x", "x"], "only one value: a"),
        ([None, None, None], "no value in any training row: a"),
        ([float("nan")] * 3, "no value in any training row: a"),
        (["1", "2", "many"], "2 of 3 values are numbers, but one is 'many'"),
        ([1.0, 2.0, float("inf")], "has infinite numbers"),
        ([1e300, 2e300, 3e300], "lost in 32 bits"),
        ([1_700_000_000, 1_700_000_001, 1_700_000_002], "lost in 32 bits"),
        (["2024-03-01", "2024-03-02", None], "has dates, such as 2024-03-01"),
        (["1.3.2024", "12.3.2024", None], "has dates"),
        (["03/01/2024 12:30", "03/02/2024 12:30", None], "has dates"),
        ([datetime.date(2024, 3, day) for day in (1, 2, 3)], "has dates, such as 2024-03-01"),
        ([datetime.datetime(2024, 3, day) for day in (1, 2, 3)], "has dates"),
        ([[1], [2], [3]], "values of type List"),
        ([f"person {number}" for number in range(40)], "40 different words in 40 training rows"),
    ],
)
def test_unreadable_columns_raise_error(values, message):
    error = error_of(describe, a=values)
    assert message in error
    assert "data.ignore=[a]" in error


def test_categories_option_accepts_mixed_column():
    table = polars.DataFrame({"a": ["1", "2", "many"], "plz": [10115, 80331, 10115]})
    mix, plz = describe_columns(table, ["a", "plz"], ["a", "plz"])
    assert (mix["words"], plz["words"]) == (["1", "2", "many"], ["10115", "80331"])


COLUMNS = [
    {"name": "age", "mean": 40.0, "std": 10.0, "median": 38.0, "missing": 0.25},
    {"name": "kind", "words": ["x", "y"], "shares": [0.75, 0.2]},
    {"name": "size", "mean": 2.0, "std": 0.5, "median": 2.0, "missing": 0.0},
]


def test_encode_rows_selects_columns_by_name():
    table = polars.DataFrame(
        {
            "size": ["1.5", None, "big"],
            "other": ["a", "b", "c"],
            "kind": ["y", None, "z"],
            "age": ["30", None, "50"],
        }
    )
    rows = encode_rows(table, COLUMNS)
    assert rows.dtype == torch.float32
    nan = float("nan")
    expected = torch.tensor([[30, 1, 1.5], [nan, nan, nan], [50, nan, nan]])
    torch.testing.assert_close(rows, expected, equal_nan=True)
    assert unreadable_cells(table, COLUMNS) == {2: "size is big, which is not a number"}


def test_booleans_can_be_read_as_text():
    columns = describe(a=[True, False, True])
    as_text = polars.DataFrame({"a": ["True", "false", "TRUE", "1"]})
    assert encode_rows(as_text, columns).flatten().tolist() == [1, 0, 1, 1]
    assert unreadable_cells(as_text, columns) == {}


def test_encoder_standardizes_flags_and_centers():
    encoder = TableEncoder(COLUMNS)
    assert encoder.names == ["age", "size", "age is missing", "kind=x", "kind=y"]
    nan = float("nan")
    encoded = encoder(torch.tensor([[50, 0, 2.5], [nan, 1, nan], [40, nan, 2]]))
    # A missing or unknown word counts as the average row.
    expected = [[1, 1, -0.25, 0.25, -0.2], [-0.2, 0, 0.75, -0.75, 0.8], [0, 0, -0.25, 0, 0]]
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, torch.tensor(expected))


@pytest.mark.parametrize("columns", [COLUMNS[:1], COLUMNS[1:2], COLUMNS])
def test_coefficients_match_predictions(columns):
    torch.manual_seed(0)
    encoder = TableEncoder(columns)
    linear = torch.nn.Linear(len(encoder.names), 1).requires_grad_(False)
    found = encoder.coefficients(linear.weight[0], linear.bias[0])
    rows = {"age": 55.0, "kind": "y", "size": 1.25}
    row = make_row({column["name"]: str(rows[column["name"]]) for column in columns})
    plain = found["intercept"]
    for column in columns:
        name = column["name"]
        plain += found[f"{name}={rows[name]}"] if "words" in column else found[name] * rows[name]
    predicted = linear(encoder(encode_rows(row, columns)))
    assert float(predicted) == pytest.approx(plain, abs=1e-4)


def test_make_row_parses_cells():
    assert make_row({" a": " 1,5", "b": "NA", "c": "x,y"}).rows(named=True) == [{"a": "1.5", "b": None, "c": "x,y"}]


def test_error_names_nearest_column():
    table = polars.DataFrame({"price": [1], "rooms": [2]})
    refuse_missing(table, ["price", "rooms"], "houses.csv")
    assert "houses.csv has no column prise. Nearest: price." in error_of(refuse_missing, table, ["prise"], "houses.csv")


def test_split_rows_uses_shares():
    splits = split_rows(100, None, {"test": 0.2, "val": 0.1}, seed=0, num_folds=None, fold=0)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 70, "test": 20, "val": 10}
    assert torch.cat(list(splits.values())).sort().values.tolist() == list(range(100))
    again, other = (split_rows(100, None, {"test": 0.2, "val": 0.1}, seed, None, 0) for seed in (0, 1))
    assert again["train"].equal(splits["train"])
    assert not other["train"].equal(splits["train"])


def test_split_rows_is_stratified():
    labels = torch.tensor([0] * 90 + [1] * 10)
    splits = split_rows(100, labels, {"test": 0.2, "val": 0.1}, seed=0, num_folds=None, fold=0)
    assert {split: int(labels[rows].sum()) for split, rows in splits.items()} == {"train": 7, "test": 2, "val": 1}


def test_folds_partition_rows():
    labels = torch.tensor([0, 1] * 50)
    folds = [split_rows(100, labels, {"test": 0.2, "val": 0.1}, seed=0, num_folds=5, fold=fold) for fold in range(5)]
    assert all(fold["test"].equal(folds[0]["test"]) for fold in folds)
    held_out = torch.cat([fold["val"] for fold in folds] + [folds[0]["test"]])
    assert held_out.sort().values.tolist() == list(range(100))
    assert not set(folds[0]["val"].tolist()) & set(folds[0]["train"].tolist())


def test_too_few_rows_raise_error():
    shares = {"test": 0.2, "val": 0.1}
    assert "The table has too few rows" in error_of(split_rows, 2, None, shares, 0, None, 0)
    labels = torch.tensor([0] * 9 + [1])
    assert "A class has too few rows" in error_of(split_rows, 10, labels, shares, 0, None, 0)


def test_column_can_name_splits():
    names = ["train", "Valid", " TEST ", "training", "dev"]
    assert rows_by_name(names, "it") == {"train": [0, 3], "val": [1, 4], "test": [2]}
    assert "it has 'holdout' in row 2" in error_of(rows_by_name, ["train", "holdout"], "it")
    assert "it has None in row 1" in error_of(rows_by_name, [None], "it")
    assert "no row for train" in error_of(rows_by_name, ["test"], "it")


def test_row_splits_survive_round_trip(tmp_path):
    order = random.Random(0).sample(range(10), 10)
    splits = {"train": torch.tensor(order[:7]), "val": torch.tensor(order[7:9]), "test": torch.tensor(order[9:])}
    write_row_splits(tmp_path / "split.csv", splits)
    read = read_row_splits(tmp_path / "split.csv", 10, "table.csv")
    assert {split: rows.tolist() for split, rows in read.items()} == {
        split: sorted(rows.tolist()) for split, rows in splits.items()
    }
    error = error_of(read_row_splits, tmp_path / "split.csv", 11, "table.csv")
    assert "table.csv has 11 rows" in error
    assert "has changed since" in error


@pytest.mark.parametrize("value", ["1,200", "3,5", "1.234,5", "5%", "12 €"])
def test_numbers_written_as_text_raise_error(value):
    table = polars.DataFrame({"price": [value, "1", value]})
    with pytest.raises(MisconfigurationException, match=r"written as text.*data.decimal"):
        describe_columns(table, ["price"], [])
    assert describe_columns(table, ["price"], ["price"])[0]["words"] == sorted(["1", value])


def test_unknown_words_are_found():
    columns = describe_columns(polars.DataFrame({"city": ["Bonn", "Ulm"]}), ["city"], [])
    assert unknown_words(polars.DataFrame({"city": ["Ulm", "Rome", None]}), columns) == {"city": ["Rome"]}


def test_unknown_word_encodes_as_average_row():
    table = polars.DataFrame({"city": ["Bonn", "Bonn", "Bonn", "Ulm"]})
    columns = describe_columns(table, ["city"], [])
    encoder = TableEncoder(columns)
    assert encoder(encode_rows(table, columns)).mean(dim=0).abs().max() < 1e-6
    assert encoder(encode_rows(polars.DataFrame({"city": ["Rome", None]}), columns)).abs().max() == 0


def test_thousands_separator_raises_error(read):
    with pytest.raises(MisconfigurationException, match=r"1,200.*data.decimal"):
        read("size;price\n1;1,200\n2;900\n")
    assert read("size;price\n1;1,200\n2;900\n", decimal=",")["price"].to_list() == [1.2, 900]
    assert read("size;price\n1;1,200\n2;9,5\n")["price"].to_list() == [1.2, 9.5]
