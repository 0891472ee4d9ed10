"""The networks and training steps that throughput.py times, each with the same interface.

"The script" is fashion_mnist_multi_task_learning.py, whose network all contenders have.

    train(batches)  takes one training step for each row of `batches`, an array (steps, batch) of the indices of images,
                    and returns the seconds of each step. Only `Fit` does not report its first step, whose time includes
                    what Model.fit does once.
    loss            the loss of the last step, without L2
    weights()       returns the weights under the names and in the layouts of the script's network
    load(weights)   sets them, so that all contenders can begin from the same ones

`Floor` has `train` alone. Each contender runs in a process of its own, and imports TensorFlow or PyTorch there.
"""

import argparse
import os
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TASKS = ["item", "group", "item_again", "group_again"]  # the first n_tasks of them are trained; it can be four
CLASSES = [10, 3, 10, 3]
REG_LAMBDA, LEARNING_RATE = 1e-5, 1e-3
IMAGES = 12_000
IN_BFLOAT16 = " bfloat16"  # after the name of a contender
OURS, FIT = "ours", "keras fit"
TORCH = ("torch eager", "torch channels_last", "torch compile")


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
        if threads:  # configure_tensorflow asks this function for the number of threads
            script.size_of_thread_pool = lambda *_: threads
        script.configure_tensorflow(self.args, n_tasks)
        keras.utils.set_random_seed(0)
        images, labels = make_data()
        self.mean, self.variance = images.mean(axis=0), images.std(axis=0) ** 2
        self.data = images, dict(zip(self.tasks, labels.T))
        self.network = self.build(keep_prob)
        self.prepare_training()

    def build(self, keep_prob):
        """Return the network. Its dropout is that of the flags."""
        classes = {task: range(n) for task, n in zip(self.tasks, CLASSES)}  # in place of names, whose number matters
        return self.script.build_network(self.args, classes, self.mean, self.variance)

    def prepare_training(self):
        """Make the training step."""
        tf = self.tf
        optimizers = self.script.Optimizers()
        optimizers.create_moments(self.network)
        optimizers.set_learning_rates(LEARNING_RATE, LEARNING_RATE)  # of the columns, and of the units
        args = argparse.Namespace(task_weights=None, reg_lambda=REG_LAMBDA)
        signature = tf.nest.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), self.data)
        strategy = tf.distribute.get_strategy()
        self.step = self.script.make_train_step(strategy, self.network, optimizers, args, self.tasks, signature)

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
            num_stop_signals = 0.0  # the script's step also sums the requests to stop; here there are none
            labels_of_batch = {task: labels[task][batch] for task in labels}
            values = self.step((images[batch], labels_of_batch), num_stop_signals)
            values = {tag: float(value) for tag, value in values.items()}
            seconds.append(time.perf_counter() - began)
        self.loss = sum(values[f"{task}/loss"] for task in self.tasks)
        return seconds


class Fit(Ours):
    """The same network from Keras's own layers and our cross-stitch layer, trained by Model.fit with Keras's Adam."""

    def build(self, keep_prob):
        import keras
        from keras import layers, regularizers

        def kernel(name):
            l2 = regularizers.L2(REG_LAMBDA / 2)  # Keras does not halve the sum of squares, the script does
            return {"use_bias": False, "kernel_initializer": "he_normal", "kernel_regularizer": l2, "name": name}

        stitch = self.script.CrossStitch
        images = layers.Input((28, 28, 1), dtype="uint8")
        columns = [layers.Normalization((1, 2, 3), self.mean, self.variance)(images)] * len(self.tasks)
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
        return keras.Model(images, outputs)

    def prepare_training(self):
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

        tasks = self.tasks
        images, labels = self.data
        clock = Clock()
        chosen = batches.reshape(-1)
        targets = {task: labels[task][chosen] for task in tasks}
        options = {"batch_size": batches.shape[1], "shuffle": False, "verbose": 0, "callbacks": [clock]}
        self.network.fit(images[chosen], targets, **options)
        self.loss = float(clock.losses[-1])  # the mean over the epoch; where losses are compared, it is a single step
        return list(np.diff(clock.times))


class Torch:
    """The same network in PyTorch. `how` is one of TORCH, `threads` the size of its thread pool."""

    def __init__(self, n_tasks, keep_prob, precision, how, threads):
        import torch
        from torch import nn

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.tasks, self.bfloat16 = torch, TASKS[:n_tasks], precision == "bfloat16"
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
                # With autocast alpha stays in float32, and so are these products. To cast it first takes as long.
                shape = [-1] + [1] * (xs[0].ndim - 2)  # PyTorch's channels come before height and width
                return [sum(self.alpha[i, j].view(shape) * x for j, x in enumerate(xs)) for i in range(n_tasks)]

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("mean", torch.from_numpy(images.mean(axis=0)).permute(2, 0, 1).float())
                self.register_buffer("deviation", torch.from_numpy(images.std(axis=0)).permute(2, 0, 1).float())
                options = {"eps": 1e-3, "momentum": 0.01}  # the script's; its momentum of 0.99 is 1 - 0.99 here

                def per_task(new_layer):
                    return nn.ModuleList(new_layer(t) for t in range(n_tasks))

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
                # Pooling before the ReLU gives the same, with less to compute.
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
            return {"stitch_1": "pool_1", "stitch_2": "pool_2", "stitch_3": "fc_3"}[layer] + "/alpha"
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
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                outputs = self.forward(self.images[chosen])
            pairs = zip(outputs, self.labels[chosen].T)
            loss = sum(torch.nn.functional.cross_entropy(x.float(), y) for x, y in pairs)
            loss.backward()
            self.optimizer.step()
            self.loss = loss.item()
            seconds.append(time.perf_counter() - began)
        return seconds


class Floor:
    """The time that the step's matrix products would take at the speed of a large one, 2048 x 2048, in float32.

    It is a yardstick, and no strict bound.
    """

    def __init__(self, n_tasks):
        import tensorflow as tf

        self.matrix, self.tf, self.n_tasks = tf.random.normal((2048, 2048)), tf, n_tasks

    def train(self, batches):
        """Time one large product for each batch; return these seconds, scaled to the operations of a step."""
        # The multiplications for an image in the forward product of each layer.
        conv_1, conv_2, fc_3 = 28 * 28 * 9 * 32, 14 * 14 * 9 * 32 * 64, 3136 * 1024
        # A layer has three products: forward, and the gradients of its weights and of its inputs. The inputs of conv_1
        # are the images, which need no gradient.
        products = 2 * conv_1 + 3 * (conv_2 + fc_3)
        flops = 2 * batches.shape[1] * (self.n_tasks * products + 3 * 1024 * sum(CLASSES[: self.n_tasks]))
        seconds = []
        for _ in batches:
            began = time.perf_counter()
            self.tf.linalg.matmul(self.matrix, self.matrix).numpy()
            seconds.append((time.perf_counter() - began) * flops / (2 * 2048**3))
        return seconds


def make(contender, n_tasks, keep_prob, threads, flags):
    """Return the contender with a name. `flags` of the script are for ours alone, which also ignores `threads`."""
    if contender == "floor":
        return Floor(n_tasks)
    name = contender.removesuffix(IN_BFLOAT16)
    precision = "bfloat16" if contender.endswith(IN_BFLOAT16) else "float32"
    if name in TORCH:
        return Torch(n_tasks, keep_prob, precision, name, threads)
    if name == FIT:
        return Fit(n_tasks, keep_prob, precision, threads)
    return Ours(n_tasks, keep_prob, precision, flags=flags)
