"""Tests of tables: training, resuming, evaluation, prediction, export and errors."""

import csv
import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch

import torch_starter
from conftest import skip_if_deleted, weights

polars = pytest.importorskip("polars", reason="it is not installed: pip install -e .")

QUICK = ("trainer.accelerator=cpu", "callbacks.table_figures=null", "callbacks.classifier_figures=null")
SHORT = (*QUICK, "trainer.max_epochs=2")


@pytest.fixture(autouse=True)
def _skip_if_deleted():
    skip_if_deleted(["experiment=table"])


def write(path: Path, names: list[str], rows: list, **options) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows([names, *rows])
    return path


@pytest.fixture
def flats(tmp_path) -> Path:
    """Write a table of 100 flats: the rent depends on district, area (sometimes missing) and balcony."""
    draw = random.Random(0)
    rows = []
    for number in range(100):
        area, district, has_balcony = draw.uniform(30, 120), draw.choice(["01067", "10115", "80331"]), number % 3 == 0
        rent = 10 * area + 300 * (district == "80331") + 50 * has_balcony + draw.gauss(0, 5)
        size = "large" if area > 75 else "small"
        rows.append([f"{area:.2f}" if number % 10 else "NA", district, has_balcony, f"{rent:.2f}", size, number])
    return write(tmp_path / "flats.csv", ["area", "district", "balcony", "rent", "size", "number"], rows)


@pytest.fixture
def table(train, flats):
    """Return a function that trains on the flats to predict ``target``."""

    def table(target: str, *arguments: str, file: Path = flats) -> Path:
        ignored = "data.ignore=[number]" if not any("ignore" in argument for argument in arguments) else ""
        options = [argument for argument in (f"data.file={file}", f"data.target={target}", ignored) if argument]
        return train("experiment=table", *options, *SHORT, *arguments)[0]

    return table


def rent(table, *arguments: str) -> Path:
    return table("rent", "data.ignore=[number,size]", "data.categories=[district]", *arguments)


def size(table, *arguments: str) -> Path:
    return table("size", "data.ignore=[number,rent]", "data.categories=[district]", *arguments)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measured(run: Path) -> dict[str, float]:
    return json.loads((run / "results.json").read_text())["metrics"]


def splits(run: Path) -> list[str]:
    return (run / "split.csv").read_text().splitlines()[1:]


def config(run: Path):
    return torch_starter.load_run(run).config


def test_regression_learns_from_numbers_words_and_missing_values(table):
    run = rent(table, "trainer.max_epochs=100", "optimizer.lr=0.1")
    metrics = measured(run)
    # A tenth of the areas is missing.
    assert metrics["test/r2"] > 0.5
    assert metrics["test/mae"] < 150
    data = config(run).data
    assert data.task == "regression"
    assert [column["name"] for column in data.columns] == ["area", "district", "balcony"]
    assert data.columns[0]["missing"] == pytest.approx(0.1, abs=0.05)
    assert data.columns[1]["words"] == ["01067", "10115", "80331"]
    known = torch_starter.load_run(run).predict({"area": 100, "district": "80331", "balcony": True})
    assert known[0]["prediction"] == pytest.approx(1350, abs=60)


def test_classification_learns(table):
    run = size(table, "model=logistic_regression", "trainer.max_epochs=60", "optimizer.lr=0.1")
    assert measured(run)["test/acc"] >= 0.85
    assert list(config(run).data.class_names) == ["large", "small"]
    counted = [sum(split == name for split in splits(run)) for name in ("train", "val", "test")]
    assert counted == [70, 10, 20]


def test_decimal_commas_are_read(table, flats, tmp_path):
    rows = [list(row.values()) for row in read_rows(flats)]
    rows = [[cell.replace(".", ",") for cell in row] for row in rows]
    european = write(tmp_path / "european.csv", list(read_rows(flats)[0]), rows, delimiter=";")
    plain = rent(table)
    again = table("rent", "data.ignore=[number,size]", "data.categories=[district]", file=european)
    assert measured(again) == measured(plain)


