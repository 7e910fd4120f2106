import io
import tarfile
import zipfile

import numpy as np
import pytest

from moe_search.bench.datasets import load_product_sentences, load_snippets

NAME = "movieReviewSnippets_GroundTruth.txt"
TEXT = "".join(f"{i}\t{i / 10 - 1:.3f}\tFilm ''{i}'' is fine\u2028still.\r\n" for i in range(20))


def tar_gz(name, data):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zipped(name, data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("vaderSentiment-0.5/README.txt", "nothing")
        archive.writestr(name, data)
    return stream.getvalue()


INNER = tar_gz(f"hutto_ICWSM_2014/{NAME}", TEXT.encode())
INNER_PATH = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (NAME, TEXT.encode()),
        ("hutto_ICWSM_2014.tar.gz", INNER),
        ("vaderSentiment-0.5.zip", zipped(INNER_PATH, INNER)),
        ("vaderSentiment-0.5.tar.gz", tar_gz(INNER_PATH, INNER)),
    ],
    ids=["text", "tar.gz", "zip", "tar.gz in tar.gz"],
)
def test_the_text_is_found_in_every_archive(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    data = load_snippets(tmp_path / name, seed=3)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 2, 2]
    seen = []
    for split in (data.train, data.validation, data.test):
        for text, score, source in zip(split.texts, split.scores, split.sources, strict=True):
            assert text == f"Film ''{source}'' is fine\u2028still."
            assert score == pytest.approx(source / 10 - 1, abs=1e-6)
            seen.append(source)
    assert sorted(seen) == list(range(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_sentences_know_their_review(tmp_path):
    name = "amazonReviewSnippets_GroundTruth.txt"
    lines = [
        (f"{review}_{sentence}", review / 2 - 1, f"{review}, {sentence}")
        for review in (7, 10, 2)
        for sentence in range(4)
    ]
    text = "".join(f"{number}\t{score}\t{words}\n" for number, score, words in lines)
    inner = tar_gz(f"hutto_ICWSM_2014/{name}", text.encode())
    (tmp_path / "vaderSentiment-0.5.zip").write_bytes(zipped(INNER_PATH, inner))
    data = load_product_sentences(tmp_path)
    assert data.texts == tuple(words for _, _, words in lines)
    assert data.scores.tolist() == [score for _, score, _ in lines]
    assert len(data) == 12
    assert len(set(data.reviews[::4].tolist())) == 3
    assert all(np.ptp(data.reviews[start : start + 4]) == 0 for start in (0, 4, 8))
    (tmp_path / "vaderSentiment-0.5.zip").write_bytes(zipped(INNER_PATH, INNER))
    with pytest.raises(ValueError, match=f"must hold {name}, or hutto_ICWSM_2014.tar.gz with it"):
        load_product_sentences(tmp_path)


def test_seed_decides_the_split(tmp_path):
    path = tmp_path / NAME
    path.write_text(TEXT)
    first, again, other = (load_snippets(path, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train.sources, again.train.sources)
    assert not np.array_equal(first.train.sources, other.train.sources)
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
        load_snippets(path, seed=-1)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*: get vader.* with 'pip download .* vaderSentiment==0.5'"):
        load_snippets(tmp_path / "vaderSentiment-0.5.zip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.zip", zipped("notes.txt", b"x"), "other.zip must hold movieReviewSnippets_GroundTruth.txt"),
        ("torn.tar.gz", INNER[:60], "torn.tar.gz must be a .zip, .whl or .tar.gz file"),
        ("page.zip", b"<html>", "page.zip must be a .zip, .whl or .tar.gz file"),
        (NAME, b"1\t0.5\n", "line 1 of .* must hold number, score and text between tabs, got 2 parts"),
        (NAME, TEXT.encode() + b"21\tfine\tText\n", "line 21 of .* got 3 parts"),
        (NAME, b"1\t0.5\tOnly one\n", "must hold at least 10 snippets to be split, got 1"),
    ],
    # An archive holds the time at which it was made, and would give its test another name in every process.
    ids=["no snippets", "torn", "no archive", "two parts", "four parts", "one snippet"],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_snippets(tmp_path / name)
