"""Tables: files as people have them, what their columns hold, and the numbers that a network takes."""

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

polars = pytest.importorskip("polars", reason="it is not installed: pip install -e .")


@pytest.fixture
def read(tmp_path):
    """What ``read_table`` reads of a file with a content."""

    def read(content: "str | bytes | polars.DataFrame", name: str = "table.csv", encoding: str = "utf-8", **options):
        path = tmp_path / name
        if isinstance(content, polars.DataFrame):
            content.write_parquet(path)
        else:
            path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
        return read_table(str(path), **options)

    return read


def refused(function, *arguments, **options) -> str:
    with pytest.raises(MisconfigurationException) as refusal:
        function(*arguments, **options)
    return str(refusal.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(read, separator):
    table = read("a,b,c\n1,2.5,x\n3,4.5,y\n".replace(",", separator))
    assert table.columns == ["a", "b", "c"]
    assert table.rows() == [(1, 2.5, "x"), (3, 4.5, "y")]


def test_a_separator_in_a_quoted_name_does_not_count(read):
    assert read('"a,b,c";d\n1;2\n').columns == ["a,b,c", "d"]


def test_the_decimal_comma_is_found_where_the_comma_is_no_separator(read):
    assert read("a;b\n1,5;2\n3;-4,25\n").rows() == [(1.5, 2.0), (3.0, -4.25)]
    assert read('a,b\n"1,5",2\n', decimal=",").rows() == [(1.5, 2.0)]
    assert read("a;b\n1,5; -2,5\n,5;x\n", as_text=True).rows() == [("1.5", "-2.5"), (".5", "x")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_found(read, encoding):
    table = read("größe,café\n1,naïve €\n2,x\n", encoding=encoding)
    assert table.columns == ["größe", "café"]
    assert table["café"].to_list() == ["naïve €", "x"]


def test_a_big_endian_file_of_16_bits_and_one_with_its_only_accent_at_the_end_are_read(read):
    assert read(b"\xfe\xff" + "a;b\n1,5;é\n".encode("utf-16-be")).rows() == [(1.5, "é")]
    late = read(("a,b\n" + "1,x\n" * 20_000 + "2,é\n").encode("cp1252"))
    assert late.row(-1) == (2, "é")


def test_bytes_of_no_known_encoding_are_refused(read):
    assert "Save it as CSV UTF-8" in refused(read, b"a,b\n1,x\x81\n")


def test_line_breaks_in_quotes_belong_to_a_value(read):
    assert read('a,b\r\n1,"x\r\ny"\r\n2,z\r\n')["b"].to_list() == ["x\r\ny", "z"]
    # Even in a name, where the last column misses a value.
    assert read('"a\nkg",b\n1,2\n2,\n').rows() == [(1, 2), (2, None)]


def test_a_header_longer_than_the_sample_is_read(read):
    names = [f"column {number:010}" for number in range(4000)]
    table = read(";".join(names) + "\n" + (";".join(["1,5"] * 3999) + ";\n") * 2)
    assert table.columns == names
    assert table.row(0)[:2] == (1.5, 1.5)


@pytest.mark.parametrize("row", ["3", "3,4,5", "5,6,", '"x'])
def test_a_row_of_another_length_is_refused_with_its_line(read, row):
    refusal = refused(read, f"a,b\n1,2\n{row}\n5,6\n")
    assert "table.csv, line 3 has" in refusal or '"x' in row
    assert "\n" not in refusal


def test_duplicate_names_are_refused(read):
    assert "two columns named a. Rename one" in refused(read, "a,b, a\n1,2,3\n")
    twice = polars.DataFrame({"a": [1, 2], " a": [3, 4]})
    assert "two columns named a" in refused(read, twice, "table.parquet")


def test_names_that_differ_in_case_alone_are_two(read):
    assert read("Age,age\n1,2\n").columns == ["Age", "age"]


@pytest.mark.parametrize("name", ["a b", "a.b", "a,b", '"a"', "[a]", "*", "größe", "山田", "_target_", "2019"])
def test_any_name_is_a_name(read, name):
    quoted = name.replace('"', '""')
    table = read(f'"{quoted}",b\n01,x\n2,y\n', categories=["b"])
    assert table.columns == [name, "b"]
    assert [column["name"] for column in describe_columns(table, table.columns, [])] == [name, "b"]
    assert read(f'b,"{quoted}"\nx,01\ny,2\n', categories=[name])[name].to_list() == ["01", "2"]


def test_columns_without_a_name_are_left_out(read):
    assert read(",a,\n0,2,5\n1,3,6\n").rows() == [(2,), (3,)]
    assert read("a;b;;\n1;2;;\n3;4;;\n").columns == ["a", "b"]


def test_rows_without_a_value_are_left_out(read):
    assert read("a,b\n\n1,2\n\n,\n3,4\n\n").rows() == [(1, 2), (3, 4)]
    assert read("a,b\nx,y\n NA , ?\n").rows() == [("x", "y")]
    assert read("a\n1\n\n2\n").rows() == [(1,), (2,)]


def test_missing_values_in_all_spellings(read):
    spellings = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "?"]
    assert read("a,b\n" + "".join(f"1,{spelling}\n" for spelling in spellings) + "1,2.5\n")["b"].null_count() == 9
    words = read("a,b\n" + "".join(f"1, {spelling} \n" for spelling in spellings) + "1, word \n")
    assert words["b"].to_list() == [None] * 9 + ["word"]


def test_a_column_that_goes_on_otherwise_than_it_begins(read):
    rows = "".join(f"{number},{number},\n" for number in range(10_001))
    table = read(f"a,b,c\n{rows}1.5,word,7.5\n")
    assert table.row(-1) == (1.5, "word", 7.5)
    assert table["a"].dtype == polars.Float64
    assert is_text(table["b"])


def test_categories_stay_as_they_are_written(read):
    assert read("plz,a\n01234,1\n1234,2\n", categories=["plz"])["plz"].to_list() == ["01234", "1234"]


def test_parquet_keeps_its_types(read):
    wanted = polars.DataFrame(
        {
            "day": [datetime.date(2024, 3, 1), None],
            "flag": [True, False],
            "kind": polars.Series(["x", "y"], dtype=polars.Categorical),
            "text": [" x ", "NA"],
        }
    )
    table = read(wanted, "table.parquet")
    assert table.schema == wanted.schema
    assert table["text"].to_list() == ["x", None]
    assert read(wanted, "table.pq", as_text=True).row(0) == ("2024-03-01", "true", "x", "x")


@pytest.mark.parametrize(
    ("content", "name", "said"),
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
def test_files_without_rows_are_refused(read, content, name, said):
    assert said in refused(read, content, name)


def test_the_nearest_file_is_named(tmp_path):
    (tmp_path / "houses.csv").write_text("a\n1\n")
    assert "Nearest: houses.csv" in refused(read_table, str(tmp_path / "house.csv"))
    assert "is a folder" in refused(read_table, str(tmp_path))


@pytest.mark.parametrize("separator", ["", ";;", "§", "\n", '"'])
def test_impossible_separators_are_refused(read, separator):
    assert "data.separator is" in refused(read, "a;b\n1;2\n", separator=separator)


def test_separators_are_taken_as_typed(read):
    assert read("a\tb\n1\t2\n", separator="\\t").rows() == [(1, 2)]
    assert "data.decimal is 'x'" in refused(read, "a;b\n1;2\n", decimal="x")
    assert "data.decimal is ','" in refused(read, "a,b\n1,2\n", separator=",", decimal=",")


def described(**columns):
    table = polars.DataFrame(columns)
    return describe_columns(table, table.columns, [])


def test_numbers_and_words_are_described():
    number, word = described(a=[1.0, None, 3.0, float("nan")], b=["x", "y", "x", None])
    numbers = {"mean": 2, "std": pytest.approx(0.5**0.5), "median": 2, "min": 1, "max": 3}
    assert number == {"name": "a", **numbers, "is_whole": True, "missing": 0.5}
    assert word == {"name": "b", "words": ["x", "y"], "shares": [0.5, 0.25]}


def test_texts_that_are_numbers_and_booleans_are_numbers():
    assert [column["mean"] for column in described(a=["1", "3"], b=[True, False])] == [2, 0.5]


def test_categoricals_are_words_even_if_they_read_as_numbers():
    kinds = polars.Series(["2", "1", "2"], dtype=polars.Categorical)
    sizes = polars.Series(["S", "L", "L"], dtype=polars.Enum(["S", "L"]))
    assert [column["words"] for column in described(a=kinds, b=sizes)] == [["1", "2"], ["L", "S"]]


def test_a_number_that_is_always_the_same_or_missing_is_a_flag():
    columns = described(a=[7, None, 7, None])
    encoder = TableEncoder(columns)
    assert encoder.names == ["a", "a is missing"]
    assert encoder(torch.tensor([[7.0], [float("nan")]])).tolist() == [[0, -0.5], [0, 0.5]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 1, 1], "only one value: a. Ignore them: data.ignore=[a]"),
        (["x", "x", "x"], "only one value: a"),
        ([None, None, None], "no value in any training row: a"),
        ([float("nan")] * 3, "no value in any training row: a"),
        (["1", "2", "many"], "2 of 3 values are numbers, and one is 'many'"),
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
def test_columns_that_a_network_cannot_read_are_refused(values, said):
    refusal = refused(described, a=values)
    assert said in refusal
    assert "data.ignore=[a]" in refusal


def test_a_mix_is_words_if_it_is_said_to_be():
    table = polars.DataFrame({"a": ["1", "2", "many"], "plz": [10115, 80331, 10115]})
    mix, plz = describe_columns(table, ["a", "plz"], ["a", "plz"])
    assert (mix["words"], plz["words"]) == (["1", "2", "many"], ["10115", "80331"])


COLUMNS = [
    {"name": "age", "mean": 40.0, "std": 10.0, "median": 38.0, "missing": 0.25},
    {"name": "kind", "words": ["x", "y"], "shares": [0.75, 0.2]},
    {"name": "size", "mean": 2.0, "std": 0.5, "median": 2.0, "missing": 0.0},
]


def test_rows_are_encoded_by_name():
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
    wanted = torch.tensor([[30, 1, 1.5], [nan, nan, nan], [50, nan, nan]])
    torch.testing.assert_close(rows, wanted, equal_nan=True)
    assert unreadable_cells(table, COLUMNS) == {2: "size is big, which is not a number"}


def test_booleans_are_read_again_as_text():
    columns = described(a=[True, False, True])
    as_text = polars.DataFrame({"a": ["True", "false", "TRUE", "1"]})
    assert encode_rows(as_text, columns).flatten().tolist() == [1, 0, 1, 1]
    assert unreadable_cells(as_text, columns) == {}


def test_the_encoder_standardizes_flags_and_centers():
    encoder = TableEncoder(COLUMNS)
    assert encoder.names == ["age", "size", "age is missing", "kind=x", "kind=y"]
    nan = float("nan")
    encoded = encoder(torch.tensor([[50, 0, 2.5], [nan, 1, nan], [40, nan, 2]]))
    # A missing or unknown word is the average row.
    wanted = [[1, 1, -0.25, 0.25, -0.2], [-0.2, 0, 0.75, -0.75, 0.8], [0, 0, -0.25, 0, 0]]
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, torch.tensor(wanted))