@pytest.mark.slow
def test_parquet_matches_csv(table, flats, tmp_path):
    frame = polars.read_csv(flats, null_values="NA", schema_overrides={"district": polars.String})
    frame.with_columns(polars.col("district").cast(polars.Categorical)).write_parquet(tmp_path / "flats.parquet")
    plain = rent(table)
    again = table("rent", "data.ignore=[number,size]", file=tmp_path / "flats.parquet")
    assert measured(again) == measured(plain)
    predicted = torch_starter.load_run(again).predict(str(tmp_path / "flats.parquet"))
    from_csv = torch_starter.load_run(plain).predict(str(flats))
    assert [row["prediction"] for row in predicted] == [row["prediction"] for row in from_csv]


def test_unshuffled_split_keeps_order(table):
    names = splits(rent(table, "data.shuffle=false"))
    assert names == ["train"] * 70 + ["val"] * 10 + ["test"] * 20


def test_split_column_defines_splits(table, flats, tmp_path):
    rows = [[*row.values(), "Test" if number % 5 == 0 else "train"] for number, row in enumerate(read_rows(flats))]
    named = write(tmp_path / "named.csv", [*read_rows(flats)[0], "part"], rows)
    run = table("rent", "data.split_column=part", "data.ignore=[number,size]", file=named)
    names = splits(run)
    assert [number for number, name in enumerate(names) if name == "test"] == list(range(0, 100, 5))
    assert names.count("val") == 8
    assert "part" not in [column["name"] for column in config(run).data.columns]


@pytest.mark.slow
def test_each_row_is_in_one_validation_fold(table):
    folds = [splits(rent(table, "data.num_folds=4", f"data.fold={fold}", "trainer.max_epochs=1")) for fold in range(4)]
    for row in zip(*folds, strict=True):
        assert set(row) == {"test"} or sorted(row) == ["train", "train", "train", "val"]


@pytest.mark.slow
def test_balanced_loss_weights_rare_class(table):
    run = table(
        "balcony", "data.ignore=[number,size,rent]", "data.categories=[district]", "loss=cross_entropy",
        "loss.weight=balanced",
    )  # fmt: skip
    weight = torch_starter.load_run(run).module.loss.weight
    assert weight[1] / weight[0] == pytest.approx(2, abs=0.1)  # a third of the flats have a balcony


def test_resumed_run_equals_uninterrupted_run(table, script, tmp_path):
    model = ["model=mlp", "data.batch_size=16", "scheduler=constant"]
    whole = size(table, *model, "trainer.max_epochs=6")
    run = size(table, *model, "trainer.max_epochs=3")
    script("resume.py", run, "trainer.max_epochs=6")
    wanted, found = weights(whole), weights(run)
    assert wanted.keys() == found.keys()
    assert all(found[key].equal(wanted[key]) for key in wanted)
    assert splits(run) == splits(whole)


def test_moved_run_keeps_its_split(table, script, tmp_path, capsys):
    run = size(table)
    before = measured(run)
    moved = shutil.move(run, tmp_path / "elsewhere")
    capsys.readouterr()
    script("evaluate.py", moved)
    printed = capsys.readouterr().out
    assert f"{before['test/acc']:.4f}" in printed


def test_changed_table_is_rejected(table, flats, script):
    run = size(table)
    flats.write_text(flats.read_text() + "50,10115,True,700,small,100\n")
    assert "the table has changed since this run was started" in refusal(script, "evaluate.py", run)


def refusal(function, *arguments) -> str:
    """Return the message with which a script exits with status 1."""
    with pytest.raises(SystemExit) as end:
        function(*arguments)
    assert isinstance(end.value.code, str), end.value.code
    return end.value.code


def predicted(script, run: Path, tmp_path: Path, *arguments: object) -> list[dict[str, str]]:
    script("predict.py", run, *arguments, "--output", tmp_path / "predictions.csv")
    return read_rows(tmp_path / "predictions.csv")


