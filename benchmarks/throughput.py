"""Measure how fast the stitched Fashion-MNIST network trains, compared with the same network in PyTorch and Keras.

    pip install -r benchmarks/requirements.txt     # PyTorch, its CPU build where there is a choice
    python benchmarks/throughput.py --json benchmarks/results/throughput.json

It first compares all contenders, then times ours with each kind of sharing between the tasks, and last ours by the
number of tasks and the size of a batch. The contenders, each in a process of its own, are measured in turns on an
otherwise idle machine:

    ours                  the training step of fashion_mnist_multi_task_learning.py ("the script"), imported from it
    keras fit             Keras's own layers and optimizer with our cross-stitch layer, trained by Model.fit
    torch eager           PyTorch, with the images' channels before height and width
    torch channels_last   PyTorch, with the channels last
    torch compile         the same, compiled by torch.compile
    … bfloat16            in mixed precision: ours by --precision bfloat16, the last two of PyTorch by its autocast
    floor                 the step's float32 matrix products alone, at the speed of one large product

PyTorch trains with its fused Adam, whose weight decay does what the L2 loss of the script does: it has the same
gradient. Ours and Keras compute and return the accuracies and losses of a step, too, PyTorch only its loss.

Before anything is timed, every contender but the floor trains one step from the same weights, without dropout. The
program ends with an error if the loss or the change of the weights is not that of ours.

When the contenders are compared, each has the settings of the C library's memory allocator with which it is fastest:
freed memory is given back to the system, as by default, or it is kept for the next step. The peers, which are PyTorch
and Keras, also have the better of one thread and all; the script chooses its number of threads itself. What is measured
of ours alone has the default allocator. (The script turns on TensorFlow's own allocator when it is run, but not when it
is imported, as here.)
"""

import argparse
import atexit
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from contenders import FIT, IMAGES, IN_BFLOAT16, OURS, TASKS, TORCH, make

KEEP_PROB = 0.8
SHARING = {  # kinds of sharing between the tasks, and the flags of the script for each
    "separate columns": ["--cross_stitch_enabled=False"],
    "cross-stitch units": [],
    "one trunk": ["--split_after=fc_3"],
    "one trunk, equal weights": ["--split_after=fc_3", "--width=1.41"],  # about as many weights as two columns have
    "one trunk, double width": ["--split_after=fc_3", "--width=2"],
}
ALL = (OURS, FIT, *TORCH, OURS + IN_BFLOAT16, *(name + IN_BFLOAT16 for name in TORCH if name != "torch eager"))
ALLOCATORS = {  # environment variables of the GNU C library, in bytes
    "default": {},
    "keep": {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),  # below this, memory comes from the heap, where it can be kept
        "MALLOC_TRIM_THRESHOLD_": str(2**30),  # so much may lie unused at the heap's end
        "MALLOC_TOP_PAD_": str(2**26),  # the heap grows by so much more than is asked for
    },
}


def work(contender, n_tasks, threads, flags):
    """Serve as the process of one contender: answer the requests on standard input, each a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so what a library prints goes to standard error and is not taken for an answer
    subject = make(contender, n_tasks, KEEP_PROB, threads, flags)
    rng = np.random.default_rng(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "check" in request:
            checked = make(contender, n_tasks, 1.0, threads, flags)  # a second network, without dropout
            if not os.path.exists(request["weights"]):  # the first contender that is asked provides the weights
                np.savez(request["weights"], **checked.weights())
            before = dict(np.load(request["weights"]))
            checked.load(before)
            checked.train(np.arange(128)[None])
            np.savez(request["check"], **{name: w - before[name] for name, w in checked.weights().items()})
            answer = checked.loss
        else:
            answer = subject.train(rng.integers(0, IMAGES, (request["steps"], request["batch"])))
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A contender in a process of its own.

    The process is halted while it is not asked, since threads that wait for work may keep a core busy.

    Args:
        contender: One of ALL, or "floor".
        n_tasks: The number of tasks.
        threads: The number of threads of a peer. By default all cores. The script chooses its own.
        allocator: One of ALLOCATORS.
        flags: Further flags of the script.
        name: What the figures call the worker. By default the name of the contender.
    """

    def __init__(self, contender, n_tasks=2, threads=None, allocator="default", flags=(), name=None):
        command = [sys.executable, os.path.abspath(__file__), "--worker", contender, "--n_tasks", str(n_tasks)]
        command += ["--threads", str(threads or os.cpu_count()), f"--flags={' '.join(flags)}"]
        self.name = name or contender
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it is closed when this program ends)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors, "text": True}
        environment = {**os.environ, **ALLOCATORS[allocator]}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        atexit.register(self.kill)

    def ask(self, **request):
        """Send a request and return the answer; raise SystemExit if the process ended instead."""
        try:
            os.killpg(self.process.pid, signal.SIGCONT)
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
            os.killpg(self.process.pid, signal.SIGSTOP)
        except (OSError, ValueError):
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise SystemExit(f"error: the process of {self.name} ended: {last}") from None
        return answer

    def kill(self):
        """End what an error or Ctrl-C has left: a halted process does not notice that nobody asks any more."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self):
        """End the process."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


