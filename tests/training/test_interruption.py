import os
import signal

import pytest

from msctr_hf.training.interruption import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_recorded_and_the_second_acts_as_usual(number, capfd):
    class Usual(Exception):
        pass

    def act(*_):
        raise Usual

    before = signal.signal(number, act)
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested
            assert f"{number.name}: saving a checkpoint" in capfd.readouterr().err
            with pytest.raises(Usual):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)], ids=lambda each: each.name
)
def test_a_signal_of_the_other_kind_waits_for_the_checkpoint_too(first, second, capfd):
    class Usual(Exception):
        pass

    def act(*_):
        raise Usual

    before = {number: signal.signal(number, act) for number in (first, second)}
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)
            assert stop.requested
            assert f"{second.name}: saving a checkpoint" in capfd.readouterr().err
            with pytest.raises(Usual):
                os.kill(os.getpid(), first)
        assert [signal.getsignal(number) for number in (first, second)] == [act, act]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_same_signal_while_the_first_is_being_reported_acts_as_usual_afterwards(number, monkeypatch):
    """As from a terminal and from a launcher at once: the second one is not an error in the handler."""
    write, usual = os.write, []

    def send_again(descriptor, text):
        monkeypatch.setattr(os, "write", write)
        os.kill(os.getpid(), number)
        return write(descriptor, text)

    before = signal.signal(number, lambda *_: usual.append(number))
    try:
        monkeypatch.setattr(os, "write", send_again)
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested
            assert usual == []
            os.kill(os.getpid(), number)
            assert usual == [number]
    finally:
        signal.signal(number, before)
