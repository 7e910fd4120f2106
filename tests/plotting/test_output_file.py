import pytest

from moe_search.plotting.output_file import check_output_file


def test_a_new_file_is_not_left_behind(tmp_path):
    path = tmp_path / "report.html"
    assert check_output_file(path) == path
    assert not path.exists()


def test_an_old_file_keeps_its_content(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    check_output_file(str(path))
    assert path.read_text() == "old"


def test_missing_folder(tmp_path):
    with pytest.raises(OSError, match=r"report must lie in a folder that exists, got .*nowhere"):
        check_output_file(tmp_path / "nowhere" / "report.html", "report")


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(OSError, match="report must be a file, got the folder"):
        check_output_file(tmp_path, "report")


def test_the_system_refuses():
    with pytest.raises(OSError, match=r"path must be a writable file, got /proc/report.html \(.+\)"):
        check_output_file("/proc/report.html")