@pytest.mark.parametrize("columns", [COLUMNS[:1], COLUMNS[1:2], COLUMNS])
def test_the_coefficients_predict_as_the_model_does(columns):
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


def test_one_row_of_a_command_line():
    assert make_row({" a": " 1,5", "b": "NA", "c": "x,y"}).rows(named=True) == [{"a": "1.5", "b": None, "c": "x,y"}]


def test_missing_columns_are_named_with_the_nearest():
    table = polars.DataFrame({"price": [1], "rooms": [2]})
    refuse_missing(table, ["price", "rooms"], "houses.csv")
    assert "houses.csv has no column prise. Nearest: price." in refused(refuse_missing, table, ["prise"], "houses.csv")


def test_rows_are_cut_by_share():
    splits = split_rows(100, None, {"test": 0.2, "val": 0.1}, seed=0, num_folds=None, fold=0)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 70, "test": 20, "val": 10}
    assert torch.cat(list(splits.values())).sort().values.tolist() == list(range(100))
    again, other = (split_rows(100, None, {"test": 0.2, "val": 0.1}, seed, None, 0) for seed in (0, 1))
    assert again["train"].equal(splits["train"])
    assert not other["train"].equal(splits["train"])


def test_each_class_is_in_each_split():
    labels = torch.tensor([0] * 90 + [1] * 10)
    splits = split_rows(100, labels, {"test": 0.2, "val": 0.1}, seed=0, num_folds=None, fold=0)
    assert {split: int(labels[rows].sum()) for split, rows in splits.items()} == {"train": 7, "test": 2, "val": 1}


