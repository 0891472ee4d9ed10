"""What is the same method in several scripts is the same text, letter for letter."""

import re
import subprocess
import sys

import copies
import pytest
from conftest import ROOT


@pytest.mark.parametrize("name, original, copy", copies.pairs())
def test_copy(name, original, copy):
    assert copies.definitions(original)[name] == copies.definitions(copy)[name], "python tests/copies.py --fix mends it"


def test_nothing_else_is_in_two_scripts():
    """What has one name in two scripts is shared, or is listed as what each experiment writes for itself."""
    scripts = [copies.definitions(path) for path in (copies.GARMENTS, copies.FACES, copies.LANDMARKS)]
    twice = {name for script in scripts for name in script if sum(name in other for other in scripts) > 1}
    shared = set(" ".join(copies.SHARED.values()).split())
    own = set(copies.OWN.split()) | {"Faces", "divide", "report_majority", "image_size", "Split"}
    assert twice - own <= shared and own - twice == set() and shared <= twice


def test_a_copy_that_differs_is_mended_by_one_command(tmp_path):
    for path in (copies.GARMENTS, copies.FACES, copies.LANDMARKS):
        (tmp_path / path).write_text((ROOT / path).read_text())
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "copies.py").write_text((ROOT / "tests" / "copies.py").read_text())
    original = tmp_path / copies.GARMENTS
    original.write_text(original.read_text().replace("def l2_loss(network):", "def l2_loss(network):  # changed"))
    command = [sys.executable, str(tmp_path / "tests" / "copies.py")]
    assert subprocess.run(command, capture_output=True).returncode == 1
    assert subprocess.run([*command, "--fix"], capture_output=True).returncode == 0
    for path in (copies.FACES, copies.LANDMARKS):
        expected = (ROOT / path).read_text().replace("def l2_loss(network):", "def l2_loss(network):  # changed")
        assert (tmp_path / path).read_text() == expected


@pytest.mark.parametrize("path", [copies.FACES, copies.LANDMARKS])
def test_the_same_is_asked_of_machine_and_libraries(path):
    """The signals and the environment that TensorFlow starts in, before the imports."""
    block = re.compile(r'^if __name__ == "__main__":\n(?:    .*\n)+\nimport keras\n\nif .*\n    raise .*\n', re.M)
    one, other = (block.search((ROOT / p).read_text())[0] for p in (copies.GARMENTS, path))
    assert one == other and "TF_FORCE_GPU_ALLOW_GROWTH" in one
