"""What people have as images is read as RGB, in order; what is none is named."""

import io
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.evaluation.files import SMALL
from ldm_scaling.evaluation.image_sets import drawn_facts, keys_hash, open_images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def test_a_folder_of_all_kinds_of_images(tmp_path):
    gray = PIXELS[..., 0]
    save(tmp_path / "a.png", PIXELS)
    save(tmp_path / "b.PNG", gray)
    save(tmp_path / "c.png", np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)]))
    save(tmp_path / "d.tiff", Image.fromarray(PIXELS).convert("CMYK"))
    save(tmp_path / "e.png", gray.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    save(tmp_path / "f.png", PIXELS, exif=exif)
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    frames[0].save(tmp_path / "g.webp", save_all=True, append_images=frames[1:], lossless=True)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".h.png").write_bytes(b"being written")
    (tmp_path / "sub").mkdir()
    images = open_images(tmp_path)
    assert images.keys == ["a.png", "b.PNG", "c.png", "d.tiff", "e.png", "f.png", "g.webp"]
    found = [image for piece in images.pieces(size=3) for image in piece]
    assert [image.shape for image in found] == [(6, 9, 3)] * 5 + [(9, 6, 3), (6, 9, 3)]
    for index in (0, 2, 6):
        np.testing.assert_array_equal(found[index], PIXELS)
    for index in (1, 4):
        np.testing.assert_array_equal(found[index], np.dstack([gray] * 3))
    np.testing.assert_array_equal(found[5], np.rot90(PIXELS, -1))


def test_arrays_and_data_sets(tmp_path, dataset):
    images = RNG.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images)
    found = open_images(tmp_path / "a.npz")
    assert len(found) == 5
    np.testing.assert_array_equal(found[3], images[3])
    split = open_images(f"{dataset}:test")
    assert (len(split), split[0].shape) == (8, (8, 8, 3))


def test_the_hash_is_of_what_was_scored(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, PIXELS)
    before = keys_hash(open_images(tmp_path))
    assert before == keys_hash(open_images(tmp_path))
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert before != keys_hash(open_images(tmp_path))
    expected = {"point": {"samples": str(tmp_path)}, "seed": 0, "weights_hash": ""}
    assert drawn_facts(tmp_path) == expected


def bomb():
    """A PNG of 100 KB that says it is 20,000 pixels wide and high."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(file, "png")
    data = bytearray(file.getvalue())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (bomb(), "decompression bomb"),
        (b"\x89PNG\r\n\x1a\n torn", "bad.png: "),
    ],
)
def test_an_image_that_cannot_be_read_is_named_and_not_left_out(tmp_path, content, message):
    save(tmp_path / "a.png", PIXELS)
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(open_images(tmp_path).pieces())


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no image files .* it holds nothing"):
        open_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a\.npz: no such file"):
        open_images(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", np.full((2, 4, 4, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"arr_0 is float32\[2, 4, 4, 3\], not uint8 images"):
        open_images(tmp_path / "b.npz")


def test_an_array_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, PIXELS[None])
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", PIXELS[None])
    for content in (
        whole[: len(whole) // 2],
        whole[:60] + b"\xff" * 20 + whole[80:],
        (tmp_path / "one.npy").read_bytes(),
        b"hello",
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz: no \.npz file that can be read"):
            open_images(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("arr_0.npy", b"torn")
    with pytest.raises(ValueError, match=r"a\.npz: arr_0 is \|S4\[\], not uint8 images"):
        open_images(path)


def test_a_bomb_of_an_array_is_not_unpacked(tmp_path):
    """A file of 1 MB or so that says, rightly, that it holds 270 MB of black images."""
    shape = (SMALL // (64 * 64 * 3) + 1, 64, 64, 3)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("arr_0.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(shape[0]):
            member.write(bytes(64 * 64 * 3))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"arr_0\.npy would grow from \d+ bytes to 26\d+, .* bomb"):
        open_images(tmp_path / "a.npz")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**22