def check(workers):
    """Raise SystemExit unless one training step of all contenders has the same loss and moves the weights alike.

    The first step of Adam moves each weight by about plus or minus the learning rate. Where a gradient is almost zero,
    rounding may turn its sign, and the weight makes a whole move to the other side. So single weights are not compared:
    an array's move is compared with that of the first worker by the cosine of the angle between them. It is less than 1
    in float32, too, since PyTorch and Keras have another epsilon in Adam, which counts for the smallest gradients.
    """
    with tempfile.TemporaryDirectory() as folder:
        expected = None
        for worker in workers:
            path = os.path.join(folder, worker.name.replace(" ", "-") + ".npz")
            loss = worker.ask(check=path, weights=os.path.join(folder, "weights.npz"))
            moves = {name: move.ravel() for name, move in np.load(path).items()}
            if expected is None:
                expected = loss, moves
            expected_loss, expected_moves = expected
            if moves.keys() != expected_moves.keys():
                raise SystemExit(f"error: {worker.name} has other weights than {workers[0].name}.")
            cosines = []
            for key, move in moves.items():
                other = expected_moves[key]
                cosines.append(move @ other / np.linalg.norm(move) / np.linalg.norm(other))
            print(f"  {worker.name:28} loss {loss:.5f}, least cosine of two moves {min(cosines):.4f}", flush=True)
            if worker.name.endswith(IN_BFLOAT16):  # compared with a step in float32
                loss_tolerance, least_cosine = 0.02, 0.6
            else:
                loss_tolerance, least_cosine = 1e-4, 0.95
            same_loss = abs(loss - expected_loss) < loss_tolerance * expected_loss
            if not (same_loss and np.isfinite(cosines).all() and min(cosines) > least_cosine):
                raise SystemExit(f"error: {worker.name} does not compute what {workers[0].name} does.")


def measure(workers, rounds, steps, batch):
    """Ask the workers in turns; return {name: [the median seconds of a step, for each round]}."""
    seconds = {worker.name: [] for worker in workers}
    for worker in workers:
        worker.ask(steps=3, batch=batch)  # the first steps compile and allocate
    for number in range(rounds):
        for worker in workers:
            seconds[worker.name].append(statistics.median(worker.ask(steps=steps, batch=batch)))
        print(f"\r  round {number + 1}/{rounds}", end="", flush=True)
    print()
    return seconds


def compare(args):
    """Measure all contenders and return what --json writes."""
    print("the same training step?")
    workers = {name: Worker(name) for name in ALL}
    check(list(workers.values()))
    print("threads of the peers, and the memory allocator")
    settings = {}
    for name in ALL:
        tried = {}
        thread_counts = {None} if name.startswith(OURS) else {1, os.cpu_count()}
        for threads, allocator in itertools.product(thread_counts, ALLOCATORS):
            worker = Worker(name, threads=threads, allocator=allocator)
            worker.ask(steps=3, batch=args.n_batch_size)
            tried[threads, allocator] = statistics.median(worker.ask(steps=args.steps, batch=args.n_batch_size))
            worker.stop()
        threads, allocator = min(tried, key=tried.get)
        settings[name] = threads, allocator
        words = f"{threads} threads" if threads else "its own number of threads"
        print(f"  {name:28} fastest with {words}, allocator {allocator}", flush=True)
        workers[name].stop()
        workers[name] = Worker(name, threads=threads, allocator=allocator)
        # Wait until it has started, since its start would disturb the next trial. After the answer it is halted.
        workers[name].ask(steps=3, batch=args.n_batch_size)
    print("in turns")
    in_turns = [*workers.values(), Worker("floor")]
    seconds = measure(in_turns, args.rounds, args.steps, args.n_batch_size)
    for worker in in_turns:
        worker.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(of, to):
        """Return the time of a step of one contender over that of another, the median of the rounds."""
        return statistics.median(a / b for a, b in zip(seconds[of], seconds[to]))

    print(f"\n{'':28}{'ms a step':>10}{'fastest':>9}{'slowest':>9}{'images/s':>10}{'time / ours':>13}")
    for name, values in seconds.items():
        middle, fastest, slowest = 1e3 * medians[name], 1e3 * min(values), 1e3 * max(values)
        images_per_second = args.n_batch_size / medians[name]
        print(f"{name:28}{middle:10.1f}{fastest:9.1f}{slowest:9.1f}{images_per_second:10,.0f}{ratio(name, OURS):13.2f}")
    peers = [name for name in ALL if not name.startswith(OURS)]
    best = min((name for name in peers if not name.endswith(IN_BFLOAT16)), key=medians.get)
    best_in_bfloat16 = min((name for name in peers if name.endswith(IN_BFLOAT16)), key=medians.get)
    return {
        "seconds_per_step": seconds,
        "settings": settings,
        "speedup_over_best_peer": (best, ratio(best, OURS)),
        "speedup_over_best_peer_bfloat16": (best_in_bfloat16, ratio(best_in_bfloat16, OURS + IN_BFLOAT16)),
        "speedup_by_bfloat16": ratio(OURS, OURS + IN_BFLOAT16),
        "time_over_floor": ratio(OURS, "floor"),
    }


