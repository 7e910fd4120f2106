import pytest

from moe_search.cli.arguments import check_output_file, check_picture_file


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


def test_known_formats_are_taken(tmp_path):
    for suffix in ("png", "svg", "PDF"):
        assert check_picture_file(tmp_path / f"curves.{suffix}") == tmp_path / f"curves.{suffix}"


@pytest.mark.parametrize("name", ["curves.xyz", "curves", ".png"])
def test_unknown_formats_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"picture must end in one of .*\.png.*, got "):
        check_picture_file(tmp_path / name, "picture")


def test_missing_folder_of_a_picture(tmp_path):
    with pytest.raises(OSError, match="picture must lie in a folder that exists"):
        check_picture_file(tmp_path / "nowhere" / "curves.png", "picture")
