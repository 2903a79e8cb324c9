"""Programs that are run to their end, or given up."""

import os
import sys
import time

from launcher import shell

TALKS = [sys.executable, "-S", "-c", "import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True)"]
STAYS = [*TALKS[:-1], f"{TALKS[-1]}; import time; time.sleep(60)"]


def test_what_a_program_prints_comes_together_or_apart() -> None:
    assert shell.run(TALKS, env=os.environ, given="", timeout_s=60) == (0, "out\nerr\n")
    assert shell.ask(TALKS, env=os.environ, timeout_s=60) == (0, "out\n", "err\n")


def test_one_that_takes_too_long_is_killed_and_what_it_printed_is_kept() -> None:
    began = time.monotonic()

    assert shell.run(STAYS, env=os.environ, given="", timeout_s=2) == (shell.TIMED_OUT, "out\nerr\n")
    assert shell.ask(STAYS, env=os.environ, timeout_s=2) == (shell.TIMED_OUT, "out\n", "err\n")
    assert time.monotonic() - began < 30


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    argv = [sys.executable, "-S", "-c", r"import sys; sys.stdout.buffer.write(b'\xff')"]

    assert shell.ask(argv, env=os.environ, timeout_s=60).stdout == "\N{REPLACEMENT CHARACTER}"
