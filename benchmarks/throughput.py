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
with an error if its loss is another one, or if its weights move elsewhere. Each contender runs with the number of
threads and with the settings of the memory allocator that suit it best: freed memory is given back to the system, as
by default, or kept, as PyTorch's users are advised.
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
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TASKS = ["item", "group", "item_again", "group_again"]  # the first N of them are trained
CLASSES = [10, 3, 10, 3]
REG_LAMBDA, LEARNING_RATE, KEEP_PROB = 1e-5, 1e-3, 0.8
IMAGES = 12_000
HALF = " bfloat16"  # after the name of a contender
OURS, FIT = "ours", "keras fit"
SETTINGS = {  # what is compared with hard sharing, by its flags
    "separate columns": ["--cross_stitch_enabled=False"],
    "cross-stitch units": [],
    "one trunk": ["--split_after=fc_3"],
    "one trunk, equal weights": ["--split_after=fc_3", "--width=1.41"],
    "one trunk, double width": ["--split_after=fc_3", "--width=2"],
}
TORCH = ("torch eager", "torch channels_last", "torch compile")
ALL = (OURS, FIT, *TORCH, OURS + HALF, *(name + HALF for name in TORCH[1:]))
KEEP = {f"MALLOC_{name}_": str(2**30) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")}
ALLOCATORS = {"default": {}, "keep": {**KEEP, "MALLOC_TOP_PAD_": str(2**26)}}


def make_data():
    """Return random images, uint8 (IMAGES, 28, 28, 1), and labels, int64 (IMAGES, 4), the same in every process."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 28, 28, 1), dtype=np.uint8)
    return images, np.stack([rng.integers(0, classes, IMAGES) for classes in CLASSES], axis=1)


class Ours:
    """The script's own network and training step."""

    def __init__(self, n_tasks, keep_prob, precision, threads=None, flags=()):
        sys.path.insert(0, ROOT)
        import keras
        import tensorflow as tf

        import fashion_mnist_multi_task_learning as script

        self.tf, self.script, self.tasks = tf, script, TASKS[:n_tasks]
        flags = [f"--precision={precision}", f"--keep_prob={keep_prob}", "--cross_stitch_init=0.9", *flags]
        self.args, _ = script.parse_arguments(flags)
        pool = threads or script.size_of_thread_pool(self.args, n_tasks)
        script.size_of_thread_pool = lambda *_: pool
        script.configure_tensorflow(self.args, n_tasks)
        keras.utils.set_random_seed(0)
        images, labels = make_data()
        self.mean, self.deviation = images.mean(axis=0), images.std(axis=0)
        self.data = images, dict(zip(self.tasks, labels.T))
        self.network = self.build(keep_prob)
        self.finish()

    def build(self, keep_prob):
        classes = {task: range(n) for task, n in zip(self.tasks, CLASSES)}
        return self.script.build_network(self.args, classes, self.mean, self.deviation**2)

    def finish(self):
        tf = self.tf
        optimizers = self.script.Optimizers()
        optimizers.create_moments(self.network)
        optimizers.set_learning_rates(LEARNING_RATE, LEARNING_RATE)
        args = argparse.Namespace(task_weights=None, reg_lambda=REG_LAMBDA)
        signature = tf.nest.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), self.data)
        strategy = tf.distribute.get_strategy()
        self.step = self.script.make_train_step(strategy, self.network, optimizers, args, signature)

    def weights(self):
        """Return {path: array} of the trainable weights."""
        return {v.path: v.numpy() for v in self.network.trainable_variables}

    def load(self, weights):
        """Set the trainable weights."""
        for v in self.network.trainable_variables:
            v.assign(weights[v.path])

    def train(self, batches):
        """Train one step on each of the batches (steps, batch) and return the seconds that each took."""
        seconds = []
        for batch in batches:
            began = time.perf_counter()
            images, labels = self.data
            values = self.step((images[batch], {task: labels[task][batch] for task in labels}), 0.0)
            values = {tag: float(value) for tag, value in values.items()}
            seconds.append(time.perf_counter() - began)
        self.loss = sum(values[f"{task}/loss"] for task in self.tasks)
        return seconds


