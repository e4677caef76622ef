"""Data module for your own table: the rows of a CSV or Parquet file."""

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
    """Regression or classification of one column of a table from other columns.

    Batches are pairs of rows, float32 (N, columns) from ``tables.encode_rows``, and targets, float32 (N,) in the unit
    of the column or int64 labels (N,). The model standardizes both with constants of the training rows. Rows without a
    target are ignored. The run folder stores the split of each row; resumed and evaluated runs read it from there.

    Arguments that are None are determined from the file when a run starts, and stored in its config.

    Args:
        file: path of the table, see ``tables.read_table``.
        target: name of the column to predict.
        task: ``regression`` or ``classification``. None: regression for numbers, classification for words.
        features: names of the columns to predict the target from. None: all other columns.
        ignore: names of columns to ignore.
        categories: names of columns whose numbers are categories, such as postcodes.
        separator: see ``tables.read_table``.
        decimal: see ``tables.read_table``.
        split_column: name of a column that contains the split of each row: train, val or test. A split that it does
            not contain is split off the training rows. None: no such column.
        shuffle: whether to split at random, stratified by class. If false, the first rows are for training and the
            last rows for testing, as for a time series. Training batches are always shuffled.
        val_share: fraction of the rows for validation, in (0, 1).
        test_share: fraction of the rows for testing, in (0, 1).
        num_folds: number of folds of the rows outside the test split, for cross-validation. None: no folds.
        fold: the fold for validation, from 0 to ``num_folds - 1``.
        split_file: file that stores the splits of this run; read if it exists, written otherwise.
        batch_size: rows per step. None: all training rows, up to 4,096.
        seed: seed of the splits and of the order of the training batches.
        columns: descriptions of the feature columns, see ``tables.describe_columns``.
        class_names: class names in the order of the labels, for classification.
        num_classes: number of classes; None for regression.
        num_outputs: number of outputs of the network: 1 for regression, ``num_classes`` for classification.
        in_features: length of an encoded row, see ``tables.TableEncoder``.
        target_mean: mean target of the training rows, for regression.
        target_std: standard deviation of the target of the training rows, for regression.

    Raises:
        MisconfigurationException: if the file or a column is invalid; the message says what to do.
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
            raise MisconfigurationException(f"data.task is {task}; it must be regression, classification or null.")
        for name, share in self.shares.items():
            if not 0 < share < 1:
                raise MisconfigurationException(f"data.{name}_share is {share}; it must be between 0 and 1.")
        check_folds(num_folds, fold)
        if num_folds is not None and (split_column or not shuffle):
            other = f"data.split_column={split_column}" if split_column else "data.shuffle=false"
            raise MisconfigurationException(f"data.num_folds splits rows at random, but {other} does not. Choose one.")

    def facts(self) -> dict[str, Any]:
        """Return the values that the config leaves open, read from the file."""
        self._read()
        names = ("task", "batch_size", "columns", "class_names", "num_classes", "num_outputs", "in_features")
        return {name: getattr(self, name) for name in (*names, "target_mean", "target_std")}

    def class_counts(self) -> list[int]:
        """Return the number of training rows of each class."""
        return self.train_set.tensors[1].bincount(minlength=self.num_classes or 0).tolist()

    def setup(self, stage: str) -> None:
        if not hasattr(self, "train_set"):
            self._read()

    def _read(self) -> None:
        """Read the three splits."""
        table = tables.read_table(self.file, **self.format, categories=self.categories)
        features = self._find_features(table)
        tables.refuse_missing(table, [column["name"] for column in self.columns], self.file)
        known = table.drop_nulls(self.target)
        if (left_out := table.height - known.height) and not self.columns:
            log.info(f"{left_out} rows of {self.file} have no {self.target} and are ignored.")
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
                f"data.target={self.target} is also in data.features; a column cannot be predicted from itself. "
                "Remove it from data.features."
            )
        if not features:
            raise MisconfigurationException(f"{self.file} has no column to predict {self.target} from.")
        return features

    def _read_targets(self, known: Any) -> Tensor:
        """Return the targets: float64 numbers (N,) or int64 labels (N,)."""
        column = known[self.target]
        if not len(column):
            raise MisconfigurationException(f"The column {self.target} of {self.file} is empty.")
        if column.dtype.is_temporal():
            raise MisconfigurationException(
                f"The column {self.target} has dates, such as {column[0]}. Replace them by numbers, such as the year."
            )
        has_words = tables.is_text(column) or column.dtype.base_type().__name__ in ("Boolean", "Categorical", "Enum")
        if self.task is None and self.target not in self.categories:
            tables.refuse_written_numbers(column)
        if self.task is None:
            self.task = "classification" if has_words else "regression"
            few = column.n_unique()
            if self.task == "regression" and few <= 10 < len(column):
                log.info(
                    f"{self.target} has {few} different values and is predicted as a number. If they are classes, "
                    "set data.task=classification"
                )
        if self.task == "regression":
            numbers = tables.as_numbers(column)
            if numbers.null_count():
                word = column.filter(numbers.is_null())[0]
                raise MisconfigurationException(
                    f"The column {self.target} has {word!r}, which is not a number; regression needs numbers. "
                    "Correct it, or treat each value as a class: data.task=classification"
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
                    "classes. Choose another column: data.target=…"
                )
            self.num_classes = self.num_outputs = len(found)
        labels = {name: label for label, name in enumerate(self.class_names)}
        names = [str(value) for value in column.to_list()]
        if unknown := sorted(set(names) - set(labels)):
            raise MisconfigurationException(
                f"{self.file} has the class {unknown[0]}; the classes of this run are: {', '.join(labels)}."
            )
        return torch.tensor([labels[name] for name in names])

    def _split(self, known: Any, targets: Tensor) -> dict[str, Tensor]:
        """Return the row indices of each split, int64."""
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
                raise MisconfigurationException(f"{self.file} has {known.height} rows, too few for three splits.")
            splits = dict(zip(("train", "val", "test"), torch.arange(known.height).split(sizes), strict=True))
        # In the order in which a resumed run reads them, so that it gets the same batches.
        splits = {split: rows.sort().values for split, rows in splits.items()}
        if labels is not None and (missing := set(labels.tolist()) - set(labels[splits["train"]].tolist())):
            names = ", ".join(self.class_names[label] for label in sorted(missing))  # pyrefly: ignore
            raise MisconfigurationException(f"No training row has the class {names}, but rows of other splits do.")
        if self.split_file.parent.is_dir():
            write_row_splits(self.split_file, splits)
        return splits

    def find_inputs(self, words: Sequence[str]) -> Sequence[str]:
        """Return a name for each row in the arguments of `predict.py`: ``bmi=31 age=50``, or one file of rows."""
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
                f"{' '.join(words)}: pass one file of rows, or the columns of one row, such as {columns[0]}=…"
            )
        tables.refuse_missing(table, columns, file)
        for column, words in tables.unknown_words(table, self.columns).items():
            log.warning(f"{column} has words that training did not; they count as the average: {', '.join(words[:5])}")
        self.inputs = {name: row for row, name in enumerate(names)}
        self.cells = table
        self.rows = tables.encode_rows(table, self.columns)
        self.unreadable = tables.unreadable_cells(table, self.columns)
        return names

    def read_input(self, name: str) -> Tensor:
        """Return a row as a float32 tensor (columns,).

        Raises:
            ValueError: if it has a word in a column of numbers.
        """
        row = self.inputs[name]
        if row in self.unreadable:
            raise ValueError(self.unreadable[row])
        return self.rows[row]

    def describe_input(self, name: str) -> dict[str, Any]:
        """Return the cells of a row, which `predict.py` writes before the prediction."""
        return self.cells.row(self.inputs[name], named=True)

    def describe_tensor(self) -> list[str]:
        """Describe each column of an encoded row, for users of an exported model."""
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
