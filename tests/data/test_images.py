"""Pictures are read as a picture viewer shows them, by every script."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image


def random_picture(height=40, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def read(script, path):
    image = script.read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", ["picture.png", "picture.bmp", "picture.tif", "picture.webp", "picture.gif"])
def test_formats_without_loss(script, tmp_path, name):
    picture = random_picture()
    if name.endswith("gif"):
        picture = picture // 64 * 64  # no more than 256 colours
    Image.fromarray(picture).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_array_equal(read(script, tmp_path / name), picture)


def test_jpeg_is_decoded_by_the_accurate_transform(script, tmp_path):
    """To the bit as TensorFlow decodes it with INTEGER_ACCURATE."""
    for quality in (60, 95):
        path = tmp_path / f"{quality}.jpg"
        Image.fromarray(random_picture(64, 48)).save(path, quality=quality)
        expected = tf.io.decode_jpeg(tf.io.read_file(str(path)), channels=3, dct_method="INTEGER_ACCURATE")
        np.testing.assert_array_equal(read(script, path), expected)


def test_palettes_show_their_colours(script, tmp_path):
    """A BMP and a PNG whose pixels are indices of colours."""
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[:, 5:] = (200, 30, 90)
    for name in ("palette.bmp", "palette.png", "palette.gif"):
        Image.fromarray(picture).quantize(4).save(tmp_path / name)
        assert Image.open(tmp_path / name).mode in ("P", "RGB", "L")
        assert np.abs(read(script, tmp_path / name).astype(int) - picture).max() <= 4, name


def test_bmp_of_16_bits_and_with_run_lengths(script, tmp_path):
    """Written byte by byte: two red and two blue pixels a row, as 5-5-5 bits, and as run lengths of palette indices."""
    header = b"BM" + (54 + 16).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    info = [40, 4, 2, 1 | 16 << 16, 0, 16, 0, 0, 0, 0]
    red, blue = (0b11111 << 10).to_bytes(2, "little"), (0b11111).to_bytes(2, "little")
    rows = (red * 2 + blue * 2) * 2
    (tmp_path / "16.bmp").write_bytes(header + np.array(info, "<u4").tobytes() + rows)
    palette = bytes([0, 0, 255, 0]) + bytes([255, 0, 0, 0])  # blue, green, red, nothing
    runs = bytes([2, 0, 2, 1, 0, 0]) * 2 + bytes([0, 1])  # two of each, the end of a line; the end
    size = 54 + len(palette) + len(runs)
    header = b"BM" + size.to_bytes(4, "little") + bytes(4) + (54 + len(palette)).to_bytes(4, "little")
    info = [40, 4, 2, 1 | 8 << 16, 1, len(runs), 0, 0, 2, 0]
    (tmp_path / "rle.bmp").write_bytes(header + np.array(info, "<u4").tobytes() + palette + runs)
    expected = np.zeros((2, 4, 3), np.uint8)
    expected[:, :2, 0] = expected[:, 2:, 2] = 255
    for name in ("16.bmp", "rle.bmp"):
        np.testing.assert_array_equal(read(script, tmp_path / name), expected, err_msg=name)


def test_16_bit_grey_is_scaled_and_not_cut_off(script, tmp_path):
    grey = np.linspace(0, 65535, 300).reshape(10, 30).astype(np.uint16)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        found = read(script, tmp_path / name).astype(int)
        assert np.abs(found - np.round(grey / 257)[..., None]).max() <= 1, name


def test_what_is_transparent_is_white(script, tmp_path):
    picture = np.zeros((4, 6, 4), np.uint8)
    picture[:, :3] = (10, 200, 30, 255)
    Image.fromarray(picture).save(tmp_path / "alpha.png")
    found = read(script, tmp_path / "alpha.png")
    assert (found[:, :3] == (10, 200, 30)).all() and (found[:, 3:] == 255).all()
    Image.fromarray(picture[..., [0, 3]]).save(tmp_path / "grey.png")  # grey with alpha
    assert (read(script, tmp_path / "grey.png")[:, 3:] == 255).all()


def test_grey_and_cmyk(script, tmp_path):
    picture = Image.fromarray(np.full((8, 8, 3), (180, 90, 40), np.uint8))
    picture.convert("L").save(tmp_path / "grey.jpg")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    grey, cmyk = (read(script, tmp_path / name).astype(int) for name in ("grey.jpg", "cmyk.jpg"))
    assert (grey == grey[..., :1]).all() and np.abs(cmyk - np.asarray(picture)).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_data_say(script, tmp_path, orientation):
    """By hand: what the standard's eight values mean for the stored rows and columns."""
    stored = random_picture(6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }
    np.testing.assert_array_equal(read(script, tmp_path / "photo.png"), expected[orientation])


def test_what_no_viewer_could_show_is_refused(script, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(random_picture()).save(tmp_path / "large.png")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a bomb is a picture with more than twice as many
    for name in ("float.tif", "large.png", "text.jpg", "cut.jpg", "absent.jpg"):
        with pytest.raises(Exception):  # noqa: B017 (Pillow's are of many types, and nothing else can raise here)
            read(script, tmp_path / name)