class Fit(Ours):
    """The same layers as Keras has them, trained by Model.fit with Keras's Adam."""

    def build(self, keep_prob):
        from keras import layers, regularizers

        def kernel(name):
            l2 = regularizers.L2(REG_LAMBDA / 2)
            return {"use_bias": False, "kernel_initializer": "he_normal", "kernel_regularizer": l2, "name": name}

        stitch = self.script.CrossStitch
        images = layers.Input((28, 28, 1), dtype="uint8")
        columns = [layers.Normalization((1, 2, 3), self.mean, self.deviation**2)(images)] * len(self.tasks)
        for level, filters in ((1, 32), (2, 64)):
            for t, task in enumerate(self.tasks):
                x = layers.Conv2D(filters, 3, padding="same", **kernel(f"{task}.conv_{level}"))(columns[t])
                x = layers.ReLU()(layers.BatchNormalization(name=f"{task}.bn_{level}")(x))
                columns[t] = layers.MaxPooling2D()(x)
            columns = stitch(init=0.9, name=f"pool_{level}")(columns)
        for t, task in enumerate(self.tasks):
            x = layers.Dense(1024, **kernel(f"{task}.fc_3"))(layers.Flatten()(columns[t]))
            columns[t] = layers.ReLU()(layers.BatchNormalization(name=f"{task}.bn_3")(x))
        columns = stitch(init=0.9, name="fc_3")(columns)
        outputs = {}
        for t, task in enumerate(self.tasks):
            x = layers.Dropout(1 - keep_prob)(columns[t])
            outputs[task] = layers.Dense(CLASSES[t], **{**kernel(f"{task}.output"), "use_bias": True})(x)
        import keras

        return keras.Model(images, outputs)

    def finish(self):
        import keras

        loss = {task: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for task in self.tasks}
        metrics = {task: ["accuracy"] for task in self.tasks}
        self.network.compile(keras.optimizers.Adam(LEARNING_RATE), loss, metrics=metrics)

    def train(self, batches):
        import keras

        class Clock(keras.callbacks.Callback):
            """Note the time after every step."""

            def on_train_begin(self, logs=None):
                self.times, self.losses = [], []

            def on_train_batch_end(self, batch, logs=None):
                self.times.append(time.perf_counter())
                self.losses.append(sum(logs[f"{task}_loss"] for task in tasks))

        tasks, (images, labels) = self.tasks, self.data
        clock, kept = Clock(), batches.reshape(-1)
        targets = {task: labels[task][kept] for task in tasks}
        options = {"batch_size": batches.shape[1], "shuffle": False, "verbose": 0, "callbacks": [clock]}
        self.network.fit(images[kept], targets, **options)
        self.loss = float(clock.losses[-1])
        return list(np.diff(clock.times))  # the first has what fit does once