def test_each_row_is_in_one_fold():
    labels = torch.tensor([0, 1] * 50)
    folds = [split_rows(100, labels, {"test": 0.2, "val": 0.1}, seed=0, num_folds=5, fold=fold) for fold in range(5)]
    assert all(fold["test"].equal(folds[0]["test"]) for fold in folds)
    held_out = torch.cat([fold["val"] for fold in folds] + [folds[0]["test"]])
    assert held_out.sort().values.tolist() == list(range(100))
    assert not set(folds[0]["val"].tolist()) & set(folds[0]["train"].tolist())


def test_too_few_rows_are_refused():
    shares = {"test": 0.2, "val": 0.1}
    assert "The table has too few rows" in refused(split_rows, 2, None, shares, 0, None, 0)
    labels = torch.tensor([0] * 9 + [1])
    assert "A class has too few rows" in refused(split_rows, 10, labels, shares, 0, None, 0)


def test_rows_are_split_by_names():
    names = ["train", "Valid", " TEST ", "training", "dev"]
    assert rows_by_name(names, "it") == {"train": [0, 3], "val": [1, 4], "test": [2]}
    assert "it has 'holdout' in row 2" in refused(rows_by_name, ["train", "holdout"], "it")
    assert "it has None in row 1" in refused(rows_by_name, [None], "it")
    assert "no row for train" in refused(rows_by_name, ["test"], "it")


