"""All ranks agree on the step at which they stop."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launcher.node.stop import MAX_STEPS, Agreed, Agreement, StopFlag, control_group


def ranks(world: int, folder: Path, body: Callable[[int, Agreement, StopFlag], Any]) -> list[str]:
    """Run `body` in forked ranks of one process group; what each returned, as text."""
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                store = dist.FileStore(str(folder / "store"), world)
                dist.init_process_group("gloo", rank=rank, world_size=world, store=store)
                flag = StopFlag()
                flag.install()
                result = body(rank, Agreement(flag, control_group(world)), flag)
                (folder / f"rank-{rank}").write_text(repr(result))
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return [(folder / f"rank-{rank}").read_text() for rank in range(world)]


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    def body(rank: int, agreement: Agreement, flag: StopFlag) -> tuple[int, int]:
        for step in range(100_000):
            if step == 50 and rank == 2:
                os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.001 * (1 + rank))  # ranks are not equally fast
            if stop := agreement.ask(save=False).stop:
                return step, stop
        return -1, 0

    stopped = ranks(3, tmp_path, body)

    assert len(set(stopped)) == 1
    step, number = eval(stopped[0])
    assert 50 <= step < 50 + 1000
    assert number == signal.SIGUSR2


def test_one_rank_that_wants_to_save_is_enough(tmp_path: Path) -> None:
    def body(rank: int, agreement: Agreement, flag: StopFlag) -> list[int]:
        return [step for step in range(30) if agreement.ask(save=rank == 1 and step >= 10).save]

    first, second = ranks(2, tmp_path, body)

    assert first == second
    assert eval(first)


def test_most_steps_ask_nobody(tmp_path: Path) -> None:
    def body(rank: int, agreement: Agreement, flag: StopFlag) -> int:
        asked = 0
        for _ in range(500):
            before = agreement._steps_left
            agreement.ask(save=False)
            asked += before == 1
            time.sleep(0.002)
        return asked

    assert all(int(asked) < 25 for asked in ranks(2, tmp_path, body))


def test_however_fast_the_steps_were_the_next_agreement_is_not_far(tmp_path: Path) -> None:
    def body(rank: int, agreement: Agreement, flag: StopFlag) -> int:
        longest = 0
        for _ in range(3000):
            agreement.ask(save=False)
            longest = max(longest, agreement._steps_left)
        return longest

    assert ranks(2, tmp_path, body) == [str(MAX_STEPS)] * 2


def test_a_single_rank_needs_no_group() -> None:
    flag = StopFlag()
    agreement = Agreement(flag, None)

    assert agreement.ask(save=True) == Agreed(0, True)
    flag.signal = signal.SIGTERM
    assert agreement.ask(save=False) == Agreed(signal.SIGTERM, False)