def compare_sharing(args):
    """Measure ours with each kind of sharing, in both precisions, and return what --json writes."""
    print("\nours by what is shared")
    workers = []
    for name, flags in SHARING.items():
        for precision in ("", IN_BFLOAT16):
            workers.append(Worker(OURS + precision, flags=flags, name=name + precision))
    seconds = measure(workers, args.rounds, args.steps, args.n_batch_size)
    for worker in workers:
        worker.stop()
    for name, values in seconds.items():
        print(f"  {name:36}{1e3 * statistics.median(values):8.1f} ms a step")
    return {"seconds_per_step_by_setting": seconds}


def scale(args):
    """Measure ours by batch size and by number of tasks, and return what --json writes."""
    print("\nours by batch size and by number of tasks")
    workers = {n: Worker(OURS, n_tasks=n) for n in range(1, len(TASKS) + 1)}  # with one task there are no units
    seconds_of_batch = {batch: [] for batch in (32, 64, 128, 256, 512, 1024)}  # for each image
    seconds_of_tasks = {n: [] for n in workers}  # for each step
    for batch in seconds_of_batch:
        workers[2].ask(steps=3, batch=batch)
    for worker in workers.values():
        worker.ask(steps=3, batch=args.n_batch_size)
    for _ in range(args.rounds):
        for batch, values in seconds_of_batch.items():
            steps = max(3, args.steps * args.n_batch_size // batch)  # about as many images for each size
            values.append(statistics.median(workers[2].ask(steps=steps, batch=batch)) / batch)
        for n, values in seconds_of_tasks.items():
            values.append(statistics.median(workers[n].ask(steps=args.steps, batch=args.n_batch_size)))
    for worker in workers.values():
        worker.stop()
    for batch, values in seconds_of_batch.items():
        print(f"  batch {batch:5}: {1e6 * statistics.median(values):7.1f} µs an image")
    for n, values in seconds_of_tasks.items():
        print(f"  tasks {n}: {1e3 * statistics.median(values):7.1f} ms a step")
    ratio = statistics.median(four / two for two, four in zip(seconds_of_tasks[2], seconds_of_tasks[4]))
    print(f"  four tasks take {ratio:.2f} times as long as two")
    return {
        "seconds_per_image_by_batch": seconds_of_batch,
        "seconds_per_step_by_tasks": seconds_of_tasks,
        "four_tasks_to_two": ratio,
    }


def processor():
    """Return the name of the processor, the number of logical cores, and its instructions for vectors and bfloat16."""
    try:
        with open("/proc/cpuinfo") as file:
            facts = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:  # not Linux
        facts = {}
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    flags = [flag for flag in wanted if flag in facts.get("flags", "").split()]
    return {"model": facts.get("model name", platform.processor()), "cores": os.cpu_count(), "flags": flags}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_batch_size", type=int, default=128, help="images a step (128)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (7)")
    parser.add_argument("--steps", type=int, default=20, help="steps a turn, at least 2 (20)")
    parser.add_argument("--json", metavar="FILE", help="write the figures into this file too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--n_tasks", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help=argparse.SUPPRESS)
    parser.add_argument("--flags", type=str.split, default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.n_tasks, args.threads, args.flags)
    figures = {"processor": processor(), **compare(args), **compare_sharing(args), **scale(args)}
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)
    for name in ("speedup_over_best_peer", "speedup_over_best_peer_bfloat16"):
        peer, speedup = figures[name]
        print(f"ours is {speedup:.2f} times as fast as {peer}, its best peer in this precision")
    print(f"bfloat16 is {figures['speedup_by_bfloat16']:.2f} times as fast as float32; ", end="")
    print(f"float32 takes {figures['time_over_floor']:.2f} times the time of the floor")


if __name__ == "__main__":
    main()
