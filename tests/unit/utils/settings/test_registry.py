import subprocess
import sys

import pytest

from pruning import UsageError
from tests.support.running import write_plug_in
from utils.settings import registry


@pytest.fixture(autouse=True)
def only_ours():
    registry.use_plugin_dir("")
    yield
    registry.use_plugin_dir("")


def test_listing_imports_nothing(tmp_path):
    write_plug_in(tmp_path, "criterions", "Broken", "class Broken(")
    write_plug_in(tmp_path, "criterions", "_helper", "raise RuntimeError")
    registry.use_plugin_dir(str(tmp_path))
    assert "Broken" in registry.names("criterions") and "_helper" not in registry.names("criterions")
    assert "SNIP" in registry.names("criterions") and "__init__" not in registry.names("criterions")


def test_one_file_is_imported_when_its_name_is_asked_for():
    script = (
        "import sys; from utils.settings import registry; registry.names('criterions'); before = set(sys.modules);"
        "registry.find('criterions', 'Magnitude'); new = set(sys.modules) - before;"
        "plug_ins = {name for name in new if name.split('.')[0] in registry.KINDS};"
        "assert plug_ins == {'criterions.Magnitude'}, plug_ins"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=registry.ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_folder_of_the_users_own_can_be_exchanged(tmp_path):
    for value in (1, 2):
        write_plug_in(
            tmp_path / str(value), "losses", "Valued", f"class Valued:\n    __call__ = lambda self: {value}\n"
        )
        registry.use_plugin_dir(str(tmp_path / str(value)))
        assert registry.find("losses", "Valued")()() == value
    registry.use_plugin_dir("")
    with pytest.raises(UsageError, match="no loss 'Valued'"):
        registry.find("losses", "Valued")


def test_helpers_beside_a_plug_in_can_be_imported(tmp_path):
    write_plug_in(tmp_path, "losses", "_shared_by_mine", "NUMBER = 7\n")
    source = "from losses._shared_by_mine import NUMBER\n\nclass Helped:\n    __call__ = lambda self: NUMBER\n"
    write_plug_in(tmp_path, "losses", "Helped", source)
    registry.use_plugin_dir(str(tmp_path))
    assert registry.find("losses", "Helped")()() == 7


def test_an_error_from_deeper_than_the_constructor_is_no_wrong_setting():
    class Deep:
        def __init__(self, value: int = 1) -> None:
            helper(value)

    def helper(value):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        registry.construct(Deep, {"value": 3}, {})


def test_a_constructor_gets_only_what_it_names():
    class Some:
        def __init__(self, device, alpha: float, beta: float = 5.0) -> None:
            self.found = device, alpha, beta

    assert registry.construct(Some, {"alpha": 1.0, "gamma": 2.0}, {"device": "cpu", "other": 0}).found == (
        "cpu",
        1.0,
        5.0,
    )
    with pytest.raises(UsageError, match="Some needs --alpha"):
        registry.construct(Some, {}, {"device": "cpu"})


def test_aliases_of_what_was_imported():
    registry.find("criterions", "IMP")
    assert registry.loaded_aliases()["rewind_epoch"] == "rewind_to"
