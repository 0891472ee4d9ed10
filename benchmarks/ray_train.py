"""Two workers of Ray Train are killed, one after the other, and the run still ends with the same bits.

    pip install -r benchmarks/requirements.txt     # Ray; not for Windows
    python benchmarks/ray_train.py                 # about three minutes on two cores

Trains fashion_mnist_multi_task_learning.py on the embedded sample with two workers, undisturbed. Then trains it again,
and each time the run has come to one of KILLS, in the midst of an epoch, a worker is ended by kill -9. Ray Train starts
both workers again with the same command, whose --resume auto goes on from the last checkpoint. Ends with an error
unless Ray did so as often as a worker was killed, and all weights and Adam's moments are the same bits in both runs.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.tensorflow import TensorflowTrainer

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--data_dir", str(ROOT / "data" / "fashion_mnist_sample"), "--train_fraction", "0.2", "--n_batch_size", "100"]
FLAGS += ["--n_epoch", "4", "--log_every", "1"]  # 1,200 images: 12 steps an epoch
KILLS = {18: 0, 30: 1}  # step: the worker that is killed there; 0 is the one that writes the run


def train_loop(config):
    """What each worker runs, each time that Ray starts it; Ray takes an exception for a failure, not a status."""
    import fashion_mnist_multi_task_learning as script

    folder = Path(config["folder"])
    with open(folder / f"worker-{get_context().get_world_rank()}", "a") as file:
        print(os.getpid(), file=file)
    if status := script.main([*FLAGS, "--log_dir", str(folder / "run"), "--resume", "auto"]):
        raise RuntimeError(f"the training ended with status {status}")


def processes(folder, rank):
    """Return the ids of the processes that have been the worker of a rank, the present one last."""
    return [int(line) for line in (folder / f"worker-{rank}").read_text().split()]


def checkpoint(folder):
    """Return the prefix of the newest checkpoint of the run; it ends with the step."""
    indices = (folder / "run" / "checkpoints").glob("ckpt-*.index")
    return max(indices, key=lambda path: int(path.stem.removeprefix("ckpt-"))).with_suffix("")


def last_step(folder):
    """Return the last step that the run's event files tell of, 0 if there is none yet."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    paths = map(str, (folder / "run").glob("*tfevents*"))
    return max((Event.FromString(raw).step for path in paths for raw in RawEventFileLoader(path).Load()), default=0)


def kill_workers(folder):
    """End a worker by kill -9 at each of KILLS, and print what the run loses by it."""
    for wanted, rank in KILLS.items():
        while (step := last_step(folder)) < wanted:
            time.sleep(0.1)
        os.kill(processes(folder, rank)[-1], signal.SIGKILL)
        print(f"kill -9 of worker {rank} after step {step}; last checkpoint: {checkpoint(folder).name}", flush=True)


def fit(folder):
    """Train in `folder`, which is new, with two workers; raise what Ray does when they fail too often."""
    folder.mkdir()
    TensorflowTrainer(
        train_loop,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=3)),
    ).fit()


def arrays(folder):
    """Return {name: array} of the network and of the optimizers in the run's last checkpoint."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(checkpoint(folder)))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("weights/", "optimizers/"))]
    return {name: reader.get_tensor(name) for name in names}


def main():
    """Do both runs, print what happened, and return the exit status."""
    ray.init(num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary, "whole"), Path(temporary, "killed")
        fit(whole)
        threading.Thread(target=kill_workers, args=[killed], daemon=True).start()
        fit(killed)
        restarts = [len(processes(folder, 0)) - 1 for folder in (whole, killed)]
        ends = [checkpoint(folder).name for folder in (whole, killed)]
        a, b = arrays(whole), arrays(killed)
        same = [name for name in a if name in b and a[name].tobytes() == b[name].tobytes()]
        print(f"restarts by Ray: {restarts[0]} undisturbed, {restarts[1]} with {len(KILLS)} kills")
        print(f"last checkpoints: {' and '.join(ends)}; the same bits: {len(same)} of {len(a)} arrays", end="")
        print(f", which hold {sum(x.size for x in a.values()):,} numbers")
        return 0 if restarts == [0, len(KILLS)] and ends[0] == ends[1] and len(same) == len(a) == len(b) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
