from tests.support.running import write_plug_in
from utils.console import Console
from utils.settings import registry
from utils.settings.listing import describe, first_line, paper, print_list


def test_a_line_says_what_it_is_with_unit_moment_and_paper():
    name, text = describe("criterions", "SNIPitDuring")
    assert name == "SNIPitDuring"
    assert text.split()[:2] == ["weights", "during"] and "arXiv:2006.00896" in text


def test_paper_is_what_the_first_line_cites():
    class Cited:
        """Something (Lee et al. 2019, arXiv:1810.02340), in (one) shot.

        Other (arXiv:0000.00000).
        """

    class Plain:
        pass

    assert paper(Cited) == "Lee et al. 2019, arXiv:1810.02340"
    assert paper(Plain) == "" and first_line(Plain) == "(no description)"


def test_a_broken_file_is_one_line_of_the_list(capsys, tmp_path):
    write_plug_in(tmp_path, "losses", "Bad", "raise ValueError('two\\nlines')\n")
    registry.use_plugin_dir(str(tmp_path))
    try:
        print_list(Console())
    finally:
        registry.use_plugin_dir("")
    printed = capsys.readouterr().out
    [line] = [line for line in printed.splitlines() if line.startswith("  Bad ")]
    assert "cannot be used" in line and "two lines" in line
