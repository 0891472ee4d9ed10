"""What is the same method in every script is the same text, letter for letter."""

import ast
import itertools

from test_repository import SCRIPTS

OWN = {"prepare_data", "build_network", "make_parser", "main", "predict", "kind_of_run"}  # what an experiment is about
LANDMARKS = {"train", "make_train_step", "make_evaluate_step", "print_results"}  # a regression, and several test sets
SHARED = {"CrossStitch", "BatchNormalization", "FirstConvolution", "restore_checkpoint", "open_run", "parse_arguments"}


def definitions(path):
    """Returns {name: text} of the functions and classes at the top of a script."""
    text = path.read_text()
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, kinds):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "\n".join(text.split("\n")[first - 1 : node.end_lineno])
    return found


def test_shared_text_is_the_same():
    """Every function and class of one name is one text, but for what OWN and LANDMARKS name."""
    for one, other in itertools.combinations(SCRIPTS, 2):
        own = OWN | LANDMARKS if "facial_landmark" in f"{one}{other}" else OWN
        a, b = definitions(one), definitions(other)
        common = a.keys() & b.keys() - own
        assert common >= SHARED
        assert "train" in common or "train" in own
        for name in common:
            assert a[name] == b[name], (one.name, other.name, name)