def test_column_order_does_not_change_predictions(table, script, flats, tmp_path):
    run = rent(table)
    wanted = predicted(script, run, tmp_path, flats)
    rows = read_rows(flats)
    assert [row["area"] for row in wanted] == [row["area"] if row["area"] != "NA" else "" for row in rows]
    names = ["note", "balcony", "district", "area"]
    other = write(tmp_path / "other.csv", names, [["x", *(row[name] for name in names[1:])] for row in rows])
    found = predicted(script, run, tmp_path, other)
    assert [row["prediction"] for row in found] == [row["prediction"] for row in wanted]
    assert list(found[0]) == [*names, "prediction"]


@pytest.mark.slow
def test_unknown_words_and_missing_values_count_as_average(table, script, tmp_path):
    run = rent(table)
    rows = [["50", "99999", ""], ["50", "", ""], ["", "10115", "True"]]
    unknown, missing, other = predicted(
        script, run, tmp_path, write(tmp_path / "few.csv", ["area", "district", "balcony"], rows)
    )
    assert unknown["prediction"] == missing["prediction"] != other["prediction"]
    assert all(math.isfinite(float(row["prediction"])) for row in (unknown, missing, other))


@pytest.mark.slow
def test_row_with_invalid_number_is_skipped(table, script, tmp_path):
    run = rent(table)
    few = write(tmp_path / "few.csv", ["area", "district", "balcony"], [["big", "10115", "True"], [50, "10115", 0]])
    said = refusal(script, "predict.py", run, few, "--output", tmp_path / "predictions.csv")
    assert "row 1: skipped, area is big, which is not a number" in said
    assert len(read_rows(tmp_path / "predictions.csv")) == 1


def test_missing_column_is_reported(table, script, tmp_path):
    run = rent(table)
    few = write(tmp_path / "few.csv", ["areas", "district", "balcony"], [[50, "10115", "True"]])
    assert "few.csv has no column area. Nearest: areas." in refusal(script, "predict.py", run, few)
    assert "no column balcony" in refusal(script, "predict.py", run, "area=50", "district=10115")
    # A column may have the name of a config key.
    assert "no column area" in refusal(script, "predict.py", run, "seed=late")
    assert "no column area" in refusal(script, "predict.py", run, "=3")


def test_command_line_row_matches_python_row(table, script, tmp_path):
    run = rent(table)
    (row,) = predicted(script, run, tmp_path, "district=10115", "area=50,5", "balcony=true", "more=1")
    loaded = torch_starter.load_run("latest")
    (same,) = loaded.predict({"area": 50.5, "district": "10115", "balcony": True})
    assert float(row["prediction"]) == same["prediction"]
    (gap,) = loaded.predict({"area": None, "district": "10115", "balcony": float("nan")})
    assert math.isfinite(gap["prediction"])


def test_predictions_list_top_classes_and_probabilities(table, script, flats, tmp_path):
    run = table("district", "data.ignore=[number,rent]", "data.task=classification")
    rows = predicted(script, run, tmp_path, flats, "--top", 2, "--probabilities")
    names = list(config(run).data.class_names)
    assert len(names) == 3
    for row in rows:
        probabilities = {name: float(row[f"probability_of_{name}"]) for name in names}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        first, second, _ = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
        assert (row["label"], row["label_2"]) == (first, second)
        assert float(row["probability_2"]) == pytest.approx(probabilities[second])


@pytest.mark.slow
def test_predicted_label_does_not_replace_label_column(table, script, tmp_path, flats):
    rows = [list(row.values()) for row in read_rows(flats)]
    named = write(tmp_path / "named.csv", ["label", "district", "balcony", "rent", "size", "number"], rows)
    run = table("size", "data.ignore=[number,rent]", file=named)
    (row,) = predicted(script, run, tmp_path, "label=50", "district=10115", "balcony=True")
    assert row["label"] == "50"
    assert row["predicted_label"] in ("large", "small")