class Torch:
    """The same network in PyTorch. `how` is one of TORCH, `threads` the size of its thread pool."""

    def __init__(self, n_tasks, keep_prob, precision, how, threads):
        import torch
        from torch import nn

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.tasks, self.half = torch, TASKS[:n_tasks], precision != "float32"
        images, labels = make_data()
        layout = torch.contiguous_format if how == "torch eager" else torch.channels_last
        self.layout = layout
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        self.labels = torch.from_numpy(labels[:, :n_tasks])

        class Stitch(nn.Module):
            def __init__(self, channels):
                super().__init__()
                mix = 0.1 / (n_tasks - 1) + (0.9 - 0.1 / (n_tasks - 1)) * torch.eye(n_tasks)
                self.alpha = nn.Parameter(mix[:, :, None] * torch.ones(channels))

            def forward(self, xs):
                shape = [-1] + [1] * (xs[0].ndim - 2)  # PyTorch's channels come before height and width
                return [sum(self.alpha[i, j].view(shape) * x for j, x in enumerate(xs)) for i in range(n_tasks)]

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("mean", torch.from_numpy(images.mean(axis=0)).permute(2, 0, 1).float())
                self.register_buffer("deviation", torch.from_numpy(images.std(axis=0)).permute(2, 0, 1).float())
                options = {"eps": 1e-3, "momentum": 0.01}

                def per_task(make):
                    return nn.ModuleList(make(t) for t in range(n_tasks))

                self.conv_1 = per_task(lambda t: nn.Conv2d(1, 32, 3, padding=1, bias=False))
                self.bn_1 = per_task(lambda t: nn.BatchNorm2d(32, **options))
                self.conv_2 = per_task(lambda t: nn.Conv2d(32, 64, 3, padding=1, bias=False))
                self.bn_2 = per_task(lambda t: nn.BatchNorm2d(64, **options))
                self.fc_3 = per_task(lambda t: nn.Linear(3136, 1024, bias=False))
                self.bn_3 = per_task(lambda t: nn.BatchNorm1d(1024, **options))
                self.output = per_task(lambda t: nn.Linear(1024, CLASSES[t]))
                self.stitch_1, self.stitch_2, self.stitch_3 = Stitch(32), Stitch(64), Stitch(1024)
                self.dropout = nn.Dropout(1 - keep_prob)

            def forward(self, x):
                x = ((x.float() - self.mean) / self.deviation).contiguous(memory_format=layout)
                xs = [nn.functional.max_pool2d(bn(conv(x)), 2).relu() for conv, bn in zip(self.conv_1, self.bn_1)]
                xs = self.stitch_1(xs)
                layers = zip(xs, self.conv_2, self.bn_2)
                xs = self.stitch_2([nn.functional.max_pool2d(bn(conv(x)), 2).relu() for x, conv, bn in layers])
                layers = zip(xs, self.fc_3, self.bn_3)
                xs = self.stitch_3([bn(fc(x.flatten(1))).relu() for x, fc, bn in layers])
                return [output(self.dropout(x)) for x, output in zip(xs, self.output)]

        self.network = Network().to(memory_format=layout)
        self.forward = torch.compile(self.network) if how == "torch compile" else self.network
        kernels = [p for name, p in self.network.named_parameters() if self.is_kernel(name)]
        others = [p for name, p in self.network.named_parameters() if not self.is_kernel(name)]
        groups = [{"params": kernels, "weight_decay": REG_LAMBDA}, {"params": others}]
        self.optimizer = torch.optim.Adam(groups, LEARNING_RATE, fused=True)

    @staticmethod
    def is_kernel(name):
        return name.endswith("weight") and not name.startswith("bn")

    def path(self, name):
        """Return the path that the script's network has for a parameter of this one."""
        layer, *index, kind = name.split(".")
        if layer.startswith("stitch"):
            return f"{('pool_1', 'pool_2', 'fc_3')[int(layer[-1]) - 1]}/alpha"
        task = self.tasks[int(index[0])]
        kinds = {"weight": "gamma", "bias": "beta"} if layer.startswith("bn") else {"weight": "kernel", "bias": "bias"}
        return f"{task}.{layer}/{kinds[kind]}"

    def from_script(self, name, array, back=False):
        """Return a weight of the script's network in the layout of the parameter `name`, or the reverse."""
        if name.startswith("conv"):
            return array.transpose((2, 3, 1, 0) if back else (3, 2, 0, 1))
        if name.startswith("fc_3"):  # the script flattens height, width, channels; PyTorch channels, height, width
            if back:
                return array.reshape(1024, 64, 7, 7).transpose(2, 3, 1, 0).reshape(3136, 1024)
            return array.reshape(7, 7, 64, 1024).transpose(3, 2, 0, 1).reshape(1024, 3136)
        return array.T if name.startswith("output") else array

    def load(self, weights):
        """Set the weights from {path: array} of the script's network."""
        with self.torch.no_grad():
            for name, parameter in self.network.named_parameters():
                array = self.from_script(name, weights[self.path(name)])
                parameter.copy_(self.torch.from_numpy(np.ascontiguousarray(array)).reshape(parameter.shape))

    def weights(self):
        """Return {path: array} of the weights as the script's network has them."""
        named = self.network.named_parameters()
        return {self.path(name): self.from_script(name, p.detach().numpy(), back=True) for name, p in named}

    def train(self, batches):
        """Train one step on each of the batches (steps, batch) and return the seconds that each took."""
        seconds, torch = [], self.torch
        for batch in batches:
            began = time.perf_counter()
            self.optimizer.zero_grad(set_to_none=True)
            chosen = torch.from_numpy(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                outputs = self.forward(self.images[chosen])
            pairs = zip(outputs, self.labels[chosen].T)
            loss = sum(torch.nn.functional.cross_entropy(x.float(), y) for x, y in pairs)
            loss.backward()
            self.optimizer.step()
            self.loss = loss.item()
            seconds.append(time.perf_counter() - began)
        return seconds


class Floor:
    """The step's matrix products alone, at the speed of one large product."""

    def __init__(self, n_tasks):
        import tensorflow as tf

        self.matrix, self.tf, self.n_tasks = tf.random.normal((2048, 2048)), tf, n_tasks

    def train(self, batches):
        """Returns, as often as there are batches, the seconds that a step's products would take."""
        conv_1, conv_2, fc_3 = 28 * 28 * 9 * 32, 14 * 14 * 9 * 32 * 64, 3136 * 1024
        products = 2 * conv_1 + 3 * (conv_2 + fc_3)  # forward, weights' and inputs' gradients; images need none
        flops = 2 * batches.shape[1] * (self.n_tasks * products + 3 * 1024 * sum(CLASSES[: self.n_tasks]))
        seconds = []
        for _ in batches:
            began = time.perf_counter()
            self.tf.linalg.matmul(self.matrix, self.matrix).numpy()
            seconds.append((time.perf_counter() - began) * flops / (2 * 2048**3))
        return seconds


def make(contender, n_tasks, keep_prob, threads, flags):
    """Return the object of the contender's name. `flags` of the script are for ours alone."""
    if contender == "floor":
        return Floor(n_tasks)
    name, half = contender.removesuffix(HALF), contender.endswith(HALF)
    precision = "bfloat16" if half else "float32"
    if name in TORCH:
        return Torch(n_tasks, keep_prob, precision, name, threads)
    if name == FIT:
        return Fit(n_tasks, keep_prob, precision, threads)
    return Ours(n_tasks, keep_prob, precision, flags=flags)


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
            half = worker.name.endswith(HALF)
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
        counts = {os.cpu_count()} if name.startswith(OURS) else {1, os.cpu_count()}
        for setting in [(threads, allocator) for threads in counts for allocator in ALLOCATORS]:
            worker = Worker(name, threads=setting[0], allocator=setting[1])
            worker.ask(steps=3, batch=args.n_batch_size)
            tried[setting] = statistics.median(worker.ask(steps=args.steps, batch=args.n_batch_size))
            worker.stop()
        settings[name] = threads, allocator = min(tried, key=tried.get)
        print(f"  {name:28} fastest with {threads} threads, allocator {allocator}", flush=True)
        workers[name].stop()
        workers[name] = Worker(name, threads=threads, allocator=allocator)
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
    figures = {"seconds_per_step": seconds, "settings": settings, "bfloat16_gain": ratio(OURS, OURS + HALF)}
    for half in ("", HALF):
        peers = [
            name for name in seconds if name not in (OURS, OURS + HALF, "floor") and name.endswith(HALF) == bool(half)
        ]
        best = min(peers, key=medians.get)
        figures[f"ratio_to_best_peer{half.replace(' ', '_')}"] = best, ratio(best, OURS + half)
    return {**figures, "ratio_to_floor": ratio(OURS, "floor")}


def compare_settings(args):
    """Measure ours with separate columns, units and trunks, in both precisions, and return what --json writes."""
    print("\nours by what is shared")
    workers = []
    for name, flags in SETTINGS.items():
        for half in ("", HALF):
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
    for half in ("", HALF):
        peer, ratio = figures[f"ratio_to_best_peer{half.replace(' ', '_')}"]
        print(f"{OURS + half} is {ratio:.2f} times as fast as {peer}, its best peer")
    print(f"bfloat16 is {figures['bfloat16_gain']:.2f} times as fast as float32; ", end="")
    print(f"float32 takes {figures['ratio_to_floor']:.2f} times the time of the floor")


if __name__ == "__main__":
    main()
