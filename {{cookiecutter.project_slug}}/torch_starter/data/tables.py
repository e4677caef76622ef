"""Reads CSV and Parquet tables, and encodes their columns for a network."""

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from ..mistakes import close_to, first_line

if TYPE_CHECKING:
    from polars import DataFrame, Series

log = logging.getLogger(__name__)

LAYOUT = "Its first line names the columns, and each other line is a row."
# What people write where a value is missing.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "?")
# 2024-03-01, 1.3.2024, 03/01/2024, perhaps with a time.
DATE = r"^\d{1,4}([-/.])\d{1,2}[-/.]\d{1,4}([T ].*)?$"
# 1,200 and 3,5 in a file that is separated by commas, 1.234,5, 5 %, 12 €.
WRITTEN_NUMBER = r"^[-+]?[$€£]?\s?\d[\d.,' ]*\s?[%$€£]?$"
# More different words than this are no categories, but names or texts.
MOST_WORDS = 1000
# A column of a table as the config of a run keeps it, see ``describe``.
Column = dict[str, Any]


def read_table(
    file: str,
    separator: str | None = None,
    decimal: str | None = None,
    as_text: bool = False,
    categories: Sequence[str] = (),
) -> "DataFrame":
    """The rows of a CSV or Parquet file; of a CSV file in UTF-8, UTF-16 or Windows-1252, with or without a BOM.

    Rows without any value, and a column without a name (the row numbers that pandas writes), are left out.

    Args:
        file: a path; one that ends in .parquet or .pq is read as Parquet, any other as CSV.
        separator: between the columns; None: what the first line has most of, of comma, semicolon, tab and bar.
        decimal: the decimal separator, "." or ","; None: a comma where the file has 3,5 and is not separated by commas.
        as_text: whether each value stays text, as it is in the file.
        categories: names of columns of a CSV file whose values stay text: 01234 is no 1234.

    Raises:
        MisconfigurationException: if it is no such file, is empty, or its rows are not all as long as the first.
    """
    import polars  # here, for it takes half a second that other data need not wait for

    if separator == "\\t":  # as it is easiest to type
        separator = "\t"
    if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in '"\r\n'):
        raise MisconfigurationException(f"data.separator is {separator!r}; it must be one character, such as ;")
    if decimal not in (None, ".", ",") or (decimal or "none") == separator:
        raise MisconfigurationException(
            f"data.decimal is {decimal!r}; it can be . or , and must not be the separator, or null."
        )
    path = Path(file).expanduser()
    _refuse_file(path)
    if path.suffix.lower() in (".parquet", ".pq"):
        try:
            table = polars.read_parquet(path)
        except polars.exceptions.PolarsError as error:
            raise MisconfigurationException(f"{path} is no Parquet file: {first_line(error)}") from error
        table = table.select(polars.all().cast(polars.String)) if as_text else table
    else:
        table = _read_csv(path, separator, decimal, as_text, categories)
    _refuse_duplicates(path, table.columns)
    table = table.rename({name: name.strip() for name in table.columns})
    text = polars.col(polars.String).str.strip_chars()
    # What stands for a missing value can have blanks around it.
    table = table.with_columns(polars.when(text.is_in(MISSING)).then(None).otherwise(text).name.keep())
    if table.height and table[:, 0].null_count():
        table = table.filter(~polars.all_horizontal(polars.all().is_null()))
    if "" in table.columns:
        log.info(f"{path}: the column without a name is left out.")
        table = table.drop("")
    if table.height == 0:
        raise MisconfigurationException(f"{path} has no rows. {LAYOUT}")
    return table


def _refuse_file(path: Path) -> None:
    """Raises MisconfigurationException if a path is no file of rows."""
    if not path.is_file():
        nearest = close_to(path.name, [other.name for other in path.parent.glob("*") if other.is_file()], count=3)
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        what = "is a folder" if path.is_dir() else "does not exist"
        raise MisconfigurationException(f"The table {path} {what}.{hint}")
    with path.open("rb") as file:
        start = file.read(8)
    # An OpenDocument or a new Excel file is a ZIP archive, an old Excel file an OLE one.
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")) or path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise MisconfigurationException(
            f"{path} is a spreadsheet. Open it in its program, save the sheet as CSV (File, Save As or Download), and "
            f"pass that: {path.with_suffix('.csv')}"
        )
    if not start:
        raise MisconfigurationException(f"{path} is empty. {LAYOUT}")


