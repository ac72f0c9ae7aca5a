"""Progress bars: in a log a line a minute, in a terminal one line that is drawn over itself."""

import io
import sys

import pytest

from interp.results import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, file: io.StringIO, seconds: float) -> str:
    """What a bar of 100 steps writes to a file if every step takes this long."""
    now = [0.0]
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    bar = bars.tqdm(total=100, desc="reading")
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = 0.0
    for _ in range(100):
        now[0] += seconds
        bar.update()
    bar.close()
    return file.getvalue()


def test_in_a_log_a_bar_is_a_line_a_minute(monkeypatch):
    lines = drawn(monkeypatch, io.StringIO(), seconds=6.0).splitlines()  # ten minutes
    assert len(lines) == 10
    assert all(line.startswith("reading: ") and "|" in line for line in lines)
    assert "\r" not in "".join(lines)
    assert "10%" in lines[0]


def test_what_is_done_within_a_minute_writes_nothing_to_a_log(monkeypatch):
    assert drawn(monkeypatch, io.StringIO(), seconds=0.5) == ""


def test_in_a_terminal_a_bar_is_drawn_over_itself(monkeypatch):
    written = drawn(monkeypatch, Terminal(), seconds=6.0)
    assert written.count("\r") > 50
    assert "\n" not in written


def test_in_a_notebook_a_bar_is_as_in_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not bars._is_log(sys.stderr)
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert bars._is_log(sys.stderr)