def test_written_splits_are_read(tmp_path):
    order = random.Random(0).sample(range(10), 10)
    splits = {"train": torch.tensor(order[:7]), "val": torch.tensor(order[7:9]), "test": torch.tensor(order[9:])}
    write_row_splits(tmp_path / "split.csv", splits)
    read = read_row_splits(tmp_path / "split.csv", 10, "table.csv")
    assert {split: rows.tolist() for split, rows in read.items()} == {
        split: sorted(rows.tolist()) for split, rows in splits.items()
    }
    refusal = refused(read_row_splits, tmp_path / "split.csv", 11, "table.csv")
    assert "table.csv has 11 rows" in refusal
    assert "has changed since" in refusal


@pytest.mark.parametrize("value", ["1,200", "3,5", "1.234,5", "5%", "12 €"])
def test_numbers_that_are_written_as_text_are_refused(value):
    table = polars.DataFrame({"price": [value, "1", value]})
    with pytest.raises(MisconfigurationException, match=r"written as text.*data.decimal"):
        describe_columns(table, ["price"], [])
    assert describe_columns(table, ["price"], ["price"])[0]["words"] == sorted(["1", value])


def test_words_that_training_had_not_are_found():
    columns = describe_columns(polars.DataFrame({"city": ["Bonn", "Ulm"]}), ["city"], [])
    assert unknown_words(polars.DataFrame({"city": ["Ulm", "Rome", None]}), columns) == {"city": ["Rome"]}


def test_an_unknown_word_is_the_average_row():
    table = polars.DataFrame({"city": ["Bonn", "Bonn", "Bonn", "Ulm"]})
    columns = describe_columns(table, ["city"], [])
    encoder = TableEncoder(columns)
    assert encoder(encode_rows(table, columns)).mean(dim=0).abs().max() < 1e-6
    assert encoder(encode_rows(polars.DataFrame({"city": ["Rome", None]}), columns)).abs().max() == 0


def test_thousands_are_not_taken_for_decimals(read):
    with pytest.raises(MisconfigurationException, match=r"1,200.*data.decimal"):
        read("size;price\n1;1,200\n2;900\n")
    assert read("size;price\n1;1,200\n2;900\n", decimal=",")["price"].to_list() == [1.2, 900]
    assert read("size;price\n1;1,200\n2;9,5\n")["price"].to_list() == [1.2, 9.5]
