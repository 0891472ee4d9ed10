"""What the user's machine is set to changes nothing that is trained: Keras, notebook, locale, output, proxies."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from conftest import FASHION, ROOT, SCRIPTS, checkpoint_arrays, finish, last_checkpoint, parse, start

SHORT = ["--n_epoch=1", "--n_batch_size=200", "--train_fraction=0.5"]


def environment_of_keras(folder, **settings):
    """Return the environment of a user whose keras.json has these settings."""
    folder.mkdir()
    (folder / "keras.json").write_text(json.dumps(settings))
    return {"KERAS_HOME": str(folder)}


@pytest.fixture(scope="module")
def rgba(tmp_path_factory):
    """A data set of images with four channels, of which another network is trained if channels come first."""
    folder = tmp_path_factory.mktemp("rgba")
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        images = rng.integers(0, 256, (120, 4, 4, 4), np.uint8)
        np.savez(folder / f"{name}.npz", images=images, left=np.arange(120) % 2, right=np.arange(120) % 3)
    return folder


@pytest.mark.slow
def test_the_users_keras_changes_nothing_that_is_trained(rgba, tmp_path):
    """Another data format, another float, another backend, the old Keras: the same bits, and a line that says so."""
    flags = [f"--data_dir={rgba}", "--n_epoch=1", "--n_batch_size=60", "--width=0.1"]
    result = finish(start(FASHION, *flags, f"--log_dir={tmp_path}/plain"))
    assert result.status == 0, result
    environment = environment_of_keras(
        tmp_path / "keras", image_data_format="channels_first", floatx="float64", epsilon=1e-2, backend="jax"
    )
    environment |= {"KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1"}
    result = finish(start(FASHION, *flags, f"--log_dir={tmp_path}/other", environment=environment))
    assert result.status == 0 and "channels_first" in result.out, result
    a, b = (checkpoint_arrays(last_checkpoint(tmp_path / name)) for name in ("plain", "other"))
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("flags, slow", [("avx2", True), ("avx2 avx512_bf16", False), (None, False)])
def test_a_processor_without_bfloat16_is_noted(any_script, tmp_path, monkeypatch, capsys, flags, slow):
    """There float32 is much faster. Where the system does not tell, as on macOS, nothing is said."""
    cpu_info = tmp_path / "cpuinfo"
    if flags is not None:
        cpu_info.write_text(f"processor : 0\nflags : fpu {flags}\n")
    monkeypatch.setattr(any_script, "CPU_INFO", str(cpu_info))
    try:
        any_script.configure_tensorflow(parse(any_script, "--precision=bfloat16"), num_columns=2)
        assert ("bfloat16" in capsys.readouterr().out) == slow
        any_script.configure_tensorflow(parse(any_script, "--precision=float32"), num_columns=2)
        assert "bfloat16" not in capsys.readouterr().out
    finally:
        keras.config.set_dtype_policy("float32")


def test_keras_is_put_back(script, run):
    previous = keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon()
    try:
        keras.config.set_image_data_format("channels_first")
        keras.config.set_epsilon(1e-3)
        assert run(n_epoch=1, n_batch_size=300, precision="bfloat16").status == 0
        assert (keras.config.image_data_format(), keras.config.epsilon()) == ("channels_first", 1e-3)
        assert keras.config.dtype_policy().name == "float32"
        assert run(lr=0).status == 2 and keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format(previous[0])
        keras.config.set_epsilon(previous[2])


@pytest.mark.slow
def test_importing_the_scripts_changes_nothing():
    code = f"""
    import os, signal, sys
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    import keras
    settings = keras.config.image_data_format(), keras.config.floatx(), keras.config.dtype_policy().name
    environment = dict(os.environ)
    import {", ".join(SCRIPTS)}
    assert (environment, *before[1:]) == (dict(os.environ), signal.getsignal(2), signal.getsignal(15))
    assert settings == (keras.config.image_data_format(), keras.config.floatx(), keras.config.dtype_policy().name)
    print("unchanged")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert "unchanged" in result.stdout, result