def _refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    names = [name.strip() for name in names]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise MisconfigurationException(f"{path} has two columns of the name {', '.join(twice)}. Rename one.")


def _read_csv(
    path: Path, separator: str | None, decimal: str | None, as_text: bool, categories: Sequence[str]
) -> "DataFrame":
    import polars

    encoding, start = _start_of(path)
    if start.startswith("sep="):
        raise MisconfigurationException(
            f"{path} begins with {start.splitlines()[0]}, a line for Excel alone. Remove it. {LAYOUT}"
        )
    if separator is None:
        separator = max(",;\t|", key=lambda mark: len(_rows(start, mark)[0]))
    names, *rows = _rows(start, separator)
    _refuse_duplicates(path, names)
    if decimal is None:
        found = [cell.strip() for row in rows for cell in row if re.fullmatch(r"\s*-?\d+,\d+\s*", cell)]
        decimal = "," if found and separator != "," else "."
        if decimal == "," and all(re.fullmatch(r"-?\d{1,3},\d{3}", cell) for cell in found):
            raise MisconfigurationException(
                f"{path} has numbers such as {found[0]}. If the comma is a decimal one: data.decimal=','. If it "
                "separates thousands, remove it."
            )
    options: dict[str, Any] = {"separator": separator, "null_values": list(MISSING), "encoding": encoding}
    if as_text:
        options |= {"infer_schema": False}
    else:
        # polars keeps the doubled quotes of a name.
        as_written = [name.replace('"', '""') for name in names if name.strip() in categories]
        options |= {"schema_overrides": dict.fromkeys(as_written, polars.String)}
        options |= {"decimal_comma": decimal == ","}
    try:
        try:
            table = polars.read_csv(path, infer_schema_length=10_000, **options)
        except polars.exceptions.ComputeError as error:
            # The file, or a column of it, begins otherwise than it goes on.
            if "invalid utf-8" in str(error):
                encoding = options["encoding"] = "windows-1252"
            elif "could not parse" not in str(error):
                raise
            table = polars.read_csv(path, infer_schema_length=None, **options)
    except polars.exceptions.PolarsError as error:
        _refuse_ragged(path, encoding, separator, len(names))
        raise MisconfigurationException(f"{path} cannot be read: {first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise MisconfigurationException(
            f"{path} is neither UTF-8 nor Windows-1252: {error}. Save it as CSV UTF-8."
        ) from error
    if table.height and table[table.columns[-1]].null_count():
        _refuse_ragged(path, encoding, separator, len(names))  # which polars fills up
    # polars gives names to all columns without one except the first.
    table = table.drop(column for column, name in zip(table.columns, names, strict=False) if column and not name)
    table = table.rename({column: column.replace('""', '"') for column in table.columns})
    if decimal == "," and as_text:
        number = r"^\s*-?\d*,\d+\s*$"
        text = polars.col(polars.String)
        table = table.with_columns(
            polars.when(text.str.contains(number)).then(text.str.replace(",", ".")).otherwise(text).name.keep()
        )
    return table


def _start_of(path: Path) -> tuple[str, str]:
    """What the encoding of a text file seems to be, and its first lines: 64 KiB and two ends of lines."""
    with path.open("rb") as file:
        start = file.read(1 << 16) + file.readline() + file.readline()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", start.decode("utf-16", errors="replace")
    try:
        return "utf8", start.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "windows-1252", start.decode("windows-1252", errors="replace")


def _rows(text: str, separator: str) -> list[list[str]]:
    """The rows that are not empty, at least one."""
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row] or [[]]


