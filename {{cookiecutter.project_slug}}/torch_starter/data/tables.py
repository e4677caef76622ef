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
# Common spellings of a missing value.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "?")
# 2024-03-01, 1.3.2024, 03/01/2024, with or without a time.
DATE = r"^\d{1,4}([-/.])\d{1,2}[-/.]\d{1,4}([T ].*)?$"
# 1,200 and 3,5 in a comma-separated file, 1.234,5, 5 %, 12 €.
WRITTEN_NUMBER = r"^[-+]?[$€£]?\s?\d[\d.,' ]*\s?[%$€£]?$"
# A column with more distinct words than this contains names or texts, not categories.
MOST_WORDS = 1000
# The description of a column in the config of a run, see ``describe_columns``.
Column = dict[str, Any]


def read_table(
    file: str,
    separator: str | None = None,
    decimal: str | None = None,
    as_text: bool = False,
    categories: Sequence[str] = (),
) -> "DataFrame":
    """Read the rows of a CSV or Parquet file.

    A CSV file is encoded in UTF-8, UTF-16 or Windows-1252, with or without a BOM. Rows without any value and columns
    without a name (the row numbers that pandas writes) are dropped.

    Args:
        file: Path of the file; .parquet and .pq are read as Parquet, all other files as CSV.
        separator: Separator of the columns. None: the most frequent of comma, semicolon, tab and bar in the first line.
        decimal: Decimal separator, "." or ",". None: a comma if the file has numbers such as 3,5 and is not separated
            by commas, otherwise a point.
        as_text: Whether to read all values as text.
        categories: Names of columns of a CSV file that are read as text, so that 01234 and 1234 differ.

    Returns:
        The table; missing values are null.

    Raises:
        MisconfigurationException: If the file does not exist, is empty, or its rows differ in length.
    """
    import polars  # This import takes half a second, and only tables need it.

    if separator == "\\t":  # the easiest spelling of a tab on the command line
        separator = "\t"
    if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in '"\r\n'):
        raise MisconfigurationException(f"data.separator is {separator!r}; it must be one ASCII character, such as ;")
    if decimal not in (None, ".", ",") or (decimal or "none") == separator:
        raise MisconfigurationException(
            f"data.decimal is {decimal!r}; it must be null, or a point or comma that differs from data.separator."
        )
    path = Path(file).expanduser()
    _refuse_file(path)
    if path.suffix.lower() in (".parquet", ".pq"):
        try:
            table = polars.read_parquet(path)
        except polars.exceptions.PolarsError as error:
            raise MisconfigurationException(f"{path} is not a Parquet file: {first_line(error)}") from error
        table = table.select(polars.all().cast(polars.String)) if as_text else table
    else:
        table = _read_csv(path, separator, decimal, as_text, categories)
    _refuse_duplicates(path, table.columns)
    table = table.rename({name: name.strip() for name in table.columns})
    text = polars.col(polars.String).str.strip_chars()
    # Missing values may be surrounded by blanks.
    table = table.with_columns(polars.when(text.is_in(MISSING)).then(None).otherwise(text).name.keep())
    if table.height and table[:, 0].null_count():
        table = table.filter(~polars.all_horizontal(polars.all().is_null()))
    if "" in table.columns:
        log.info(f"{path}: the column without a name is ignored.")
        table = table.drop("")
    if table.height == 0:
        raise MisconfigurationException(f"{path} has no rows. {LAYOUT}")
    return table


def _refuse_file(path: Path) -> None:
    """Raise MisconfigurationException if a path is not a file of rows."""
    if not path.is_file():
        nearest = close_to(path.name, [other.name for other in path.parent.glob("*") if other.is_file()], count=3)
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        what = "is a folder" if path.is_dir() else "does not exist"
        raise MisconfigurationException(f"The table {path} {what}.{hint}")
    with path.open("rb") as file:
        start = file.read(8)
    # OpenDocument and new Excel files are ZIP archives; old Excel files are OLE archives.
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")) or path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise MisconfigurationException(
            f"{path} is a spreadsheet. Open it, save the sheet as CSV (File, Save As or Download), and "
            f"pass the new file: {path.with_suffix('.csv')}"
        )
    if not start:
        raise MisconfigurationException(f"{path} is empty. {LAYOUT}")


def _refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    names = [name.strip() for name in names]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise MisconfigurationException(f"{path} has two columns named {', '.join(twice)}. Rename one.")