@pytest.mark.slow
def test_a_module_with_another_backend_is_one_clear_error(tmp_path):
    """JAX is not installed, so a stand-in for Keras says that it computes with it."""
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("class backend:\n    backend = staticmethod(lambda: 'jax')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", f"import {FASHION}"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1 and "KERAS_BACKEND=tensorflow" in result.stderr.splitlines()[-1], result
    assert result.stderr.splitlines()[-1].startswith("ImportError: ")


NOTEBOOK = """
import builtins, os, runpy, signal, sys, threading
builtins.get_ipython = lambda: None  # as IPython has it
handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
flags = sys.argv[2:]

def run():
    sys.argv = [sys.argv[1], *flags]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")  # as %run does
    except SystemExit as end:
        return end.code

sys.argv[:] = [sys.argv[0], sys.argv[1]]
script = sys.argv[1]

def once(*more):
    sys.argv = [script, *flags, *more]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code

def interrupt_when_it_trains():
    import time
    while not os.path.exists("interrupted/checkpoints/ckpt-0.index"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

print("first", once("--log_dir=first", "--n_epoch=1"))
threading.Thread(target=interrupt_when_it_trains).start()
print("interrupted", once("--log_dir=interrupted", "--n_epoch=500"))
print("second", once("--log_dir=second", "--n_epoch=1"))
print("alive", (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers)
"""


@pytest.mark.slow
def test_in_a_notebook_an_interrupt_ends_the_run_and_not_the_kernel(small, tmp_path):
    """The script twice in one process, with an interrupt between, whose run can be resumed."""
    flags = [f"--data_dir={small}", "--n_batch_size=200"]
    command = [sys.executable, "-c", NOTEBOOK, str(ROOT / f"{FASHION}.py"), *flags]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    told = [line for line in result.stdout.splitlines() if re.match("first|interrupted|second|alive", line)]
    assert told == ["first 0", "interrupted 130", "second 0", "alive True"], result
    assert "stopped at step" in result.stderr


@pytest.mark.slow
def test_a_locale_that_is_not_utf_8(small, tmp_path):
    """What cannot be printed is printed with escapes; a path that TensorFlow would write elsewhere is refused."""
    log_dir = tmp_path / "größe"
    environment = {"PYTHONIOENCODING": "ascii", "LANG": "C"}
    result = finish(start(FASHION, *SHORT, f"--data_dir={small}", f"--log_dir={log_dir}", environment=environment))
    assert "Traceback" not in result.err
    if result.status == 0:
        assert "gr\\xf6\\xdfe" in result.out and (log_dir / "results.json").exists()
    else:
        assert result.status == 2 and result.last_line().startswith("error: "), result
        assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_run_goes_on_when_nobody_reads_its_output(small, tmp_path):
    """As in `script | head -1`, or after a closed SSH session."""
    process = start(FASHION, *SHORT, f"--data_dir={small}", f"--log_dir={tmp_path}/run")
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0 and "Traceback" not in error and "BrokenPipe" not in error, error
    assert (tmp_path / "run" / "results.json").exists()


def test_processes_of_a_cluster_bypass_proxies(script, monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost,.corp")
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    script.bypass_proxies(["127.0.0.1:2222", "b.corp:2222", "127.0.0.1:2223"])
    assert os.environ["no_proxy"] == "localhost,.corp,127.0.0.1,b.corp"
    assert os.environ["no_grpc_proxy"] == "127.0.0.1,b.corp"  # noqa: SIM112 (gRPC reads it in small letters)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_signal_while_the_libraries_load(name, number, tmp_path):
    """It takes seconds: the process ends at once, with the status of the signal and without a traceback.

    A process that is number 1 in a container ends, too: the kernel drops only signals without a handler.
    """
    (tmp_path / "keras.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    process = start(name, environment={"PYTHONPATH": str(tmp_path)})
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    result = finish(process, timeout=10)
    assert (result.status, result.err) == (128 + number, "")
