"""Makes data/fashion_mnist_sample: 600 training and 100 test images of every class of Fashion-MNIST.

    python data/make_fashion_mnist_sample.py FOLDER     # FOLDER holds the four original .gz files

The images are drawn at random with a fixed seed and keep the order they have in the original, so the same
folder gives the same four files, byte for byte.
"""

import gzip
import os
import sys

import numpy as np

OUTPUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fashion_mnist_sample")


def read(path, offset):
    """Returns the bytes of a gzipped IDX file after its header of `offset` bytes, as a uint8 array."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


def write(path, array):
    """Writes a uint8 array as a gzipped IDX file without a time stamp."""
    header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
    with open(path, "wb") as file:
        file.write(gzip.compress(header + array.tobytes(), 9, mtime=0))


def main(folder):
    """Draws the sample from the original files in `folder`."""
    for part, of_each in (("train", 600), ("t10k", 100)):
        names = [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
        images = read(os.path.join(folder, names[0]), 16).reshape(-1, 28, 28)
        labels = read(os.path.join(folder, names[1]), 8)
        shuffle = np.random.default_rng(0).permutation
        kept = np.sort(np.concatenate([shuffle(np.flatnonzero(labels == k))[:of_each] for k in range(10)]))
        for name, array in zip(names, (images[kept], labels[kept])):
            write(os.path.join(OUTPUT, name), array)


if __name__ == "__main__":
    main(*sys.argv[1:])
