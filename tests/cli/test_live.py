"""The line that says how speaking goes, by a clock of its own."""

import io

from mossjax.cli import live


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_what_the_line_says(monkeypatch):
    """The clock is read when it begins, at the first sound, and for each line."""
    times = iter([10.0, 10.5, 11.0, 11.5])
    monkeypatch.setattr(live.time, 'perf_counter', lambda: next(times))
    screen = Screen()
    monkeypatch.setattr('sys.stderr', screen)
    line = live.Live(24000)
    for samples in (0, 48000, 72000):
        line.add(samples)
    line.end()
    assert screen.getvalue() == (
        '\r\x1b[K2.0 s spoken, real-time factor 0.50, first sound after 0.50 s'
        '\r\x1b[K5.0 s spoken, real-time factor 0.30, first sound after 0.50 s\n'
    )


def test_it_is_for_terminals_alone(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr('sys.stderr', screen)
    line = live.Live(24000)
    line.add(48000)
    line.end()
    assert screen.getvalue() == ''
