"""How fast the stitched Fashion-MNIST network trains, beside the same network by other means.

    pip install -r benchmarks/requirements.txt     # PyTorch, its CPU build where there is a choice
    python benchmarks/throughput.py --json benchmarks/results/throughput.json

Contenders, each in a process of its own, measured in turns on an otherwise idle machine:

    ours            the training step of fashion_mnist_multi_task_learning.py, imported from it
    torch …         PyTorch: eager, channels_last, torch.compile; fused Adam, L2 as its weight decay (same gradient)
    … bfloat16      the same in mixed precision: ours by --precision bfloat16, PyTorch by its autocast
    keras fit       Keras's own layers and optimizer, trained by Model.fit, as one would write it first
    floor           the time that the step's float32 matrix products alone would take at the speed of one large product

Before anything is timed, every contender trains one real step from the same weights, without dropout: the run ends
with an error if its loss is another one, or if its weights move elsewhere. Each contender runs with the settings of the
memory allocator that suit it best: freed memory is given back to the system, as by default, or kept, as PyTorch's users
are advised. The peers also run with the better of one thread and all; ours has a rule for that.
"""

import argparse
import atexit
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
SETTINGS = {  # what is compared with hard sharing, by its flags
    "separate columns": ["--cross_stitch_enabled=False"],
    "cross-stitch units": [],
    "one trunk": ["--split_after=fc_3"],
    "one trunk, equal weights": ["--split_after=fc_3", "--width=1.41"],
    "one trunk, double width": ["--split_after=fc_3", "--width=2"],
}
ALL = (OURS, FIT, *TORCH, OURS + IN_BFLOAT16, *(name + IN_BFLOAT16 for name in TORCH[1:]))
KEEP = {f"MALLOC_{name}_": str(2**30) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")}
ALLOCATORS = {"default": {}, "keep": {**KEEP, "MALLOC_TOP_PAD_": str(2**26)}}


def work(contender, n_tasks, threads, flags):
    """The process of one contender: answers the requests on standard input, each a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    subject = make(contender, n_tasks, KEEP_PROB, threads, flags)
    rng = np.random.default_rng(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "check" in request:
            checked = make(contender, n_tasks, 1.0, threads, flags)
            if not os.path.exists(request["weights"]):
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
    """A contender in a process of its own, halted but while it is asked: threads that wait actively disturb nobody."""

    def __init__(self, contender, n_tasks=2, threads=None, allocator="default", flags=()):
        command = [sys.executable, os.path.abspath(__file__), "--worker", contender, "--n_tasks", str(n_tasks)]
        command += ["--threads", str(threads or os.cpu_count()), f"--flags={' '.join(flags)}"]
        self.name = contender
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
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
            message = f"error: the process of {self.name} ended; is benchmarks/requirements.txt installed?"
            raise SystemExit(message) from None
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

    The first step of Adam moves each weight by about the learning rate, whichever way its gradient points. So what
    agrees is the direction in which all weights of an array move: the cosine of the angle between two such moves. It is
    not 1 where gradients are all but zero: PyTorch adds Adam's epsilon at another place.
    """
    with tempfile.TemporaryDirectory() as folder:
        expected = None
        for worker in workers:
            path = os.path.join(folder, worker.name.replace(" ", "-") + ".npz")
            loss = worker.ask(check=path, weights=os.path.join(folder, "weights.npz"))
            moves = {name: move.ravel() for name, move in np.load(path).items()}
            expected = expected or (loss, moves)
            cosines = [
                m @ expected[1][k] / np.linalg.norm(m) / np.linalg.norm(expected[1][k]) for k, m in moves.items()
            ]
            print(f"  {worker.name:28} loss {loss:.5f}, least cosine of two moves {min(cosines):.4f}", flush=True)
            half = worker.name.endswith(IN_BFLOAT16)
            close = abs(loss - expected[0]) < (0.02 if half else 1e-4) * expected[0]
            alike = np.isfinite(cosines).all() and min(cosines) > (0.6 if half else 0.95)
            if moves.keys() != expected[1].keys() or not (close and alike):
                raise SystemExit(f"error: {worker.name} does not compute what {workers[0].name} does")


def measure(workers, rounds, steps, batch):
    """Return {name: seconds of a step, one median a round}, the workers asked in turns."""
    seconds = {worker.name: [] for worker in workers}
    for worker in workers:
        worker.ask(steps=3, batch=batch)  # compiles, allocates
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
        counts = {None} if name.startswith(OURS) else {1, os.cpu_count()}  # the script has a rule of its own
        for setting in [(threads, allocator) for threads in counts for allocator in ALLOCATORS]:
            worker = Worker(name, threads=setting[0], allocator=setting[1])
            worker.ask(steps=3, batch=args.n_batch_size)
            tried[setting] = statistics.median(worker.ask(steps=args.steps, batch=args.n_batch_size))
            worker.stop()
        settings[name] = threads, allocator = min(tried, key=tried.get)
        words = f"{threads} threads" if threads else "the number of threads by its rule"
        print(f"  {name:28} fastest with {words}, allocator {allocator}", flush=True)
        workers[name].stop()
        workers[name] = Worker(name, threads=threads, allocator=allocator)
        workers[name].ask(steps=3, batch=args.n_batch_size)  # is halted after this, and so does not disturb the next
    print("in turns")
    workers = [*workers.values(), Worker("floor")]
    seconds = measure(workers, args.rounds, args.steps, args.n_batch_size)
    for worker in workers:
        worker.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(of, to):
        return statistics.median(a / b for a, b in zip(seconds[of], seconds[to]))

    print(f"\n{'':28}{'ms a step':>10}{'fastest':>9}{'slowest':>9}{'images/s':>10}{'time / ours':>13}")
    for name, values in seconds.items():
        times = "".join(f"{1e3 * f(values):>{w}.1f}" for f, w in ((statistics.median, 10), (min, 9), (max, 9)))
        print(f"{name:28}{times}{args.n_batch_size / medians[name]:>10,.0f}{ratio(name, OURS):>13.2f}")
    figures = {"seconds_per_step": seconds, "settings": settings, "bfloat16_gain": ratio(OURS, OURS + IN_BFLOAT16)}
    for half in ("", IN_BFLOAT16):
        peers = [
            name
            for name in seconds
            if name not in (OURS, OURS + IN_BFLOAT16, "floor") and name.endswith(IN_BFLOAT16) == bool(half)
        ]
        best = min(peers, key=medians.get)
        figures[f"ratio_to_best_peer{half.replace(' ', '_')}"] = best, ratio(best, OURS + half)
    return {**figures, "ratio_to_floor": ratio(OURS, "floor")}


def compare_settings(args):
    """Measure ours with separate columns, units and trunks, in both precisions, and return what --json writes."""
    print("\nours by what is shared")
    workers = []
    for name, flags in SETTINGS.items():
        for half in ("", IN_BFLOAT16):
            workers.append(Worker(OURS + half, flags=flags))
            workers[-1].name = name + half
    seconds = measure(workers, args.rounds, args.steps, args.n_batch_size)
    for worker in workers:
        worker.stop()
    for name, values in seconds.items():
        print(f"  {name:36}{1e3 * statistics.median(values):8.1f} ms a step")
    return {"seconds_per_step_by_setting": seconds}


def scale(args):
    """Measure ours by batch size and by number of tasks, and return what --json writes."""
    print("\nours by batch size and by number of tasks")
    workers = {n: Worker(OURS, n_tasks=n) for n in range(1, len(TASKS) + 1)}
    batches = {batch: [] for batch in (32, 64, 128, 256, 512, 1024)}
    tasks = {n: [] for n in workers}
    for batch in batches:
        workers[2].ask(steps=3, batch=batch)
    for worker in workers.values():
        worker.ask(steps=3, batch=args.n_batch_size)
    for _ in range(args.rounds):
        for batch, values in batches.items():
            steps = max(3, args.steps * args.n_batch_size // batch)
            values.append(statistics.median(workers[2].ask(steps=steps, batch=batch)) / batch)
        for n, values in tasks.items():
            values.append(statistics.median(workers[n].ask(steps=args.steps, batch=args.n_batch_size)))
    for worker in workers.values():
        worker.stop()
    for batch, values in batches.items():
        print(f"  batch {batch:5}: {1e6 * statistics.median(values):7.1f} µs an image")
    for n, values in tasks.items():
        print(f"  tasks {n}: {1e3 * statistics.median(values):7.1f} ms a step")
    ratio = statistics.median(b / a for a, b in zip(tasks[2], tasks[4]))
    print(f"  four tasks take {ratio:.2f} times as long as two")
    return {"seconds_per_image_by_batch": batches, "seconds_per_step_by_tasks": tasks, "four_tasks_to_two": ratio}


def processor():
    """Return the name of the processor, the number of its cores, and its instructions for matrices and bfloat16."""
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
    parser.add_argument("--steps", type=int, default=20, help="steps a turn (20)")
    parser.add_argument("--json", metavar="FILE", help="write the figures into this file too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--n_tasks", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help=argparse.SUPPRESS)
    parser.add_argument("--flags", type=str.split, default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.n_tasks, args.threads, args.flags)
    figures = {"processor": processor(), **compare(args), **compare_settings(args), **scale(args)}
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)
    for half in ("", IN_BFLOAT16):
        peer, ratio = figures[f"ratio_to_best_peer{half.replace(' ', '_')}"]
        print(f"{OURS + half} is {ratio:.2f} times as fast as {peer}, its best peer")
    print(f"bfloat16 is {figures['bfloat16_gain']:.2f} times as fast as float32; ", end="")
    print(f"float32 takes {figures['ratio_to_floor']:.2f} times the time of the floor")


if __name__ == "__main__":
    main()
