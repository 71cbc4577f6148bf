"""Start Python programs in processes of their own that need not import PyTorch and transformers, which takes seconds.

A template process imports the libraries, runs nothing, and waits. Every program is a fork of it, with its own process
id, session, working folder, output, arguments and exit code. Its environment is that of the template, which is started
anew for another environment, since libraries read variables when they are imported. Programs that the forked program
starts are started as usual, unless they are given the command `python(environment)`, which takes the arguments of
Python and forks too. What differs from a usual start: modules are loaded already, and all programs of one template
have the same hash seed.
"""

import gc
import importlib
import json
import os
import re
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import types
import uuid
from pathlib import Path

# Variables that a shell, torchrun or pytest sets and no library reads when it is imported, that of progress bars,
# which commands of msctr set for `datasets`, and those that scikit-learn sets where it is imported.
_READ_LATER = re.compile(
    r"_|PS1|SHLVL|PWD|OLDPWD|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|"
    r"TORCH_NCCL_ASYNC_ERROR_HANDLING|PYTEST_CURRENT_TEST|HF_DATASETS_DISABLE_PROGRESS_BARS|"
    r"KMP_DUPLICATE_LIB_OK|KMP_INIT_AT_FORK"
)


class Process:
    """A Python program: `words` are a script, `-m` and a module, or `-c` and code, and its arguments."""

    def __init__(self, words, environment=os.environ, cwd=None, errors_apart=False):
        self.args = [str(word) for word in words]
        self.returncode = None
        self._output = tempfile.TemporaryFile("a+")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile("a+") if errors_apart else self._output  # noqa: SIM115
        self._status, written = os.pipe()
        descriptors = [self._output.fileno(), self._errors.fileno(), written]
        with _connect(_template(environment)) as connection:
            self.pid = _ask(connection, [self.args, os.path.abspath(cwd or "."), None], descriptors)
        os.close(written)

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


def python(environment=os.environ):
    """List the words of a command that takes the arguments of `python`, and forks the program from a template.

    The command passes its output, errors, signals and exit code on; the program is killed with it. Its variables must
    be those of `environment`, but for those that a shell, torchrun or pytest sets.
    """
    return [sys.executable, "-IS", __file__, _template(environment)]


def write_executable(path, environment, *words):
    """Write an executable file that runs `python(environment)` with `words` and its own arguments."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, [*python(environment), *words]))} "$@"\n')
    path.chmod(0o755)
    return path


_templates = {}


def _template(environment):
    """Return the address of a template with this environment; only the last one is kept."""
    environment = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    key = frozenset(environment.items())
    if key not in _templates:
        for _, connection, process in _templates.values():
            connection.close()  # on which the template ends
            process.wait()
        _templates.clear()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener, address = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), f"msctr_hf-{uuid.uuid4()}"
        listener.bind(f"\0{address}")  # a name without a file, which goes with the template
        listener.listen(16)
        descriptors = [there.fileno(), listener.fileno()]
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, descriptors)], env=environment, pass_fds=descriptors,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        there.close()
        listener.close()
        assert here.recv(32) == b"ready", "the template has ended, see its error above"
        _templates[key] = address, here, process
    return _templates[key][0]


def _connect(address):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(f"\0{address}")
    return connection


def _ask(connection, request, descriptors):
    """Request a program: words, folder, and environment or `None`; return its process id."""
    socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
    return int(connection.recv(32))


def _stand_for_a_program(address, words):
    """Run a program as if it were this process."""
    passed_on = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # until there is a program to get them
    status, written = os.pipe()
    connection = _connect(address)
    program = _ask(connection, [words, os.getcwd(), {**os.environ}], [1, 2, written])
    os.close(written)
    for number in passed_on:
        signal.signal(number, lambda number, frame: os.kill(program, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    code = int(os.read(status, 32))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _import_libraries():
    for name in ("datasets", "timm", "torch.distributed.run", "torch.utils.tensorboard", "accelerate.checkpointing"):
        importlib.import_module(name)
    for name in ("commands.train", "commands.evaluate", "commands.predict", "training.train"):
        importlib.import_module(f"msctr_hf.{name}")
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    names = names[1:] if names[1:] != ["jemalloc_bg_thd"] else []  # jemalloc starts its thread again in a fork
    assert not names, f"threads that a fork would not have: {names}"
    gc.freeze()  # keeps the collector of a fork from copying the memory of all libraries


def _serve(of_pytest, listener, of_template):
    """Fork a process for every request, and return the words of the request in that process."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave no zombies
    of_pytest.send(b"ready")
    while True:
        if of_pytest in select.select([of_pytest, listener], [], [])[0]:
            os._exit(0)  # pytest has ended
        connection, _ = listener.accept()
        if not os.fork():
            break
        connection.close()
    of_pytest.close()
    listener.close()
    message, (output, errors, status), *_ = socket.recv_fds(connection, 2**18, 3)
    words, folder, environment = json.loads(message)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if program := os.fork():
        _keep(program, connection, tied=environment is not None, status=status)
    os.setsid()
    os.chdir(folder)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    connection.send(str(os.getpid()).encode())
    connection.close()
    for descriptor in (output, errors, status):
        os.close(descriptor)
    if environment is not None:
        _take(environment, of_template)
    sys.modules["numpy"].random.seed()  # not the state that every fork has; `random` does this itself
    return words


def _keep(program, connection, tied, status):
    """Wait for the exit code of a program, which only its parent gets; kill one that is tied to its connection."""
    if tied:
        ended = os.pidfd_open(program)
        if ended not in select.select([ended, connection], [], [])[0]:
            os.kill(program, signal.SIGKILL)
            os._exit(0)
    connection.close()
    os.write(status, str(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])).encode())
    os._exit(0)


def _take(environment, of_template):
    """Take the variables of a program over, and keep those that only imported libraries have set."""
    names = {*of_template, *os.environ, *environment}
    changed = [name for name in names if environment.get(name) not in (of_template.get(name), os.environ.get(name))]
    early = sorted(name for name in changed if not _READ_LATER.fullmatch(name))
    if early:
        sys.exit(f"a program with other values of {early} cannot be forked: libraries may have read them")
    for name in changed:
        os.environ.pop(name, None)
        os.environ.update({name: environment[name]} if name in environment else {})


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
    if sys.flags.isolated:
        _stand_for_a_program(sys.argv[1], sys.argv[2:])
    channels = [socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:]]
    environment = {**os.environ}  # before libraries change it
    _import_libraries()
    _become(_serve(*channels, environment))
