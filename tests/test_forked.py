"""Programs that are forked from a template see and do what they would if Python had been started anew."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from forked import Process, python, run

SCRIPT = """
import json, os, sys
state = {
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": globals().get("__file__"), "folder": os.getcwd(),
    "main": sys.modules["__main__"].__dict__ is globals(), "stdin": sys.stdin.read(), "tty": sys.stdout.isatty(),
    "handler": str(__import__("signal").getsignal(2)), "child": str(__import__("signal").getsignal(17)),
    "environment": dict(os.environ), "rest_of_path": sys.path[1:],
}
if __name__ == "__main__":
    print(json.dumps(state))
    sys.stderr.write("to errors")
    sys.exit(7)
"""
ENVIRONMENT = {**os.environ, "MSCTR_SOME_VARIABLE": "some value"}
HEAVY = "import sys; assert {'torch', 'transformers', 'msctr_hf.training.train'} <= {*sys.modules}"
FORMS = {"script": ["program.py"], "module": ["-m", "program"], "code": ["-c", SCRIPT]}

pytestmark = pytest.mark.slow  # the template takes seconds to start


@pytest.mark.parametrize("words", FORMS.values(), ids=FORMS)
def test_a_forked_program_sees_what_a_fresh_one_sees(tmp_path, words):
    (tmp_path / "program.py").write_text(SCRIPT)
    words = [*words, "--flag", "with space"]
    fresh = subprocess.run(
        [sys.executable, *words],
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    forked = run(words, ENVIRONMENT, tmp_path)
    assert (forked.returncode, forked.stderr) == (fresh.returncode, fresh.stderr) == (7, "to errors")
    assert state_of(forked, tmp_path) == state_of(fresh, tmp_path)


def state_of(done, folder):
    state = json.loads(done.stdout)
    state["environment"].pop("PYTEST_CURRENT_TEST", None)
    state["file"] = state["file"] and os.path.join(folder, state["file"])
    return state


def test_a_forked_program_is_a_process_with_a_session_and_libraries_of_its_own(tmp_path):
    code = "import os, sys, random, numpy; print(os.getpid(), os.getsid(0), random.random(), numpy.random.rand())"
    printed = []
    for _ in range(2):
        process = Process(["-c", code], ENVIRONMENT)
        words = process.communicate()[0].split()
        assert words[:2] == [str(process.pid)] * 2
        printed.append(words)
    assert not set(printed[0]) & set(printed[1])
    assert run(["-c", HEAVY], ENVIRONMENT).returncode == 0


def test_errors_signals_and_code_at_exit_end_a_forked_program_as_usual():
    code = "import atexit; atexit.register(print, 'at exit'); 1 / 0"
    output, _ = Process(["-c", code], ENVIRONMENT).communicate()
    assert "Traceback" in output
    assert output.splitlines()[-2:] == ["ZeroDivisionError: division by zero", "at exit"]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = Process(["-c", "import time; print('waits', flush=True); time.sleep(300)"], ENVIRONMENT)
        assert process.poll() is None
        os.killpg(process.pid, number)
        assert process.wait(300) == -number


def test_a_forked_program_has_no_variable_of_another(tmp_path):
    code = "import os; print(os.environ.get('MSCTR_SOME_VARIABLE'))"
    assert run(["-c", code], ENVIRONMENT).stdout == "some value\n"
    assert run(["-c", code], {**ENVIRONMENT, "MSCTR_SOME_VARIABLE": "other"}).stdout == "other\n"


TORCHRUN = {"RANK": "1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}


def test_the_command_that_forks_does_what_python_does(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    environment = {**ENVIRONMENT, **TORCHRUN}
    forked, fresh = (
        subprocess.run(
            [*command, "program.py", "--flag", "with space"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )
        for command in (python(ENVIRONMENT), [sys.executable])
    )  # fmt: skip
    assert (forked.returncode, forked.stderr) == (fresh.returncode, fresh.stderr) == (7, "to errors")
    assert state_of(forked, tmp_path) == state_of(fresh, tmp_path)
    assert TORCHRUN.items() <= state_of(forked, tmp_path)["environment"].items()
    for code, expected in ((HEAVY, 0), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)):
        assert subprocess.run([*python(ENVIRONMENT), "-c", code], env=ENVIRONMENT).returncode == expected


def test_the_command_that_forks_refuses_variables_that_libraries_may_have_read():
    command = [*python(ENVIRONMENT), "-c", "print('runs')"]
    done = subprocess.run(command, env={**ENVIRONMENT, "OMP_NUM_THREADS": "77"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "['OMP_NUM_THREADS'] cannot be forked" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_command_that_forks_passes_signals_on_and_its_program_ends_with_it(number):
    code = """if True:
        import os, signal, sys, time
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: sys.exit(number))
        print(os.getpid(), flush=True)
        time.sleep(300)
    """
    command = subprocess.Popen([*python(ENVIRONMENT), "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    program = int(command.stdout.readline())
    command.send_signal(number)
    assert command.wait(300) == (-number if number == signal.SIGKILL else number)
    deadline = time.monotonic() + 300
    while os.path.exists(f"/proc/{program}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
