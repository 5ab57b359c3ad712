import io

from rich.console import Console as RichConsole

from utils.console import Console, ProgressLines, describe_metrics


def test_an_error_is_one_line_whatever_it_says(capsys):
    console = Console()
    console.error("first\n  second [red]third[/red]")
    assert capsys.readouterr().err == "error: first second [red]third[/red]\n"


def test_long_lines_are_not_broken(capsys):
    Console().warn("x" * 500)
    assert capsys.readouterr().err == f"warning: {'x' * 500}\n"


def test_quiet_leaves_out_information_only(capsys):
    console = Console()
    console.take(quiet=True, warnings=["careful"])
    console.info("nothing to see")
    console.error("wrong")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "warning: careful\nerror: wrong\n"


def test_everything_goes_to_the_log(capsys, tmp_path):
    console = Console(quiet=True)
    console.log_file = tmp_path / "log.txt"
    console.info("a")
    console.warn("b")
    console.error("c")
    console.table("Title", [("what", "much")], tmp_path)
    assert console.log_file.read_text().splitlines() == ["a", "warning: b", "error: c", "what: much"]


def test_brackets_in_a_table_are_text(capsys, tmp_path):
    Console().table("Title", [("share [low, high]", "[quartiles] [red]")], tmp_path)
    printed = capsys.readouterr().out
    assert "share [low, high]" in printed and "[quartiles] [red]" in printed


def test_progress_bars_are_for_terminals(capsys):
    assert list(Console().track([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr().out == ""
    for quiet in (False, True):
        console = Console(quiet=quiet)
        console.out = RichConsole(file=io.StringIO(), force_terminal=True)
        assert list(console.track([1, 2, 3], "counting")) == [1, 2, 3]
        assert ("counting" in console.out.file.getvalue()) == (not quiet)


def test_a_log_that_cannot_be_written_ends_nothing(capsys, tmp_path):
    console = Console()
    console.log_file = tmp_path / "gone" / "log.txt"
    console.info("a")
    console.info("b")
    printed = capsys.readouterr()
    assert printed.out == "a\nb\n"
    assert printed.err.count("the log cannot be written") == 1


class FakeNetwork:
    def weight_sparsity(self):
        return 0.5


class FakeTrainer:
    epochs, epoch, batch, train_batches, network = 4, 0, 0, range(10), FakeNetwork()
    metrics = {"train_loss": 1.0, "train_accuracy": 0.25, "test_accuracy": 0.75, "other": 3}
    measures = {"accuracy": "higher"}


def test_a_bar_on_a_terminal(capsys):
    console, trainer = Console(), FakeTrainer()
    console.out = RichConsole(file=io.StringIO(), force_terminal=True, width=150)
    progress = ProgressLines(console)
    progress(trainer, "train_start")
    trainer.batch = 5
    progress(trainer, "batch_end")
    assert progress.bar.tasks[0].completed == 5 and progress.bar.tasks[0].total == 40
    trainer.epoch, trainer.batch = 1, 0
    progress(trainer, "epoch_end")
    progress.bar.refresh()
    progress(trainer, "train_end")
    assert progress.bar is None
    shown = console.out.file.getvalue()
    assert "epoch 2/4" in shown and "test_accuracy 0.7500  weight_sparsity 0.5000" in shown


def test_metrics_in_one_line():
    assert describe_metrics({"test_loss": 0.5, "train_loss": 1, "x": 2}) == "train_loss 1.0000  test_loss 0.5000"
