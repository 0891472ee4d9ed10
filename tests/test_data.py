"""Where the images come from, what is checked, and how they are split."""

import argparse
import gzip
import hashlib
import http.server
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, load, write_folder

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def arguments(**changed):
    default = {"data_dir": None, "validation_fraction": 0, "train_fraction": 1, "n_batch_size": 10, "seed": 0}
    return argparse.Namespace(**{**default, "tasks": ["item", "group"], **changed})


@pytest.fixture
def elsewhere(script, monkeypatch, tmp_path):
    """No source but the embedded sample: no Debian package, an empty cache of Keras, a server that is not there."""
    monkeypatch.setattr(script, "DEBIAN", str(tmp_path / "no-package"))
    monkeypatch.setattr(script, "DOWNLOAD", "http://127.0.0.1:9/")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    return tmp_path


def test_sample_is_what_its_script_makes(script, garments, monkeypatch, tmp_path):
    images, labels, test_images, test_labels = garments
    assert images.shape == (6000, 28, 28) and test_images.shape == (1000, 28, 28)
    assert np.bincount(labels).tolist() == [600] * 10 and np.bincount(test_labels).tolist() == [100] * 10
    maker = load("data/make_fashion_mnist_sample.py")
    monkeypatch.setattr(maker, "OUTPUT", str(tmp_path / "again"))
    (tmp_path / "again").mkdir()
    maker.main(script.SAMPLE)  # all of each class: the whole sample again
    for a, b in zip(garments, script.read_folder(tmp_path / "again")):
        np.testing.assert_array_equal(a, b)


def test_every_source_in_its_turn(script, small, elsewhere, monkeypatch, capsys):
    assert script.load_data(str(small))[1] == str(small)
    arrays, source = script.load_data()
    assert source == "embedded sample" and len(arrays[0]) == 6000
    assert "cannot be downloaded" in capsys.readouterr().out

    cache = elsewhere / "datasets" / "fashion-mnist"  # as an earlier download leaves it
    shutil.copytree(small, cache, dirs_exist_ok=True)
    arrays, source = script.load_data()
    assert source == "keras.datasets.fashion_mnist" and len(arrays[0]) == 600

    monkeypatch.setattr(script, "DEBIAN", str(small))
    assert script.load_data()[1] == str(small)


def test_downloads_into_the_cache(script, small, elsewhere, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(small))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(script, "DOWNLOAD", f"http://127.0.0.1:{server.server_port}/")
    arrays, source = script.load_data()
    server.shutdown()
    server.server_close()
    assert source == "keras.datasets.fashion_mnist" and len(arrays[0]) == 600
    assert len(script.load_data()[0][0]) == 600  # from the cache, the server being gone


