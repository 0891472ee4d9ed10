"""What is the same method in every script is the same text, letter for letter."""

import ast

from test_repository import SCRIPTS

OWN = {"prepare_data", "build_network", "make_parser", "main"}  # what an experiment is about, or its command line


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
    first, *others = map(definitions, SCRIPTS)
    for other in others:
        common = first.keys() & other.keys() - OWN
        assert {"CrossStitch", "BatchNormalization", "train", "restore_checkpoint", "parse_arguments"} <= common
        for name in common:
            assert first[name] == other[name], name
