"""Keep the copies in step: what is the same in several scripts stands in each of them, letter for letter.

    python tests/copies.py          # name the copies that differ from the original; exit status 1 if there are any
    python tests/copies.py --fix    # bring them up to the original

The original is always the script that is named first in SHARED. It needs nothing but Python.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GARMENTS = "fashion_mnist_multi_task_learning.py"
FACES = "gender_age_multi_task_learning.py"
LANDMARKS = "facial_landmark_multi_task_learning.py"
SHARED = {  # (the original, the copies): the names of functions and classes
    (GARMENTS, FACES, LANDMARKS): """
        CrossStitch LayerCrossStitch ActivationCrossStitch
        dense_block batch_norm stitch check_memory end_trunk units_of
        cross_entropy l2_loss compile_step Optimizers
        train signature_of learning_rates start_units make_predict evaluate_all
        Data select stratified pixel_statistics sha256_of read_image
        FusedBatchNormalization available_cores size_of_thread_pool
        lacks_bfloat16 configure_tensorflow choose_strategy share_of_replica
        join_cluster bypass_proxies GreetingHandler GreetingServer wait_for_processes greet check_agreement
        collected_stop_signals exit_status_of
        claim_folder check_holds_no_run describe_run check_unchanged facts_to_agree_on Checkpoints write_json read_json
        open_event_file log_setting log_scalars log_units log_confusions Meter
        print_setting describe_classes finish_run say load_run report_failures reason_of
        Failure parse_arguments folder_to_resume arguments_of_resumed_run default_log_dir check_log_dir
        main show_or_train default_keras_settings Parser HelpFormatter boolean parse_number
        positive_int non_negative_int seed_number positive_float non_negative_float fraction fraction_below_one
        keep_probability absolute_path folder_path check_units""",
    (GARMENTS, FACES): """
        build_network convolution_block column_names weights_of_tasks count_correct Evaluation evaluate log_evaluations
        Split confusions_to_log metrics_of_interest summary_of_training summary_of_evaluations
        print_results print_predictions""",
    (FACES, LANDMARKS): """
        batches_of_epoch hold_out decode_images""",
}
# What every script has, and each writes for its own experiment.
OWN = """
    output_layer make_train_step augment prepare_data make_parser add_network_arguments add_training_arguments
    add_run_arguments check_arguments build_network convolution_block column_names weights_of_tasks Evaluation
    evaluate log_evaluations confusions_to_log metrics_of_interest summary_of_training summary_of_evaluations
    print_results kind_of_run batches_of_epoch read_face predict_pictures"""


def pairs():
    """Return a list of (name, original, copy)."""
    found = []
    for (original, *copies), names in SHARED.items():
        found += [(name, original, copy) for name in names.split() for copy in copies]
    return found


def definitions(path):
    """Return {name: its text} of the functions and classes at the top of a script."""
    text = (ROOT / path).read_text()
    lines = text.split("\n")
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def differences():
    """Return the (name, original, copy) whose texts differ."""
    texts = {path: definitions(path) for path in (GARMENTS, FACES, LANDMARKS)}
    return [
        (name, original, copy) for name, original, copy in pairs() if texts[original][name] != texts[copy].get(name)
    ]


def main():
    for name, original, copy in differences():
        wanted = definitions(original)[name]
        found = definitions(copy).get(name)
        if "--fix" not in sys.argv:
            print(f"{copy}: {name} differs from that in {original}")
        elif found is None:
            print(f"{copy}: there is no {name} yet; put an empty one where it belongs")
        else:
            text = (ROOT / copy).read_text()
            (ROOT / copy).write_text(text.replace(f"\n{found}\n", f"\n{wanted}\n", 1))
            print(f"{copy}: {name} is now that of {original}")
    return 1 if differences() else 0


if __name__ == "__main__":
    sys.exit(main())
