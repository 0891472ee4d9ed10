"""Measure what a training step on several machines consists of, with one or two processes on this machine.

    python benchmarks/machines.py --json benchmarks/results/machines.json     # about two minutes, on an idle machine

SPEED.md estimates the time of a step on N machines as a sum: the computation on 1 / N of the batch, the sum of the
gradients over the machines, and the messages of synchronised batch norm. This program measures these parts of
fashion_mnist_multi_task_learning.py ("the script"), in processes that join a cluster by TF_CONFIG:

    alone       the computation by batch size: a cluster of one process with all cores, so that its batch norm is the
                synchronised one
    half        one process with half of the cores, at half of the batch: the computation of each process in `together`
    exchange    two processes with half of the cores each that only sum the gradients
    statistics  two processes with half of the cores each that only sum the statistics of one batch norm layer, which is
                one small message
    together    two processes with half of the cores each that train
    messages    the number of sums over the processes in a step of `together`

The estimate can be checked: `together` should take half + exchange + messages * statistics. SPEED.md has both. (The few
sums of gradients and losses are among the messages, too; nearly all are those of batch norm.) The halves are the first
and the second half of the logical cores. Where two of these share a physical core, the halves may, too, and `half` is
then faster alone than beside the other.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BATCH = 128
BATCHES = (16, 32, 64, 128, 256, 512, 1024)
SMALL_MESSAGE = 2 * 64  # numbers: the sums and the sums of squares of a layer with 64 channels


def worker(args):
    """Measure as one process of a cluster; print the seconds of each repetition, and the messages in one, as JSON."""
    os.sched_setaffinity(0, set(args.cores))  # before TensorFlow counts the cores
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so what a library prints goes to standard error and is not taken for an answer
    sys.path.insert(0, ROOT)
    import tensorflow as tf

    import fashion_mnist_multi_task_learning as script

    flags = ["--cross_stitch_init=0.9", "--log_dir=unused", f"--n_batch_size={args.batch}"]
    script_args, _ = script.parse_arguments(flags)
    script.configure_tensorflow(script_args, num_columns=2)
    strategy, _ = script.choose_strategy()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (args.batch, 28, 28, 1), dtype=np.uint8)
    labels = {"item": random.integers(0, 10, args.batch), "group": random.integers(0, 3, args.batch)}

    with strategy.scope():
        network = script.build_network(script_args, script.TASKS, images.mean(axis=0), images.var(axis=0) + 1)
        optimizers = script.Optimizers()
        optimizers.create_moments(network)
    optimizers.set_learning_rates(1e-3, 1e-3)  # of the columns, and of the units

    if args.what == "train":
        signature = tf.nest.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), (images, labels))
        step = script.make_train_step(strategy, network, optimizers, script_args, script.TASKS, signature)
        messages = count_messages(step.get_concrete_function())
        num_stop_signals = 0.0

        def repeat():  # every process gets the whole batch, and the step trains on the process's share of it
            return float(step((images, labels), num_stop_signals)["summary/loss_total"])
    else:
        messages = None
        if args.what == "exchange":
            arrays = [tf.zeros(v.shape) for v in network.trainable_variables]
        else:
            arrays = [tf.zeros(SMALL_MESSAGE)]

        @tf.function
        def sum_arrays():
            def sum_of_all():
                return tf.distribute.get_replica_context().all_reduce("SUM", arrays)

            return strategy.experimental_local_results(strategy.run(sum_of_all))[0][0]

        def repeat():
            return float(tf.reshape(sum_arrays(), -1)[0])

    for _ in range(5):  # the first steps compile and allocate
        repeat()
    seconds = []
    for _ in range(args.repetitions):
        began = time.perf_counter()
        repeat()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds, "messages": messages}), file=answers, flush=True)


def count_messages(function):
    """Return how many sums over the processes are in a function's graph. (Each inner function is counted once.)"""
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]
    return sum(node.op.startswith("CollectiveReduce") for node in nodes)


def measure(what, batch, cores_of_processes, repetitions=20):
    """Start a process for each of the sets of cores; return the median seconds of a repetition and its messages.

    Both are those of the first process. Where there are two, they wait for each other in every repetition.
    """
    ports = []
    for _ in cores_of_processes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    addresses = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for index, cores in enumerate(cores_of_processes):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        # The script sets the variable of the allocator when it is run, but not when it is imported, as here.
        environment = {**os.environ, "TF_CONFIG": json.dumps(config), "TF_CPU_ALLOCATOR_USE_BFC": "true"}
        command = [sys.executable, os.path.abspath(__file__), "--worker", what, "--batch", str(batch)]
        command += ["--repetitions", str(repetitions), "--cores", *map(str, cores)]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"error: a process that should measure {what} ended with an error.")
    answer = json.loads(outputs[0])
    return statistics.median(answer["seconds"]), answer["messages"]


def main():
    """Measure all parts, print them, and write them if --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures into this file, too")
    parser.add_argument("--worker", dest="what", choices=("train", "exchange", "statistics"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--cores", nargs="+", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what:
        return worker(args)

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("error: this needs at least two cores.")
    one, other = cores[: len(cores) // 2], cores[len(cores) // 2 :]
    figures = {"cores": len(cores), "batch": BATCH}
    figures["alone"] = {batch: measure("train", batch, [cores])[0] for batch in BATCHES}
    figures["half"], _ = measure("train", BATCH // 2, [one])
    figures["exchange"], _ = measure("exchange", BATCH, [one, other])
    figures["statistics"], _ = measure("statistics", BATCH, [one, other], repetitions=200)
    figures["together"], figures["messages"] = measure("train", BATCH, [one, other])
    for name, value in figures.items():
        print(f"{name}: {value}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