def _read_csv(
    path: Path, separator: str | None, decimal: str | None, as_text: bool, categories: Sequence[str]
) -> "DataFrame":
    import polars

    encoding, start = _read_start(path)
    if start.startswith("sep="):
        raise MisconfigurationException(
            f"{path} begins with {start.splitlines()[0]}, a line that only Excel understands. Remove it. {LAYOUT}"
        )
    if separator is None:
        separator = max(",;\t|", key=lambda mark: len(_parse_rows(start, mark)[0]))
    names, *rows = _parse_rows(start, separator)
    _refuse_duplicates(path, names)
    if decimal is None:
        found = [cell.strip() for row in rows for cell in row if re.fullmatch(r"\s*-?\d+,\d+\s*", cell)]
        decimal = "," if found and separator != "," else "."
        if decimal == "," and all(re.fullmatch(r"-?\d{1,3},\d{3}", cell) for cell in found):
            raise MisconfigurationException(
                f"{path} has numbers such as {found[0]}. If the comma is a decimal separator, set data.decimal=','. If "
                "it separates thousands, remove it."
            )
    options: dict[str, Any] = {"separator": separator, "null_values": list(MISSING), "encoding": encoding}
    if as_text:
        options |= {"infer_schema": False}
    else:
        # polars does not undouble the quotes in a name.
        as_written = [name.replace('"', '""') for name in names if name.strip() in categories]
        options |= {"schema_overrides": dict.fromkeys(as_written, polars.String)}
        options |= {"decimal_comma": decimal == ","}
    try:
        try:
            table = polars.read_csv(path, infer_schema_length=10_000, **options)
        except polars.exceptions.ComputeError as error:
            # The encoding or the type of a column changes after the rows that polars has sampled.
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
            f"{path} is encoded neither in UTF-8 nor in Windows-1252: {error}. Save it as CSV UTF-8."
        ) from error
    if table.height and table[table.columns[-1]].null_count():
        _refuse_ragged(path, encoding, separator, len(names))  # polars pads short rows.
    # polars names all columns without a name, except the first.
    table = table.drop(column for column, name in zip(table.columns, names, strict=False) if column and not name)
    table = table.rename({column: column.replace('""', '"') for column in table.columns})
    if decimal == "," and as_text:
        number = r"^\s*-?\d*,\d+\s*$"
        text = polars.col(polars.String)
        table = table.with_columns(
            polars.when(text.str.contains(number)).then(text.str.replace(",", ".")).otherwise(text).name.keep()
        )
    return table


def _read_start(path: Path) -> tuple[str, str]:
    """Return the likely encoding of a text file and its first lines: 64 KiB and up to two more line ends."""
    with path.open("rb") as file:
        start = file.read(1 << 16) + file.readline() + file.readline()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", start.decode("utf-16", errors="replace")
    try:
        return "utf8", start.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "windows-1252", start.decode("windows-1252", errors="replace")


def _parse_rows(text: str, separator: str) -> list[list[str]]:
    """Return the rows that are not empty; one empty row if there are none."""
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row] or [[]]


