"""Your own table: the rows of a CSV or Parquet file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from torch_starter.data import tables
from torch_starter.data.batches import BatchLoader, TensorBatches, shuffle_seed
from torch_starter.data.splits import check_folds, read_row_splits, rows_by_name, split_rows, write_row_splits

log = logging.getLogger(__name__)


class TableDataModule(LightningDataModule):
    """One column of a table from others: a number (regression) or a word (classification).

    Batches are pairs: rows float32 (N, columns), as ``tables.encode`` gives them, and targets: float32 (N,), in the
    unit of the column, or int64 labels (N,). The model standardizes them, with constants that only the training rows
    have a part in. Rows without a target are left out. Which row is in which split is written into the run folder, and
    read there when the run is resumed or evaluated.

    What is None below is found in the file when a run begins, and kept in its config.

    Args:
        file: of the table, see ``tables.read_table``.
        target: the name of the column to predict.
        task: ``regression`` or ``classification``. None: by whether the target column has numbers or words.
        features: the names of the columns to predict it from. None: all others.
        ignore: names of columns that are left out.
        categories: names of columns of numbers that are names, such as postcodes.
        separator: see ``tables.read_table``.
        decimal: see ``tables.read_table``.
        split_column: the name of a column that says which split a row is in: train, val or test. What it does not
            name is cut from the training rows. None: no such column.
        shuffle: whether splits are cut by chance, of each class the same share; otherwise the file begins with the
            training rows and ends with the test rows, as a series in time should. Training batches are shuffled anyway.
        val_share: share of the rows for validation, in (0, 1).
        test_share: share of the rows for the test, in (0, 1).
        num_folds: into how many folds the rows without the test rows are cut; None: no folds.
        fold: which of them is the validation set, from 0.
        split_file: where the splits of this run are written, and read if they are there.
        batch_size: rows per step. None: all training rows at once, up to 4,096.
        seed: of the splits, and of the order of the training batches.
        columns: what the features hold, see ``tables.describe``.
        class_names: by label, in classification.
        num_classes: how many there are; None in regression.
        num_outputs: of a network: one number, or one for each class.
        in_features: how many numbers a row becomes, see ``tables.TableEncoder``.
        target_mean: of the training rows, in regression.
        target_std: standard deviation of the training rows, likewise.

    Raises:
        MisconfigurationException: if the file, or a column, is not what it should be; it says what to do.
    """

    def __init__(
        self,
        file: str,
        target: str,
        task: str | None,
        features: Sequence[str] | None,
        ignore: Sequence[str],
        categories: Sequence[str],
        separator: str | None,
        decimal: str | None,
        split_column: str | None,
        shuffle: bool,
        val_share: float,
        test_share: float,
        num_folds: int | None,
        fold: int,
        split_file: str,
        batch_size: int | None,
        seed: int,
        columns: Sequence[tables.Column] | None = None,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        num_outputs: int | None = None,
        in_features: int | None = None,
        target_mean: float | None = None,
        target_std: float | None = None,
    ) -> None:
        super().__init__()
        self.file = str(file)
        self.target = str(target)
        self.task = task
        self.features = features
        self.ignore = [str(name) for name in ignore]
        self.categories = [str(name) for name in categories]
        self.format = {"separator": separator, "decimal": decimal}
        self.split_column = None if split_column is None else str(split_column)
        self.shuffle = shuffle
        self.shares = {"test": test_share, "val": val_share}
        self.num_folds = num_folds
        self.fold = fold
        self.split_file = Path(split_file)
        self.batch_size: Any = batch_size
        self.seed = seed
        self.columns = list(columns or [])
        self.class_names = class_names
        self.num_classes = num_classes
        self.num_outputs = num_outputs
        self.in_features = in_features
        self.target_mean = target_mean
        self.target_std = target_std
        if task not in (None, "regression", "classification"):
            raise MisconfigurationException(f"data.task is {task}; it can be regression, classification or null.")
        for name, share in self.shares.items():
            if not 0 < share < 1:
                raise MisconfigurationException(f"data.{name}_share is {share}; it must be between 0 and 1.")
        check_folds(num_folds, fold)
        if num_folds is not None and (split_column or not shuffle):
            other = f"data.split_column={split_column}" if split_column else "data.shuffle=false"
            raise MisconfigurationException(f"data.num_folds cuts the rows by chance, {other} does not. Choose one.")

    def facts(self) -> dict[str, Any]:
        """What the config leaves open and the file says."""
        self._read()
        names = ("task", "batch_size", "columns", "class_names", "num_classes", "num_outputs", "in_features")
        return {name: getattr(self, name) for name in (*names, "target_mean", "target_std")}

    def class_counts(self) -> list[int]:
        """How many training rows each class has."""
        return self.train_set.tensors[1].bincount(minlength=self.num_classes or 0).tolist()

    def setup(self, stage: str) -> None:
        if not hasattr(self, "train_set"):
            self._read()

    def _read(self) -> None:
        """All three splits."""
        table = tables.read_table(self.file, **self.format, categories=self.categories)
        features = self._find_features(table)
        tables.refuse_missing(table, [column["name"] for column in self.columns], self.file)
        known = table.drop_nulls(self.target)
        if (left_out := table.height - known.height) and not self.columns:
            log.info(f"{left_out} rows of {self.file} have no {self.target}, and are left out.")
        targets = self._read_targets(known)
        splits = self._split(known, targets)
        if not self.columns:
            self.columns = tables.describe_columns(known[splits["train"].numpy()], features, self.categories)
            self.in_features = len(tables.TableEncoder(self.columns).names)
        if self.batch_size is None:
            self.batch_size = min(len(splits["train"]), 4096)
        if self.task == "regression" and self.target_std is None:
            values = targets[splits["train"]].double()
            self.target_mean, self.target_std = float(values.mean()), float(values.std(correction=0))
            if not self.target_std:
                raise MisconfigurationException(f"{self.target} is {values[0]} in every training row.")
            tables.refuse_lost_digits(self.target, self.target_mean, self.target_std)
        rows, targets = (
            tables.encode_rows(known, self.columns),
            targets.float() if self.task == "regression" else targets,
        )
        self.train_set, self.val_set, self.test_set = (
            TensorBatches(rows[splits[split]], targets[splits[split]]) for split in ("train", "val", "test")
        )

    def _find_features(self, table: Any) -> list[str]:
        tables.refuse_missing(table, [self.target, *self.ignore, *self.categories], self.file)
        if self.split_column:
            tables.refuse_missing(table, [self.split_column], self.file)
        if self.features is None:
            left_out = (self.target, self.split_column, *self.ignore)
            features = [name for name in table.columns if name not in left_out]
        else:
            features = [str(name) for name in self.features if str(name) not in self.ignore]
            tables.refuse_missing(table, features, self.file)
        if self.target in features:
            raise MisconfigurationException(
                f"data.target={self.target} is among data.features, too: a column cannot be predicted from itself. "
                "Remove it from data.features."
            )
        if not features:
            raise MisconfigurationException(f"{self.file} has no column to predict {self.target} from.")
        return features

    def _read_targets(self, known: Any) -> Tensor:
        """Numbers, float64 (N,), or labels, int64 (N,)."""
        column = known[self.target]
        if not len(column):
            raise MisconfigurationException(f"The column {self.target} of {self.file} is empty.")
        if column.dtype.is_temporal():
            raise MisconfigurationException(
                f"The column {self.target} has dates, such as {column[0]}. Put a number in its place, such as the year."
            )
        has_words = tables.is_text(column) or column.dtype.base_type().__name__ in ("Boolean", "Categorical", "Enum")
        if self.task is None and self.target not in self.categories:
            tables.refuse_written_numbers(column)
        if self.task is None:
            self.task = "classification" if has_words else "regression"
            few = column.n_unique()
            if self.task == "regression" and few <= 10 < len(column):
                log.info(
                    f"{self.target} has {few} different numbers, and is predicted as a number. If they stand for "
                    "classes: data.task=classification"
                )
        if self.task == "regression":
            numbers = tables.as_numbers(column)
            if numbers.null_count():
                word = column.filter(numbers.is_null())[0]
                raise MisconfigurationException(
                    f"The column {self.target} has {word!r}, which is no number; regression needs numbers alone. "
                    "Correct it, or take each value for a class: data.task=classification"
                )
            return torch.from_numpy(numbers.to_numpy(writable=True))
        if self.class_names is None:
            found = column.unique().to_list()
            self.class_names = [str(value) for value in sorted(found)]
            if len(found) < 2:
                raise MisconfigurationException(
                    f"The column {self.target} has only one class, {found[0]}; classification needs at least two."
                )
            if len(found) > tables.MOST_WORDS or 2 * len(found) > len(column):
                raise MisconfigurationException(
                    f"The column {self.target} has {len(found)} different values in {len(column)} rows, too many for "
                    "classes. Is it another column? data.target=…"
                )
            self.num_classes = self.num_outputs = len(found)
        labels = {name: label for label, name in enumerate(self.class_names)}
        names = [str(value) for value in column.to_list()]
        if unknown := sorted(set(names) - set(labels)):
            raise MisconfigurationException(
                f"{self.file} has the class {unknown[0]}, which is not among those of this run: {', '.join(labels)}."
            )
        return torch.tensor([labels[name] for name in names])

    def _split(self, known: Any, targets: Tensor) -> dict[str, Tensor]:
        """The numbers of the rows in each split."""
        if self.num_classes is None:
            self.num_outputs = 1
        if self.split_file.exists():
            return read_row_splits(self.split_file, known.height, self.file)
        labels = targets if self.task == "classification" else None
        if self.split_column:
            where = f"The column {self.split_column} of {self.file}"
            named = rows_by_name(known[self.split_column].to_list(), where)
            splits = {split: torch.tensor(rows) for split, rows in named.items()}
            shares = {split: share for split, share in self.shares.items() if split not in splits}
            train = splits["train"]
            cut = split_rows(len(train), labels[train] if labels is not None else None, shares, self.seed, None, 0)
            splits |= {split: train[rows] for split, rows in cut.items()}
        elif self.shuffle:
            splits = split_rows(known.height, labels, self.shares, self.seed, self.num_folds, self.fold)
        else:
            counts = {split: max(2, round(share * known.height)) for split, share in self.shares.items()}
            sizes = [known.height - sum(counts.values()), counts["val"], counts["test"]]
            if sizes[0] < 1:
                raise MisconfigurationException(f"{self.file} has {known.height} rows: too few for three splits.")
            splits = dict(zip(("train", "val", "test"), torch.arange(known.height).split(sizes), strict=True))
        # As they are read when the run is resumed, which then serves the same batches.
        splits = {split: rows.sort().values for split, rows in splits.items()}
        if labels is not None and (missing := set(labels.tolist()) - set(labels[splits["train"]].tolist())):
            names = ", ".join(self.class_names[label] for label in sorted(missing))  # pyrefly: ignore
            raise MisconfigurationException(f"No training row has the class {names}, but other rows have.")
        if self.split_file.parent.is_dir():
            write_row_splits(self.split_file, splits)
        return splits

    def find_inputs(self, words: Sequence[str]) -> Sequence[str]:
        """What `predict.py` means: one row, as in ``bmi=31 age=50``, or the rows of one file."""
        columns = [column["name"] for column in self.columns]
        if all("=" in word and not Path(word).exists() for word in words):
            cells = {name: value for name, _, value in (word.partition("=") for word in words)}
            table, file, names = tables.make_row(cells), "the command line", [" ".join(words)]
        elif len(words) == 1:
            file = words[0]
            table = tables.read_table(file, **self.format, as_text=True)
            names = [f"{file}, row {number}" for number in range(1, table.height + 1)]
        else:
            raise MisconfigurationException(
                f"{' '.join(words)}: a table takes one file of rows, or one row as {columns[0]}=… and so on."
            )
        tables.refuse_missing(table, columns, file)
        for column, words in tables.unknown_words(table, self.columns).items():
            log.warning(f"{column} has words that training had not, which count as the average: {', '.join(words[:5])}")
        self.inputs = {name: row for row, name in enumerate(names)}
        self.cells = table
        self.rows = tables.encode_rows(table, self.columns)
        self.unreadable = tables.unreadable_cells(table, self.columns)
        return names

    def read_input(self, name: str) -> Tensor:
        """A row as a float32 tensor (columns,).

        Raises:
            ValueError: if it has a word where training had numbers.
        """
        row = self.inputs[name]
        if row in self.unreadable:
            raise ValueError(self.unreadable[row])
        return self.rows[row]

    def describe_input(self, name: str) -> dict[str, Any]:
        """The cells of a row, for `predict.py` to write before the prediction."""
        return self.cells.row(self.inputs[name], named=True)

    def describe_tensor(self) -> list[str]:
        """Describes each column of a row, for users of an exported model."""
        lines = []
        for column in self.columns:
            words = [f"{place} for {word}" for place, word in enumerate(column.get("words", []))]
            lines.append(f"{column['name']}: {', '.join(words) or 'a number'}; NaN where it is missing")
        return lines

    def train_dataloader(self):
        return BatchLoader(self.train_set, self.batch_size, shuffle_seed(self))

    def val_dataloader(self):
        return BatchLoader(self.val_set, self.batch_size)

    def test_dataloader(self):
        return BatchLoader(self.test_set, self.batch_size)