def test_a_network_that_hangs_is_given_up(script, elsewhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(script, "DOWNLOAD", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        began = time.monotonic()
        assert script.load_data()[1] == "embedded sample"
        assert 5 < time.monotonic() - began < 30


def test_a_damaged_source_is_an_error_and_not_passed_over(script, small, elsewhere, monkeypatch, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(small, package)
    (package / IMAGES).write_bytes((small / IMAGES).read_bytes()[:-100])
    monkeypatch.setattr(script, "DEBIAN", str(package))
    with pytest.raises(script.Failure, match=IMAGES):
        script.load_data()


def test_without_any_source_it_says_so(script, elsewhere, monkeypatch):
    monkeypatch.setattr(script, "SAMPLE", str(elsewhere / "nowhere"))
    with pytest.raises(script.Failure, match="--data_dir"):
        script.load_data()


def idx(array, magic=None, shape=None):
    shape = array.shape if shape is None else shape
    header = np.array([0x0800 + array.ndim if magic is None else magic, *shape], ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


IMAGE_BYTES = np.zeros((20, 8, 8), np.uint8)
LABEL_BYTES = np.arange(20, dtype=np.uint8) % 10
DAMAGE = {
    "missing": (IMAGES, None, "no such file"),
    "empty": (IMAGES, b"", "magic number 0x00000803, found 0x00000000"),
    "not gzip": (IMAGES, b"hello, world", "not a whole gzip file"),
    "truncated gzip": (IMAGES, idx(IMAGE_BYTES)[:-9], "not a whole gzip file"),
    "wrong checksum": (LABELS, idx(LABEL_BYTES)[:-8] + bytes(8), "not a whole gzip file"),
    "broken stream": (LABELS, idx(LABEL_BYTES)[:12] + bytes([255] * 30), "not a whole gzip file"),
    "truncated inside": (IMAGES, idx(IMAGE_BYTES[:19], shape=(20, 8, 8)), "expected 1280 bytes .* found 1216"),
    "too long": (LABELS, idx(LABEL_BYTES, shape=(19,)), "expected 19 bytes .* found 20"),
    "short header": (IMAGES, gzip.compress(b"\0\0\x08\x03\0\0"), "expected 0 bytes .* found -10"),
    "images for labels": (LABELS, idx(IMAGE_BYTES), "magic number 0x00000801, found 0x00000803"),
    "labels for images": (IMAGES, idx(LABEL_BYTES), "magic number 0x00000803, found 0x00000801"),
    "fewer labels": (LABELS, idx(LABEL_BYTES[:19]), "expected 20 labels, one an image, found 19"),
    "label 10": (LABELS, idx(LABEL_BYTES + 1), "labels 0..9, found 10"),
    "other size": ("t10k-images-idx3-ubyte.gz", idx(np.zeros((20, 8, 9), np.uint8)), "images of 8x8, found 8x9"),
    "no images": (IMAGES, idx(np.zeros((0, 8, 8), np.uint8)), "found 0"),
    "pickled": (IMAGES, gzip.compress(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."), "magic number"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(script, tmp_path, damage):
    name, content, expected = DAMAGE[damage]
    write_folder(tmp_path, (IMAGE_BYTES, LABEL_BYTES), (IMAGE_BYTES, LABEL_BYTES))
    assert len(script.read_folder(tmp_path)) == 4
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(script.Failure, match=f"{name}: .*{expected}"):
        script.read_folder(tmp_path)


def test_what_cannot_be_read_is_not_called_damaged(script, tmp_path):
    write_folder(tmp_path, (IMAGE_BYTES, LABEL_BYTES), (IMAGE_BYTES, LABEL_BYTES))
    (tmp_path / IMAGES).unlink()
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(script.Failure, match=f"{IMAGES}: cannot be read"):
        script.read_folder(tmp_path)


def test_labels_of_the_tasks(script, garments):
    labels = script.prepare_data(arguments(data_dir=script.SAMPLE))[0]["train"][1].numpy()
    np.testing.assert_array_equal(labels[:, 0], garments[1])
    groups = {"Shoes": {5, 7, 9}, "For Women": {3, 6, 8}, "Other": {0, 1, 2, 4}}
    assert script.TASKS["group"][0] == list(groups)
    for k, members in enumerate(groups.values()):
        assert set(garments[1][labels[:, 1] == k]) == members


def test_standardisation_comes_from_the_training_images_alone(script, garments):
    args = arguments(data_dir=script.SAMPLE, validation_fraction=0.25, train_fraction=0.1)
    parts, classes, mean, deviation, record = script.prepare_data(args)
    assert list(classes) == ["item", "group"] and classes["group"] == ["Shoes", "For Women", "Other"]
    images = parts["train"][0].numpy()
    assert record["sizes"] == {"train": 450, "test": 1000, "validation": 1500}
    np.testing.assert_allclose(mean, images.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(deviation, np.maximum(images.std(axis=0), 1), rtol=1e-6)
    assert (images.std(axis=0) < 1).any()  # else the floor was not tried
    digest = hashlib.sha256()
    for array in garments:
        digest.update(str(array.shape).encode() + array.tobytes())
    assert record["sha256"] == digest.hexdigest()


def rows(part):
    return {image.tobytes() for image in part[0].numpy()}


def test_splits(script):
    prepared = {}
    for seed in (0, 1):
        args = arguments(data_dir=script.SAMPLE, validation_fraction=0.2, train_fraction=0.5, seed=seed)
        prepared[seed] = parts = script.prepare_data(args)[0]
        assert np.bincount(parts["validation"][1][:, 0]).tolist() == [120] * 10
        assert np.bincount(parts["train"][1][:, 0]).tolist() == [240] * 10
        assert not rows(parts["train"]) & rows(parts["validation"])
    assert rows(prepared[0]["validation"]) == rows(prepared[1]["validation"])
    assert rows(prepared[0]["train"]) != rows(prepared[1]["train"])
    assert rows(prepared[0]["train"]) == rows(script.prepare_data(arguments(**vars(args) | {"seed": 0}))[0]["train"])


def test_sample_notes_its_licence():
    text = (ROOT / "data" / "fashion_mnist_sample" / "README.md").read_text()
    assert "MIT" in text and "Zalando" in text and "data/make_fashion_mnist_sample.py" in text
