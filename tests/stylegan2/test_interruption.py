"""Signals: noted, ignored, or left to others."""

import signal

import pytest

from stylegan2.interruption import deferred_interruption


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, None])
def test_a_signal_that_is_ignored_or_handled_elsewhere_is_left_alone(
    ignored: signal.Handlers | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: ignored if number == signal.SIGTERM else original(number)
    )
    before = original(signal.SIGINT), original(signal.SIGTERM)
    with deferred_interruption("") as interruption:
        assert original(signal.SIGTERM) is before[1]
        assert original(signal.SIGINT) is not before[0]
    assert (original(signal.SIGINT), original(signal.SIGTERM)) == before
    assert not interruption


def test_the_first_signal_is_acknowledged_and_the_second_has_its_usual_effect(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with deferred_interruption("finishing") as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.split() == ["finishing"]
