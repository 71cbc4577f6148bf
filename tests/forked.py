"""Start Python programs in processes of their own that need not import PyTorch and transformers, which takes seconds.

A template process imports the libraries, runs nothing, and waits. Every program is a fork of it, with its own process
id, session, working folder, output, arguments and exit code. Its environment is that of the template, which is started
anew for another environment, since libraries read variables when they are imported. Programs that the forked program
starts are started as usual. What differs from a usual start: modules are loaded already, and all programs of one
template have the same hash seed.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path


class Process:
    """A Python program: `words` are a script, `-m` and a module, or `-c` and code, and its arguments."""

    def __init__(self, words, environment=os.environ, cwd=None, errors_apart=False):
        self.args = [str(word) for word in words]
        self.returncode = None
        self._output = tempfile.TemporaryFile("a+")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile("a+") if errors_apart else self._output  # noqa: SIM115
        self._status, written = os.pipe()
        request = json.dumps([self.args, os.path.abspath(cwd or ".")]).encode()
        connection = _template(environment)
        socket.send_fds(connection, [request], [self._output.fileno(), self._errors.fileno(), written])
        os.close(written)
        self.pid = int(connection.recv(32))

    def poll(self):
        return self._read_status(0)

    def wait(self, timeout=None):
        if self._read_status(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end, and return all that was written: output and errors, together if they are not apart."""
        self.wait(timeout)
        texts = []
        for file in (self._output, self._errors):
            file.seek(0)
            texts.append(file.read())
        return texts[0], texts[1] if self._errors is not self._output else None

    def _read_status(self, timeout):
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 32))
            os.close(self._status)
        return self.returncode


def run(words, environment=os.environ, cwd=None, timeout=300):
    """Run a program to its end, as `subprocess.run` with captured output does."""
    process = Process(words, environment, cwd, errors_apart=True)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


_templates = {}


def _template(environment):
    """Return the connection to a template with this environment; only the last one is kept."""
    environment = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    key = frozenset(environment.items())
    if key not in _templates:
        for connection, process in _templates.values():
            connection.close()  # on which the template ends
            process.wait()
        _templates.clear()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(there.fileno())]
        process = subprocess.Popen(
            command, env=environment, pass_fds=[there.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        there.close()
        assert here.recv(32) == b"ready", "the template has ended, see its error above"
        _templates[key] = here, process
    return _templates[key][0]


def _import_libraries():
    for name in ("datasets", "timm", "torch.distributed.run", "torch.utils.tensorboard", "accelerate.checkpointing"):
        importlib.import_module(name)
    for name in ("commands.train", "commands.evaluate", "commands.predict", "training.train"):
        importlib.import_module(f"msctr_hf.{name}")
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    names = names[1:] if names[1:] != ["jemalloc_bg_thd"] else []  # jemalloc starts its thread again in a fork
    assert not names, f"threads that a fork would not have: {names}"
    gc.freeze()  # keeps the collector of a fork from copying the memory of all libraries


def _serve(connection):
    """Fork a process for every request, and return the words of the request in that process."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave no zombies
    connection.send(b"ready")
    while True:
        message, descriptors, *_ = socket.recv_fds(connection, 2**18, 3)
        if not message:
            os._exit(0)  # pytest has ended
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    output, errors, status = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if program := os.fork():  # this process keeps the exit code, as only a parent gets it
        connection.close()
        os.write(status, str(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])).encode())
        os._exit(0)
    os.setsid()
    words, folder = json.loads(message)
    os.chdir(folder)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    connection.send(str(os.getpid()).encode())
    connection.close()
    for descriptor in descriptors:
        os.close(descriptor)
    sys.modules["numpy"].random.seed()  # not the state that every fork has; `random` does this itself
    return words


def _become(words):
    """Run a program as `python` does."""
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.realpath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    of_pytest = socket.socket(fileno=int(sys.argv[1]))
    _import_libraries()
    _become(_serve(of_pytest))