@pytest.mark.slow
def test_onnx_model_handles_missing_values_and_codes(table, script, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason='it is not installed: pip install -e ".[export]"')
    run = rent(table)
    script("export.py", run)
    assert "district: 0 for 01067, 1 for 10115, 2 for 80331; NaN where it is missing" in capsys.readouterr().out
    rows = numpy.array([[50, 1, 1], [numpy.nan, numpy.nan, numpy.nan]], dtype=numpy.float32)
    session = onnxruntime.InferenceSession(run / "model.onnx")
    (outputs,) = session.run(None, {session.get_inputs()[0].name: rows})
    cells = [{"area": 50, "district": "10115", "balcony": True}, dict.fromkeys(("area", "district", "balcony"))]
    loaded = torch_starter.load_run(run)
    wanted = [loaded.predict(row)[0]["prediction"] for row in cells]
    assert outputs.flatten().tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data.target=rents"], "has no column rents. Nearest: rent"),
        (["data.target=rent", "data.features=[rent,area]"], "cannot be predicted from itself"),
        (["data.target=rent", "data.ignore=[sizes]"], "has no column sizes. Nearest: size"),
        (["data.target=rent", "data.file=nothing.csv"], "nothing.csv does not exist"),
        (["data.target=size", "loss=mse"], "The loss MSELoss does not accept"),
        (["data.target=rent", "loss=cross_entropy"], "loss=cross_entropy is for classes"),
        (["data.target=size", "metrics=[f11]"], "Did you mean f1?"),
        (["data.target=size", "callbacks.best_checkpoint.monitor=val/nope"], "val/nope, but no such metric is logged"),
        (["data.target=size", "loss=cross_entropy", "loss.weight=[1,2,3]"], "must be 2 numbers, one per class"),
        (["data.target=rent", "data.num_folds=5", "data.fold=7"], "data.fold is 7; with data.num_folds=5"),
        (["data.target=rent", "data.val_share=1.5"], "data.val_share is 1.5"),
        (["data.target=rent", "data.task=clustering"], "data.task is clustering"),
        (["data.target=size", "data.task=regression"], "which is not a number"),
        (["data.target=number", "data.task=classification"], "too many for classes"),
        (["data.target=rent", "data.split_column=size"], "it must be train, val or test"),
        (["data.target=rent", "data.num_folds=5", "data.shuffle=false"], "Choose one"),
    ],
)
def test_invalid_settings_raise_before_training(train, flats, tmp_path, arguments, said):
    message = refusal(train, "experiment=table", f"data.file={flats}", *SHORT, *arguments)
    assert said in message
    assert not list(tmp_path.glob("outputs/**/.hydra"))


