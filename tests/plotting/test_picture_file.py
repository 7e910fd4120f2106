import pytest

from moe_search.plotting.picture_file import check_picture_file


def test_known_formats_are_taken(tmp_path):
    for suffix in ("png", "svg", "PDF"):
        assert check_picture_file(tmp_path / f"curves.{suffix}") == tmp_path / f"curves.{suffix}"


@pytest.mark.parametrize("name", ["curves.xyz", "curves", ".png"])
def test_unknown_formats_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"picture must end in one of .*\.png.*, got "):
        check_picture_file(tmp_path / name, "picture")


def test_missing_folder(tmp_path):
    with pytest.raises(OSError, match="picture must lie in a folder that exists"):
        check_picture_file(tmp_path / "nowhere" / "curves.png", "picture")