def _refuse_ragged(path: Path, encoding: str, separator: str, count: int) -> None:
    """Raise MisconfigurationException if a row has more or fewer cells than the first line."""
    with path.open(encoding={"utf8": "utf-8-sig"}.get(encoding, encoding), newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        for row in reader:
            if row and len(row) != count:
                raise MisconfigurationException(
                    f"{path}, line {reader.line_num} has {len(row)} columns, but the first line names {count}. Put "
                    f"texts that contain {separator!r} in quotes, or set another separator: data.separator=…"
                )


def as_numbers(column: "Series") -> "Series":
    """Convert a column to float64; values that are missing, infinite, or not numbers become null."""
    import polars

    numbers = column.cast(polars.Float64, strict=False).fill_nan(None)
    return numbers.set(numbers.is_infinite().fill_null(False), None)


def _replace_booleans(column: "Series") -> "Series":
    """Replace the texts true and false by 1 and 0, the values of the booleans that training reads from such text."""
    import polars

    if column.dtype != polars.String:
        return column
    lower = column.str.to_lowercase()
    return lower.replace_strict({"true": "1", "false": "0"}, default=column)


def is_text(column: "Series") -> bool:
    """Return whether a column is text with values that are not numbers."""
    import polars

    return column.dtype == polars.String and as_numbers(column).null_count() > column.null_count()


def describe_columns(table: "DataFrame", features: Sequence[str], categories: Sequence[str]) -> list[Column]:
    """Compute the constants that encode the features of a network.

    Args:
        table: The training rows.
        features: Names of the columns.
        categories: Names of columns whose numbers are categories, such as postcodes.

    Returns:
        A dict per column with its ``name``. Columns of numbers have ``mean``, ``std``, ``median``, ``min``, ``max``,
        ``is_whole`` (whether all numbers are integers), and ``missing`` (the fraction of rows without a value, in
        [0, 1)). Columns of words have ``words``, sorted, and ``shares`` (the fraction of rows with each word).

    Raises:
        MisconfigurationException: If a column contains neither numbers nor categories, or cannot be learned from.
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
                raise MisconfigurationException(
                    f"The column {name} has infinite numbers. Correct them. {_format_remedy([name])}"
                )
            columns.append(_describe_numbers(numbers))
    if empty or constant:
        what = (
            f"no value in any training row: {', '.join(empty)}" if empty else f"only one value: {', '.join(constant)}"
        )
        raise MisconfigurationException(
            f"Nothing can be learned from columns with {what}. Ignore them: {_format_ignore(empty + constant)}"
        )
    return columns


def _is_constant(column: "Series") -> bool:
    if column.dtype.is_numeric():  # n_unique would take longer than reading the file.
        return column.null_count() == 0 and column.min() == column.max()
    return column.n_unique() == 1


def _refuse_unreadable(column: "Series") -> bool:
    """Return whether a column contains words.

    Raises:
        MisconfigurationException: If it contains dates, a mix of words and numbers, or values of another type.
    """
    import polars

    name = column.name
    values = column.drop_nulls()
    if column.dtype.is_temporal() or (column.dtype == polars.String and values.str.contains(DATE).all()):
        raise MisconfigurationException(
            f"The column {name} has dates, such as {values[0]}; a network reads numbers. Replace them by numbers, "
            f"such as the year or the days since the first date. {_format_remedy([name])}"
        )
    if column.dtype == polars.Boolean or column.dtype.is_numeric():
        return False
    if column.dtype not in (polars.String, polars.Categorical, polars.Enum):
        raise MisconfigurationException(
            f"The column {name} has values of type {column.dtype}. Convert them to numbers or words. "
            f"{_format_remedy([name])}"
        )
    if column.dtype != polars.String:
        return True
    if not is_text(column):
        return False
    refuse_written_numbers(column)
    numbers = as_numbers(values)
    if count := len(numbers) - numbers.null_count():
        word = values.filter(numbers.is_null())[0]
        raise MisconfigurationException(
            f"The column {name} is a mix of numbers and words: {count} of {len(values)} values are numbers, but one is "
            f"{word!r}. Correct them, treat all values as words (data.categories=[{name}]), or ignore the column "
            f"(data.ignore=[{name}])."
        )
    return True


def refuse_written_numbers(column: "Series") -> None:
    """Raise MisconfigurationException if all words of a column are formatted numbers, such as 1,200 or 5%."""
    import polars

    values = column.drop_nulls()
    if column.dtype == polars.String and values.str.contains(WRITTEN_NUMBER).all() and is_text(column):
        word = values.filter(as_numbers(values).is_null())[0]
        raise MisconfigurationException(
            f"The column {column.name} has numbers that are written as text, such as {word!r}. If the comma is a "
            "decimal separator, set data.decimal=','. Otherwise remove thousands separators and units, or treat all "
            f"values as words: data.categories=[{column.name}]"
        )


def refuse_lost_digits(name: str, mean: float, std: float, remedy: str = "") -> None:
    """Raise MisconfigurationException if float32 cannot represent the differences between the numbers of a column.

    Args:
        name: Name of the column.
        mean: Mean of its numbers.
        std: Standard deviation of its numbers.
        remedy: A sentence that ends the error message.
    """
    if not max(1e-6 * abs(mean), 1e-30) < std < 1e30:
        raise MisconfigurationException(
            f"The column {name} has numbers around {mean:g} that differ by about {std:g}, which is lost in 32 bits. "
            f"Subtract the smallest number or use another unit. {remedy}".rstrip()
        )


def _describe_numbers(column: "Series") -> Column:
    median: Any = column.median()
    filled = column.fill_null(median)
    mean, std = float(filled.mean()), float(filled.std(ddof=0))  # type: ignore[arg-type]
    missing = column.null_count() / len(column)
    # The value is the same wherever it exists, so only its presence carries information.
    is_flag = missing > 0 and column.n_unique() == 2
    if not is_flag:
        refuse_lost_digits(column.name, mean, std, _format_remedy([column.name]))
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
            f"The column {column.name} has {len(counts)} different words in {len(column)} training rows, too many for "
            f"categories. Ignore it: {_format_ignore([column.name])}"
        )
    shares = [count / len(column) for count in counts["count"].to_list()]
    return {"name": column.name, "words": counts[column.name].to_list(), "shares": shares}


def _format_remedy(names: Sequence[str]) -> str:
    return f"Or ignore it, in addition to the columns that you already ignore: {_format_ignore(names)}"


def _format_ignore(names: Sequence[str]) -> str:
    """Return an override that ignores the columns, quoted for Hydra and the shell if necessary."""
    quoted = [name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"' for name in names]
    override = f"data.ignore=[{','.join(quoted)}]"
    return override if quoted == list(names) else f"'{override}'"


def encode_rows(table: "DataFrame", columns: Sequence[Column]) -> Tensor:
    """Encode the rows of a table as a tensor.

    Args:
        table: A table that has at least ``columns``.
        columns: Descriptions of the columns, see ``describe_columns``.

    Returns:
        float32 (N, columns): numbers in their own unit; words as their index in ``words``; NaN for missing values,
        unknown words, and words in a column of numbers.
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
            coded = as_numbers(_replace_booleans(values)).cast(polars.Float32)
        rows.append(torch.from_numpy(coded.fill_null(float("nan")).to_numpy(writable=True)))
    return torch.stack(rows, dim=1)


class TableEncoder(nn.Module):
    """Maps the rows of a table to features around 0 of similar scale, with constants that checkpoints store.

    Numbers are standardized. The training median replaces missing numbers; if training rows lack a number, an
    additional feature flags rows that lack it. Words are one-hot encoded, minus the fraction of training rows with each
    word, so that a missing or unknown word is 0 and counts as the average row. (One-hot and not an embedding: a linear
    model then has a coefficient for each word, and the few words of a table do not need fewer dimensions.)

    Args:
        columns: Descriptions of the columns, see ``describe_columns``.

    Attributes:
        names: Names of the features, in order: columns of numbers, then flags, then words.
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
        self._register("numbers", [place for place, _ in numbers])
        self._register("flagged", flagged)
        for key in ("mean", "std", "median"):
            self._register(key, [float(column[key]) for _, column in numbers])
        self._register("missing", [float(numbers[place][1]["missing"]) for place in flagged])
        self._register("columns_of_words", [place for place, *_ in words])
        self._register("codes", [float(code) for _, code, *_ in words])
        self._register("shares", [float(share) for _, _, share, _ in words])

    def _register(self, name: str, values: Sequence[float]) -> None:
        dtype = torch.int64 if name in ("numbers", "flagged", "columns_of_words") else torch.float32
        self.register_buffer(name, torch.tensor(values, dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:
        """Map float32 (N, columns), see ``encode_rows``, to float32 (N, len(names))."""
        parts = []
        if len(self.numbers):
            numbers = rows.index_select(1, self.numbers) if len(self.numbers) < rows.shape[1] else rows
            # Relative to the median, a missing number is 0; this saves two passes over the rows that torch.where needs.
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
        """Convert the parameters of a linear model on the encoded rows to the units of the columns.

        Args:
            weights: Weights of the model, (len(names),).
            bias: Bias of the model, ().

        Returns:
            ``intercept``, the output if all numbers are 0; for a number, the change of the output per unit; for a flag
            or a word, its effect relative to the average row.
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
    """Return a table of text with a single row.

    Args:
        cells: Text by column name; numbers may have a decimal comma.
    """
    import polars

    values = {name.strip(): re.sub(r"^(-?\d*),(\d+)$", r"\1.\2", cell.strip()) for name, cell in cells.items()}
    row = {name: [None if value in MISSING else value] for name, value in values.items()}
    return polars.DataFrame(row, schema=dict.fromkeys(row, polars.String))


def refuse_missing(table: "DataFrame", columns: Sequence[str], file: str) -> None:
    """Raise MisconfigurationException, with the nearest names, if columns are missing from a table.

    Args:
        table: The table.
        columns: Names of the columns.
        file: The name of the table, for the error message.
    """
    for name in columns:
        if name not in table.columns:
            nearest = ", ".join(close_to(name, table.columns, count=3)) or ", ".join(table.columns[:10])
            raise MisconfigurationException(f"{file} has no column {name}. Nearest: {nearest}.")


def unknown_words(table: "DataFrame", columns: Sequence[Column]) -> Mapping[str, list[str]]:
    """Return the words, by column name, that do not occur in the training rows."""
    import polars

    found = {}
    for column in columns:
        if "words" in column:
            words = table[column["name"]].cast(polars.String).drop_nulls().unique().to_list()
            if unknown := sorted(set(words) - set(column["words"])):
                found[column["name"]] = unknown
    return found


def unreadable_cells(table: "DataFrame", columns: Sequence[Column]) -> Mapping[int, str]:
    """Return, for rows with text in a column of numbers, a message on the first such value, by row number from 0."""
    found: dict[int, str] = {}
    for column in columns:
        if "words" not in column:
            values = _replace_booleans(table[column["name"]])
            for row in (as_numbers(values).is_null() & values.is_not_null()).arg_true().to_list():
                found.setdefault(row, f"{column['name']} is {values[row]}, which is not a number")
    return found
