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


@pytest.mark.parametrize("mininterval", [0.0, 1000.0])  # drawn at every step, not drawn yet
def test_what_an_earlier_run_did_is_left_out_of_speed_and_time_left(mininterval, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = bars.tqdm(total=1000, desc="reading", mininterval=mininterval)
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = 0.0
    for _ in range(5):
        bar.found(100)  # in no time
    for _ in range(10):
        now[0] += 5.0
        bar.update(10)
    assert "600/1000 [00:50<03:20,  2.00it/s]" in str(bar)  # 400 left at 2 a second
    bar.close()
    bars.tqdm(total=10, disable=True).found(3)