def _refuse_ragged(path: Path, encoding: str, separator: str, count: int) -> None:
    """Raises MisconfigurationException if a row has more or fewer cells than the first line."""
    with path.open(encoding={"utf8": "utf-8-sig"}.get(encoding, encoding), newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        for row in reader:
            if row and len(row) != count:
                raise MisconfigurationException(
                    f"{path}, line {reader.line_num} has {len(row)} columns, but the first line names {count}. Is a "
                    f"{separator!r} in a text without quotes, or is something else the separator? data.separator=…"
                )


def as_numbers(column: "Series") -> "Series":
    """A column as floats; null what is missing, infinite, or no number."""
    import polars

    numbers = column.cast(polars.Float64, strict=False).fill_nan(None)
    return numbers.set(numbers.is_infinite().fill_null(False), None)


def _without_truths(column: "Series") -> "Series":
    """A column in which the texts true and false are 1 and 0, as the booleans that training has read from such text."""
    import polars

    if column.dtype != polars.String:
        return column
    lower = column.str.to_lowercase()
    return lower.replace_strict({"true": "1", "false": "0"}, default=column)


def is_text(column: "Series") -> bool:
    """Whether a column has words in it: text that is not all numbers."""
    import polars

    return column.dtype == polars.String and as_numbers(column).null_count() > column.null_count()


def describe_columns(table: "DataFrame", features: Sequence[str], categories: Sequence[str]) -> list[Column]:
    """What the training rows say about the columns that a network reads.

    Args:
        table: the training rows.
        features: names of the columns.
        categories: names of the columns of numbers whose values are names, such as postcodes.

    Returns:
        for each column its ``name``; for numbers ``mean``, ``std``, ``median``, ``min`` and ``max``, whether they are
        whole, ``is_whole``, and the share of the rows without a value in [0, 1), ``missing``; for words ``words``,
        sorted, and ``shares``, of the rows that have each.

    Raises:
        MisconfigurationException: if a column is neither; it says which, and what to do.
    """
    constant, empty, columns = [], [], []
    for name in features:
        column = table[name]
        if column.dtype.is_float():
            column = column.fill_nan(None)
        if column.null_count() == len(column):
            empty.append(name)
        elif _is_constant(column):
            constant.append(name)
        elif name in categories or _refuse_unreadable(column):
            columns.append(_describe_words(column))
        else:
            numbers = as_numbers(column)
            if numbers.null_count() > column.null_count():
                raise MisconfigurationException(f"The column {name} has infinite numbers. {_remedy([name])}")
            columns.append(_describe_numbers(numbers))
    if empty or constant:
        what = (
            f"no value in any training row: {', '.join(empty)}" if empty else f"one value only: {', '.join(constant)}"
        )
        raise MisconfigurationException(
            f"Nothing can be learned from columns with {what}. Leave them out: {_ignore(empty + constant)}"
        )
    return columns


def _is_constant(column: "Series") -> bool:
    if column.dtype.is_numeric():  # of which n_unique takes longer than reading the file
        return column.null_count() == 0 and column.min() == column.max()
    return column.n_unique() == 1


def _refuse_unreadable(column: "Series") -> bool:
    """Whether a column has words in it.

    Raises:
        MisconfigurationException: if it has dates, or what is neither words nor numbers, or both.
    """
    import polars

    name = column.name
    values = column.drop_nulls()
    if column.dtype.is_temporal() or (column.dtype == polars.String and values.str.contains(DATE).all()):
        raise MisconfigurationException(
            f"The column {name} has dates, such as {values[0]}; a network reads numbers. Put a number in its "
            f"place, such as the year or the days since a first one. {_remedy([name])}"
        )
    if column.dtype == polars.Boolean or column.dtype.is_numeric():
        return False
    if column.dtype not in (polars.String, polars.Categorical, polars.Enum):
        raise MisconfigurationException(f"The column {name} has values of type {column.dtype}. {_remedy([name])}")
    if column.dtype != polars.String:
        return True
    if not is_text(column):
        return False
    refuse_written_numbers(column)
    numbers = as_numbers(values)
    if count := len(numbers) - numbers.null_count():
        word = values.filter(numbers.is_null())[0]
        raise MisconfigurationException(
            f"The column {name} is a mix of numbers and words: {count} of {len(values)} values are numbers, and one is "
            f"{word!r}. Correct them; or take all for words: data.categories=[{name}]; or leave the column out: "
            f"data.ignore=[{name}]"
        )
    return True


def refuse_written_numbers(column: "Series") -> None:
    """Raises MisconfigurationException if all words of a column are numbers as people write them: 1,200 or 5%."""
    import polars

    values = column.drop_nulls()
    if column.dtype == polars.String and values.str.contains(WRITTEN_NUMBER).all() and is_text(column):
        word = values.filter(as_numbers(values).is_null())[0]
        raise MisconfigurationException(
            f"The column {column.name} has numbers that are written as text, such as {word!r}. If its comma is a "
            "decimal one: data.decimal=','. Otherwise remove separators of thousands and units; or take all for words: "
            f"data.categories=[{column.name}]"
        )


def refuse_lost_digits(name: str, mean: float, std: float, remedy: str = "") -> None:
    """Raises MisconfigurationException if the differences between the numbers of a column are lost in 32 bits."""
    if not max(1e-6 * abs(mean), 1e-30) < std < 1e30:
        raise MisconfigurationException(
            f"The column {name} has numbers around {mean:g} that differ by some {std:g}, which is lost in 32 bits. "
            f"Subtract the smallest of them, or take another unit. {remedy}".rstrip()
        )


def _describe_numbers(column: "Series") -> Column:
    median: Any = column.median()
    filled = column.fill_null(median)
    mean, std = float(filled.mean()), float(filled.std(ddof=0))  # type: ignore[arg-type]
    missing = column.null_count() / len(column)
    # Where the only news is whether there is a value, it is always the same.
    is_flag = missing > 0 and column.n_unique() == 2
    if not is_flag:
        refuse_lost_digits(column.name, mean, std, _remedy([column.name]))
    return {
        "name": column.name,
        "mean": mean,
        "std": 1.0 if is_flag else std,
        "median": float(median),
        "min": float(filled.min()),  # type: ignore[arg-type]
        "max": float(filled.max()),  # type: ignore[arg-type]
        "is_whole": bool((filled % 1 == 0).all()),
        "missing": missing,
    }


def _describe_words(column: "Series") -> Column:
    import polars

    counts = column.cast(polars.String).drop_nulls().value_counts().sort(column.name)
    if len(counts) > min(MOST_WORDS, max(10, len(column) // 2)):
        raise MisconfigurationException(
            f"The column {column.name} has {len(counts)} different words in {len(column)} training rows, which are too "
            f"many for categories. Leave it out: {_ignore([column.name])}"
        )
    shares = [count / len(column) for count in counts["count"].to_list()]
    return {"name": column.name, "words": counts[column.name].to_list(), "shares": shares}


def _remedy(names: Sequence[str]) -> str:
    return f"Or leave it out, with what you leave out already: {_ignore(names)}"


def _ignore(names: Sequence[str]) -> str:
    """An override, quoted for Hydra and for a shell where that is necessary."""
    quoted = [name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"' for name in names]
    override = f"data.ignore=[{','.join(quoted)}]"
    return override if quoted == list(names) else f"'{override}'"


def encode_rows(table: "DataFrame", columns: Sequence[Column]) -> Tensor:
    """The rows of a table as tensors can hold them.

    Args:
        table: has all of ``columns``, and perhaps others.
        columns: see ``describe``.

    Returns:
        float32 (N, columns): numbers in their own unit; for a word its place in ``words``; NaN for what is missing, for
        a word that is not there, and for a word where a number should be.
    """
    import polars

    rows = []
    for column in columns:
        values = table[column["name"]]
        if "words" in column:
            places = {word: place for place, word in enumerate(column["words"])}
            text = values.cast(polars.String)
            coded = text.replace_strict(list(places), list(places.values()), default=None, return_dtype=polars.Float32)
        else:
            coded = as_numbers(_without_truths(values)).cast(polars.Float32)
        rows.append(torch.from_numpy(coded.fill_null(float("nan")).to_numpy(writable=True)))
    return torch.stack(rows, dim=1)


class TableEncoder(nn.Module):
    """From the rows of a table to numbers around 0, all of one size, with constants that a checkpoint holds.

    A number is standardized. Where it is missing, the training median takes its place; if training rows miss some, a
    further number flags it. A word is one-hot, less the shares that the words have in the training rows, so that a
    missing word, or one that training had not, is 0: it counts as the average row. (One-hot and not an embedding:
    a linear model then has a coefficient for each word, and the few words of a table need no fewer dimensions.)

    Args:
        columns: see ``describe``.

    Attributes:
        names: of the numbers that it gives, in order: of the columns of numbers, then of flags, then of words.
    """

    numbers: Tensor
    flagged: Tensor
    mean: Tensor
    std: Tensor
    median: Tensor
    missing: Tensor
    columns_of_words: Tensor
    codes: Tensor
    shares: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        numbers = [(place, column) for place, column in enumerate(columns) if "words" not in column]
        flagged = [place for place, (_, column) in enumerate(numbers) if column["missing"]]
        words = [
            (place, code, share, f"{column['name']}={word}")
            for place, column in enumerate(columns)
            if "words" in column
            for code, (word, share) in enumerate(zip(column["words"], column["shares"], strict=True))
        ]
        self.names = [column["name"] for _, column in numbers]
        self.names += [f"{self.names[place]} is missing" for place in flagged]
        self.names += [name for *_, name in words]
        self._keep("numbers", [place for place, _ in numbers])
        self._keep("flagged", flagged)
        for key in ("mean", "std", "median"):
            self._keep(key, [float(column[key]) for _, column in numbers])
        self._keep("missing", [float(numbers[place][1]["missing"]) for place in flagged])
        self._keep("columns_of_words", [place for place, *_ in words])
        self._keep("codes", [float(code) for _, code, *_ in words])
        self._keep("shares", [float(share) for _, _, share, _ in words])

    def _keep(self, name: str, values: Sequence[float]) -> None:
        dtype = torch.int64 if name in ("numbers", "flagged", "columns_of_words") else torch.float32
        self.register_buffer(name, torch.tensor(values, dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:
        """Float32 (N, columns), see ``encode``, to float32 (N, len(names))."""
        parts = []
        if len(self.numbers):
            numbers = rows.index_select(1, self.numbers) if len(self.numbers) < rows.shape[1] else rows
            # From the median, so that what is missing is 0: two passes over the rows fewer than by torch.where.
            distance = (numbers - self.median).nan_to_num(0.0)
            parts.append(torch.addcmul((self.median - self.mean) / self.std, distance, 1 / self.std))
        if len(self.flagged):
            flagged = rows.index_select(1, self.numbers[self.flagged])
            parts.append(flagged.isnan().to(rows.dtype) - self.missing)
        if len(self.codes):
            words = rows.index_select(1, self.columns_of_words)
            parts.append(((words == self.codes).to(rows.dtype) - self.shares) * ~words.isnan())
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def coefficients(self, weights: Tensor, bias: Tensor) -> dict[str, float]:
        """What a linear model on the encoded rows has found, in the units of the columns.

        Args:
            weights: of the encoded rows, (len(names),).
            bias: (), of the same model.

        Returns:
            ``intercept``, the output where all numbers are 0; for a number what one more of its unit adds; for a flag,
            and for a word, what it adds to a row that is average in it.
        """
        count = len(self.std)
        per_unit = (weights[:count] / self.std).double()
        intercept = float(bias) - float((per_unit * self.mean).sum())
        intercept -= float((weights[count : count + len(self.missing)] * self.missing).sum())
        added = per_unit.tolist() + weights[count:].tolist()
        for column in self.columns_of_words.unique():
            places = (self.columns_of_words == column).nonzero().flatten()
            ours = places + count + len(self.missing)
            average = float((weights[ours] * self.shares[places]).sum())
            for place in ours.tolist():
                added[place] -= average
        return {"intercept": intercept, **dict(zip(self.names, added, strict=True))}


def make_row(cells: Mapping[str, str]) -> "DataFrame":
    """A table of a single row, as text, from its cells by column; a number may have a decimal comma."""
    import polars

    values = {name.strip(): re.sub(r"^(-?\d*),(\d+)$", r"\1.\2", cell.strip()) for name, cell in cells.items()}
    row = {name: [None if value in MISSING else value] for name, value in values.items()}
    return polars.DataFrame(row, schema=dict.fromkeys(row, polars.String))


def refuse_missing(table: "DataFrame", columns: Sequence[str], file: str) -> None:
    """Raises MisconfigurationException if a table lacks columns; it names the nearest."""
    for name in columns:
        if name not in table.columns:
            nearest = ", ".join(close_to(name, table.columns, count=3)) or ", ".join(table.columns[:10])
            raise MisconfigurationException(f"{file} has no column {name}. Nearest: {nearest}.")


def unknown_words(table: "DataFrame", columns: Sequence[Column]) -> Mapping[str, list[str]]:
    """By the name of a column, its words that the training rows had not."""
    import polars

    found = {}
    for column in columns:
        if "words" in column:
            words = table[column["name"]].cast(polars.String).drop_nulls().unique().to_list()
            if unknown := sorted(set(words) - set(column["words"])):
                found[column["name"]] = unknown
    return found


def unreadable_cells(table: "DataFrame", columns: Sequence[Column]) -> Mapping[int, str]:
    """By the number of a row, from 0, the first of its values that is no number where training had numbers."""
    found: dict[int, str] = {}
    for column in columns:
        if "words" not in column:
            values = _without_truths(table[column["name"]])
            for row in (as_numbers(values).is_null() & values.is_not_null()).arg_true().to_list():
                found.setdefault(row, f"{column['name']} is {values[row]}, which is no number")
    return found