ROWS = "".join(f"{number},{number % 2},{'xy'[number % 2]}\n" for number in range(30))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("table.csv", "", "is empty"),
        ("table.csv", "a,b,y\n", "has no rows"),
        ("table.xlsx", "PK\x03\x04", "is a spreadsheet"),
        ("table.csv", "a,b,y\n1,2,x\n3,4\n", "line 3 has 2 columns, but the first line names 3"),
        ("table.csv", "a,b,b\n" + ROWS, "two columns named b"),
        ("table.csv", "a,b,y\n" + ROWS.replace("x", "y"), "has only one class, y"),
        ("table.csv", "a,b,y\n" + ROWS.replace(",0,", ",1,"), "only one value: b"),
        ("table.csv", "a,b,y\n" + ROWS.replace(",0,", ",many,"), "is a mix of numbers and words"),
        ("table.csv", "a,b,y\n" + ROWS.replace(",0,", ",,").replace(",1,", ",,"), "no value in any training row: b"),
        (
            "table.csv",
            "a,b,y\n" + ROWS.replace(",0,", ",2024-03-01,").replace(",1,", ",2024-03-02,"),
            "has dates, such as 2024-03-0",
        ),
        ("table.csv", "a,b,y\n1,2,x\n2,3,y\n3,1,x\n4,1,y\n", "too few rows"),
        ("table.csv", "y\nx\nz\nx\n", "no column to predict y from"),
    ],
)
def test_invalid_tables_raise_before_training(train, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    message = refusal(train, "experiment=table", f"data.file={name}", "data.target=y", *SHORT)
    assert said in message
    assert not list(tmp_path.glob("outputs/**/.hydra"))


@pytest.mark.slow
def test_table_with_two_thousand_columns_trains(train, tmp_path):
    draw = random.Random(0)
    names = [f"gene {number}" for number in range(2000)]
    rows = [[f"{draw.gauss(0, 1):.3f}" for _ in names] + ["xy"[number % 2]] for number in range(40)]
    file = write(tmp_path / "genes.csv", [*names, "kind"], rows)
    (run,) = train("experiment=table", f"data.file={file}", "data.target=kind", *SHORT, "trainer.max_epochs=2")
    assert config(run).data.in_features == 2000


@pytest.mark.slow
def test_two_processes_match_one_process(table):
    one = rent(table, "data.batch_size=32")
    two = rent(table, "data.batch_size=32", "trainer=ddp", "trainer.devices=2")
    for key, value in weights(one).items():
        torch.testing.assert_close(weights(two)[key], value, rtol=1e-4, atol=1e-5)
    assert splits(one) == splits(two)
    assert measured(two) == pytest.approx(measured(one), rel=1e-3)


@pytest.mark.slow
def test_coefficients_equal_least_squares(train, tmp_path, capfd):
    datasets = pytest.importorskip("sklearn.datasets", reason="it is not installed: pip install scikit-learn")
    from sklearn.linear_model import LinearRegression

    data = datasets.load_diabetes(scaled=False)
    rows = numpy.column_stack([data.data, data.target])
    file = write(tmp_path / "diabetes.csv", [*data.feature_names, "progression"], rows.tolist())
    (run,) = train("experiment=table", f"data.file={file}", "data.target=progression", "trainer.accelerator=cpu")
    printed = capfd.readouterr().out
    is_train, is_test = (numpy.array(splits(run)) == split for split in ("train", "test"))
    wanted = LinearRegression().fit(data.data[is_train], data.target[is_train])
    assert measured(run)["test/r2"] == pytest.approx(wanted.score(data.data[is_test], data.target[is_test]), abs=5e-4)
    found = dict(line.split(" times ")[::-1] for line in printed.splitlines() if " times " in line)
    for name, coefficient in zip(data.feature_names, wanted.coef_, strict=True):
        assert float(found[name]) == pytest.approx(coefficient, rel=5e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("model", ["logistic_regression", "mlp"])
@pytest.mark.parametrize("dataset", ["iris", "wine", "breast_cancer"])
def test_classifiers_match_scikit_learn_accuracy(train, tmp_path, dataset, model):
    datasets = pytest.importorskip("sklearn.datasets", reason="it is not installed: pip install scikit-learn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = getattr(datasets, f"load_{dataset}")()
    kinds = data.target_names[data.target]
    rows = [[*map(float, row), kind] for row, kind in zip(data.data, kinds, strict=True)]
    file = write(tmp_path / "rows.csv", [*data.feature_names, "kind"], rows)
    found, wanted = [], []
    for seed in range(5):
        options = ["data.target=kind", f"model={model}", f"seed={seed}", *QUICK]
        (run,) = train("experiment=table", f"data.file={file}", *options)
        found.append(measured(run)["test/acc"])
        is_train, is_test = (numpy.array(splits(run)) == split for split in ("train", "test"))
        theirs = (
            LogisticRegression(max_iter=2000)
            if model == "logistic_regression"
            else MLPClassifier((64, 64), max_iter=1000, random_state=seed)
        )
        fitted = make_pipeline(StandardScaler(), theirs).fit(data.data[is_train], kinds[is_train])
        wanted.append(fitted.score(data.data[is_test], kinds[is_test]))
    assert numpy.mean(found) >= numpy.mean(wanted) - 0.01


def test_targets_far_from_zero_train_in_half_precision(train, tmp_path):
    rows = [[number, 300_000 + 1000 * number] for number in range(100)]
    file = write(tmp_path / "far.csv", ["x", "y"], rows)
    short = ["trainer.max_epochs=200", "optimizer.lr=0.1", "trainer.precision=bf16-mixed", "trainer.accelerator=cpu"]
    (run,) = train("experiment=table", f"data.file={file}", "data.target=y", *short)
    assert measured(run)["test/r2"] > 0.99
    assert measured(run)["test/mae"] < 2000


def test_page_shows_effect_of_each_column(table):
    gradio = pytest.importorskip("gradio", reason='it is not installed: pip install -e ".[demo]"')
    from torch_starter.demo import display
    from torch_starter.demo.predictor import Predictor
    from torch_starter.demo.table import add_table, answer_row, curve, encode_row

    predictor = Predictor(torch_starter.load_run(rent(table)))
    cells = {"area": "80.5", "district": "80331", "balcony": "1"}
    row = encode_row(cells, predictor.run.data.columns)
    html = answer_row(predictor, row)
    (predicted,) = predictor.run.predict(cells)
    assert f"rent = {display.number(predicted['prediction'])}" in html
    average = float(re.search(r"([\d.]+) for the average row", html)[1])
    effects = [float(value) for value in re.findall(r"<span>([+-][\d.e+-]+)</span>", html)]
    assert len(effects) == 3
    assert average + sum(effects) == pytest.approx(predicted["prediction"], rel=1e-3)  # up to the printed precision
    for place, name in enumerate(cells):
        assert f">{name}<" in curve(predictor, row, place)

    with gradio.Blocks() as page:
        add_table(page, predictor)
    fields = {block.label: block for block in page.blocks.values() if getattr(block, "label", None) in cells}
    rows = predictor.run.data.columns
    area, district, balcony = (fields[name] for name in cells)
    assert (area.minimum, area.maximum) == (math.floor(10 * rows[0]["min"]) / 10, math.ceil(10 * rows[0]["max"]) / 10)
    assert area.value == rows[0]["median"]
    assert district.value == max(rows[1]["words"], key=lambda word: rows[1]["shares"][rows[1]["words"].index(word)])
    assert [value for _, value in district.choices] == [*rows[1]["words"], ""]
    assert (balcony.minimum, balcony.maximum, balcony.step) == (0, 1, 1)
    boxes = [block.label for block in page.blocks.values() if isinstance(block, gradio.Checkbox)]
    assert boxes == ["area is missing"]


def test_page_shows_class_probabilities(table):
    pytest.importorskip("gradio", reason='it is not installed: pip install -e ".[demo]"')
    from torch_starter.demo.predictor import Predictor
    from torch_starter.demo.table import answer_row, curve, encode_row

    predictor = Predictor(torch_starter.load_run(table("size", "model=logistic_regression")))
    cells = {"area": "80.5", "district": "80331", "balcony": "", "rent": "1100"}
    row = encode_row(cells, predictor.run.data.columns)
    (predicted,) = predictor.run.predict(cells, probabilities=True)
    expected = [f"{predicted[f'probability_of_{name}']:.1%}" for name in ("large", "small")]
    assert re.findall(r"<span>([\d.]+%)", answer_row(predictor, row)) == expected
    assert ">large<" in curve(predictor, row, 0)


def test_page_handles_unusual_column_names(table, tmp_path):
    pytest.importorskip("gradio", reason='it is not installed: pip install -e ".[demo]"')
    from torch_starter.demo.page import make_page
    from torch_starter.demo.predictor import Predictor
    from torch_starter.demo.table import answer_row, curve, encode_row

    draw = random.Random(0)
    names = ["a=b", "<img src=x>", "$x_", "n" * 300, "code"]
    words = [f"a word of {number} and more" for number in range(40)]
    rows = [
        [draw.random(), draw.choice(words), draw.random(), draw.random(), draw.choice(["", "20240101"]), draw.random()]
        for _ in range(200)
    ]
    predictor = Predictor(
        torch_starter.load_run(table("y", "data.ignore=[]", file=write(tmp_path / "odd.csv", [*names, "y"], rows)))
    )
    columns = predictor.run.data.columns
    fields = {block.label: block for block in make_page(predictor.run).blocks.values() if hasattr(block, "label")}
    assert fields["code"].value == "20240101"
    row = encode_row({name: str(fields[name].value) for name in names}, columns)
    html = answer_row(predictor, row) + "".join(curve(predictor, row, place) for place in range(len(names)))
    assert "<img src" not in html
    assert "&lt;img src=x&gt;" in html
