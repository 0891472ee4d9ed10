"""What is the same method in several scripts is the same text, letter for letter.

python tests/test_copies.py --fix     # brings the copies up to the original: the script named first below
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GARMENTS, FACES, LANDMARKS = (
    f"{name}_multi_task_learning.py" for name in ("fashion_mnist", "gender_age", "facial_landmark")
)
SHARED = {  # (the original, the copies): the functions and classes, in the order of the original
    (GARMENTS, FACES, LANDMARKS): """
        Failure hold_out stratified pixel_statistics CrossStitch BatchNormalization replica_seed Dropout
        l2_regularisation replica_share batches learning_rates choose_strategy on_signals agree claim
        refuse_difference write_checkpoint restore_checkpoint open_events write_json read_json
        describe units_of log_setting log_training log_confusion write_results boolean
        number Parser parse_arguments main""",
    (GARMENTS, FACES): """
        cross_entropies make_train_step evaluate log_evaluation train print_results kind_of_run""",
    (GARMENTS, LANDMARKS): "Preset",
    (FACES, LANDMARKS): "orientation upright decode_all load_run",
}
PAIRS = [
    (name, original, copy) for (original, *copies), names in SHARED.items() for name in names.split() for copy in copies
]


def definitions(path):
    """Returns {name: its text} of the functions and classes at the top of a script."""
    text = (ROOT / path).read_text()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "\n".join(text.split("\n")[first - 1 : node.end_lineno])
    return found


@pytest.mark.parametrize("name, original, copy", PAIRS)
def test_copy(name, original, copy):
    assert definitions(original)[name] == definitions(copy)[name], "python tests/test_copies.py --fix mends it"


def test_nothing_else_is_in_two_scripts():
    """What has one name in two scripts is shared, or stands here as what each experiment has of its own."""
    own = {"prepare_data", "build_network", "make_train_step", "evaluate", "train", "log_evaluation"}
    own |= {"print_results", "make_parser", "kind_of_run", "decode", "predict", "run"}
    scripts = [definitions(path) for path in (GARMENTS, FACES, LANDMARKS)]
    twice = {name for script in scripts for name in script if sum(name in other for other in scripts) > 1}
    assert twice - own <= set(" ".join(SHARED.values()).split())


def functions_of_the_network(path):
    """Returns {name: its code} of the functions inside build_network."""
    tree = ast.parse((ROOT / path).read_text())
    (build,) = (node for node in tree.body if getattr(node, "name", "") == "build_network")
    return {node.name: ast.unparse(node) for node in build.body if isinstance(node, ast.FunctionDef)}


def test_columns_of_garments_and_faces_are_built_alike():
    one, other = map(functions_of_the_network, (GARMENTS, FACES))
    for name in ("convolution", "dense", "stitch"):
        assert one[name] == other[name], name


@pytest.mark.parametrize("path", [FACES, LANDMARKS])
def test_the_same_is_asked_of_machine_and_libraries(path):
    """The environment that TensorFlow starts in, and the constants that shared functions use."""
    kept = re.compile(r"(os\.environ|CORES|MEMORY|BYTES_OF_A_WEIGHT|VERSIONS)\b.*|EVALUATION_PIXELS = \S+")
    one, other = ([m[0] for m in map(kept.match, (ROOT / p).read_text().split("\n")) if m] for p in (GARMENTS, path))
    assert one == other and len(one) == 9 and "TF_FORCE_GPU_ALLOW_GROWTH" in "".join(one)


def fix():
    """Copies what is shared from its original into the other scripts, where it stands under the same name."""
    for name, original, copy in PAIRS:
        text, wanted, found = (ROOT / copy).read_text(), definitions(original)[name], definitions(copy).get(name)
        if found is None:
            print(f"{copy}: has no {name} yet; put an empty one where it belongs")
        elif found != wanted:
            (ROOT / copy).write_text(text.replace(found, wanted, 1))
            print(f"{copy}: {name}")


if __name__ == "__main__":
    assert re.fullmatch("--fix", " ".join(sys.argv[1:])), __doc__
    fix()
