"""Tables: what a column is, what is known from the training part alone, and bad tables in one line."""

import gzip

import numpy as np
import pytest
import torch

from data_sets._batches import make_batches
from data_sets.CSV import CSV
from data_sets.DIABETES import DIABETES
from pruning.errors import UsageError
from tests.support.tiers import thorough


def refusal(*arguments, **named):
    """The message, which must be one line."""
    with pytest.raises(UsageError) as caught:
        CSV(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.fixture
def write(tmp_path):
    """Writes a table and returns its path; rows are tuples, the first one the names of the columns."""

    def written(*rows, name="table.csv", delimiter=","):
        lines = [delimiter.join(map(str, row)) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return str(tmp_path / name)

    return written


ROWS = [(number / 10, "red" if number % 2 else "blue", number % 3) for number in range(30)]


def test_diabetes_is_standardised_by_its_training_part_alone():
    inputs, targets = DIABETES().train()
    assert inputs.shape == (354, 10) and targets.shape == (354, 1) and DIABETES().test()[0].shape == (88, 10)
    for columns in (inputs, targets):
        torch.testing.assert_close(columns.mean(0), torch.zeros(columns.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(columns.std(0, correction=0), torch.ones(columns.shape[1]), atol=1e-5, rtol=0)
    assert torch.equal(DIABETES().train()[0], inputs)


@thorough  # scikit-learn takes seconds to import
def test_diabetes_is_scikit_learns_table():
    from sklearn.datasets import load_diabetes

    data_set = DIABETES()
    (inputs, targets), (test_inputs, test_targets) = data_set.train(), data_set.test()
    raw, numbers = load_diabetes(return_X_y=True, scaled=False)
    back = targets.double() * data_set.target_std + data_set.target_mean
    together = torch.cat([back, test_targets.double() * data_set.target_std + data_set.target_mean]).flatten()
    torch.testing.assert_close(together.sort().values, torch.from_numpy(numbers).sort().values, rtol=1e-5, atol=1e-4)
    for column in range(10):
        values = torch.cat([inputs[:, column], test_inputs[:, column]]).double().sort().values
        expected = torch.from_numpy(np.sort(raw[:, column]))
        # One straight line leads from the one to the other.
        assert abs(np.corrcoef(values, expected)[0, 1] - 1) < 1e-6


def test_batches_of_a_table_are_its_rows():
    batches = make_batches(DIABETES(), "test", batch_size=100, device="cpu")
    ((inputs, targets),) = batches
    assert torch.equal(inputs, DIABETES().test()[0]) and torch.equal(targets, DIABETES().test()[1])


def test_numbers_are_standardised_and_words_have_an_input_each(write):
    data_set = CSV(write(("size", "colour", "kind"), *ROWS), "kind")
    assert data_set.task == "classification" and data_set.classes == ["0", "1", "2"]
    assert data_set.input_shape == (3,) and data_set.num_classes == 3
    (inputs, targets), (test_inputs, test_targets) = data_set.train(), data_set.test()
    assert (len(inputs), len(test_inputs)) == (24, 6)
    assert test_targets.bincount().tolist() == [2, 2, 2]
    assert inputs[:, 0].mean().abs() < 1e-6 and abs(inputs[:, 0].std(correction=0) - 1) < 1e-6
    # Every row is one of those written: its number tells which, and the other columns must be that row's.
    sizes = torch.cat([inputs, test_inputs])[:, 0]
    ranks = sizes.argsort().argsort()
    for row, (rank, target) in enumerate(zip(ranks.tolist(), torch.cat([targets, test_targets]).tolist(), strict=True)):
        assert target == ROWS[rank][2]
        blue, red = torch.cat([inputs, test_inputs])[row, 1:].tolist()
        assert (blue, red) == ((0, 1) if ROWS[rank][1] == "red" else (1, 0))


@pytest.mark.parametrize(
    ("targets", "task", "classes"),
    [
        (["yes", "no"] * 10, "classification", ["no", "yes"]),
        ([10, 9, 2] * 7, "classification", ["2", "9", "10"]),
        (["1", "1.0", "0"] * 7, "classification", ["0", "1"]),
        ([0.5, 1.5] * 10, "regression", None),
        (range(21), "regression", None),
        (range(20), "classification", [str(number) for number in range(20)]),
    ],
)
def test_the_target_says_which_task_it_is(write, targets, task, classes):
    rows = [(number, target) for number, target in enumerate([*targets] * 3)]
    data_set = CSV(write(("a", "b"), *rows), "b")
    assert data_set.task == task and getattr(data_set, "classes", None) == classes
    if task == "regression":
        assert data_set.num_classes == 1 and data_set.train()[1].shape[1] == 1
        assert data_set.train()[1].mean().abs() < 1e-5


def test_the_user_says_it_otherwise(write):
    path = write(("a", "b"), *[(number, number % 3 + 100 * (number % 8)) for number in range(96)])
    assert CSV(path, "b").task == "regression"
    assert CSV(path, "b", "classification").num_classes == 24
    assert CSV(write(("a", "b"), (1, 0), (2, 1), (3, 1)), "b", "regression").train()[1].is_floating_point()
    assert "language" in refusal(path, "b", "language")


def test_a_folders_own_parts_are_taken_and_only_the_training_part_is_learnt_from(write, tmp_path):
    write(("a", "w", "y"), (1, "u", "p"), (3, "v", "q"), name="train.csv")
    write(("y", "w", "a"), ("q", "new", 5), ("p", "u", ""), name="test.csv")
    data_set = CSV(str(tmp_path), "y")
    assert torch.equal(data_set.train()[0], torch.tensor([[-1.0, 1, 0], [1, 0, 1]]))
    assert torch.equal(data_set.test()[0], torch.tensor([[3.0, 0, 0], [0, 1, 0]]))
    assert data_set.test()[1].tolist() == [1, 0]
    assert any("'a' is empty in 1 rows" in note for note in data_set.notes)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_and_quotes(write, delimiter):
    rows = [(f'"{number}{delimiter}5"', number % 2) for number in range(10)]
    data_set = CSV(write(('"long name"', "y"), *rows, delimiter=delimiter), "y")
    assert data_set.input_shape == (8,) and data_set.num_classes == 2  # a word for each row of training


def test_a_column_of_names_is_left_out_and_said(write):
    rows = [(number, f"name {number}", number % 2) for number in range(200)]
    data_set = CSV(write(("a", "who", "y"), *rows), "y")
    assert data_set.input_shape == (1,) and "'who' is left out" in " ".join(data_set.notes)


@pytest.mark.parametrize(
    ("rows", "column", "says"),
    [
        ([("size", "y"), (1, 2), (2, 3)], "sise", "Did you mean size"),
        ([("size", "y"), (1, 2), (2, 3)], "", "--target_column"),
        ([("size", "y"), (1, 2), (2, 3, 4)], "y", "line 3 has 3 fields, not 2"),
        ([("y", "y"), (1, 2)], "y", "'y' twice"),
        ([(1, 2), (1, 2)], "1", "must name the columns"),
        ([("y",), (1,)], "y", "1 column"),
        ([("a", "y")], "y", "no rows"),
        ([("a", "y"), (1, 2)], "y", "1 row"),
        ([("a", "y"), (1, 2), (2, ""), (3, 4)], "y", "line 3: the target 'y' is empty"),
        (
            [("a", "y"), (1, 0.5), (2, "x"), (3, 4.5), (4, 4.5)],
            "y",
            "line 3: column 'y' must hold a number; it has 'x'",
        ),
        ([("a", "y"), (1, 0), (2, 1), ("x", 0), (4, 0)], "y", "line 4: column 'a' must hold a number; it has 'x'"),
        ([("w", "y"), *((f"n{number}", number % 2) for number in range(200))], "y", "'w' is left out"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(write, rows, column, says):
    assert says in refusal(write(*rows), column)


def test_places_without_a_table_are_refused(write, tmp_path):
    assert str(tmp_path / "none") in refusal(str(tmp_path / "none"), "y")
    assert "no table" in refusal(str(tmp_path), "y")
    write(("a", "y"), (1, 2), name="b.csv")
    write(("a", "y"), (1, 2), name="c.csv")
    assert "b.csv, c.csv" in refusal(str(tmp_path), "y")
    assert ".csv, .tsv" in refusal(write(("a", "y"), (1, 2), name="b.xlsx"), "y")
    (tmp_path / "z.csv").write_bytes(gzip.compress(b"a,y\n1,2\n"))
    assert "cannot be read" in refusal(str(tmp_path / "z.csv"), "y")


def test_a_class_that_only_the_test_part_has_is_refused(write, tmp_path):
    write(("a", "y"), (1, "p"), (3, "q"), name="train.csv")
    write(("a", "y"), (1, "r"), name="test.csv")
    assert "line 2: the target 'y' has 'r'" in refusal(str(tmp_path), "y")
    write(("b", "y"), (1, "p"), name="test.csv")
    assert "no column 'a'" in refusal(str(tmp_path), "y")
