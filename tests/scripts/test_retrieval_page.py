"""The page on retrieval and its picture agree with the summary."""

import pytest

from made_results import metric, write_final
from reproduction import retrieval_page
from reproduction.summary import summarise, write_summary
from reproduction.tables import BEGIN, END, out_of_date, write_tables


@pytest.fixture
def results(tmp_path):
    """Write synthetic runs of some rows."""
    results = tmp_path / "results"
    for pairs, share in ((4, 1.0), (16, 0.75), (32, 0.5)):
        for seed in (0, 1):
            write_final(results, f"retrieval/mqar-{pairs}:scalar", seed, metric(share - 0.02 * seed), metric(0.1))
    write_final(results, "retrieval/mqar-16:regular-2", 0, metric(0.999), metric(0.99), alpha=[])
    write_final(results, "retrieval/mixture:scalar", 0, metric(1.5, 0.01), *[metric(0.25)] * 3)
    write_summary(results, "retrieval")
    return results


def test_a_line_per_task_and_a_column_per_model(results):
    page = results.parent / "docs" / "retrieval.md"
    page.parent.mkdir()
    page.write_text(f"# Title\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    assert page in write_tables(results.parent, results)
    lines = page.read_text().splitlines()
    assert lines[3] == "| task, metric | scalar | regular-2 |"
    assert "| mqar-16, `token_accuracy` | 74.0 ± 12.7 | 99.9 |" in lines
    assert "| mqar-4, `token_accuracy` | 99.0 ± 6.9 |  |" in lines  # its interval ends at 1
    assert "| mixture, `validation_loss` | 1.500 |  |" in lines
    assert "| mqar-16, mean α | 0.50 |  |" in lines
    assert lines.index("| mqar-16, mean α | 0.50 |  |") < lines.index("| mqar-32, `token_accuracy` | 49.0 ± 12.7 |  |")
    assert "| mixture, `token_accuracy@4096` | 25.0 |  |" in lines
    assert (lines[0], lines[-1]) == ("# Title", "The rest.")
    assert out_of_date(results.parent, results) == []


def test_without_results_the_page_says_so(tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "retrieval.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    write_tables(tmp_path, tmp_path / "results")
    assert page.read_text() == f"{BEGIN}\nNothing has been trained yet.\n{END}\n"


def test_the_picture_has_a_line_per_model(results):
    axis = retrieval_page.draw(summarise(results, "retrieval")).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines == {"scalar": [[4, 99.0], [16, 74.0], [32, 49.0]], "regular-2": [[16, 99.9]]}
