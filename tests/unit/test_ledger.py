"""Events are appended without gaps or losses, and fold to the state of a run."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import Fenced, FormatTooNew, LedgerConflict
from launcher.events import (
    AttemptEnded,
    AttemptResumes,
    AttemptStarted,
    AttemptStarting,
    CancelRequested,
    CheckpointSaved,
    CheckpointsDropped,
    Driver,
    Driving,
    Event,
    Moved,
    Record,
    ResumeRequested,
    RunEnded,
    Submitted,
    Submitting,
)
from launcher.ledger import Ledger
from launcher.state import Attempt, RunState, Submission, fold
from launcher.storage import PosixStorage

ME = Driver(host="here", machine="boot/1", pid=7, started=1234)
fork = multiprocessing.get_context("fork")


@pytest.fixture
def storage(tmp_path: Path) -> PosixStorage:
    return PosixStorage(tmp_path)


@pytest.fixture
def ledger(storage: PosixStorage) -> Ledger:
    return Ledger(storage)


def state_of(*events: Event) -> RunState:
    """Event number n happened at second 10 * n."""
    return fold(Record(number, 10.0 * number, event) for number, event in enumerate(events, 1))


def saved(step: int, attempt: int = 1) -> CheckpointSaved:
    return CheckpointSaved(
        attempt=attempt, step=step, epoch=0, path=f"checkpoints/{step}-{attempt}", bytes=1, complete=False
    )


def always(state: RunState) -> None:
    pass


class TestFold:
    def test_nothing_has_happened_in_an_empty_ledger(self) -> None:
        assert state_of() == RunState()
        assert state_of().open_attempt is None

    def test_the_newest_driver_drives(self) -> None:
        other = Driver(host="there", machine="", pid=8, started=5)

        state = state_of(Driving(driver=ME), Driving(driver=other))

        assert state == RunState(version=2, driver=other)

    def test_an_intent_opens_an_attempt(self) -> None:
        state = state_of(AttemptStarting(attempt=1, target="local"))

        assert state.attempts == (Attempt(number=1, target="local", started=10.0),)
        assert state.open_attempt == state.attempts[0]
        assert state.open_attempt.handle is None

    def test_a_started_attempt_has_hosts_and_a_handle(self) -> None:
        state = state_of(
            AttemptStarting(attempt=1, target="local"), AttemptStarted(attempt=1, hosts=("a", "b"), handle={"pid": 1})
        )

        assert state.attempts == (Attempt(number=1, target="local", started=10.0, hosts=("a", "b"), handle={"pid": 1}),)
        assert state.open_attempt is not None

    def test_an_attempt_knows_where_it_began(self) -> None:
        state = state_of(
            AttemptStarting(attempt=1, target="local"), AttemptResumes(attempt=1, step=40, path="checkpoints/x")
        )

        assert (state.attempts[0].first_step, state.attempts[0].resumes_from) == (40, "checkpoints/x")

    def test_an_ended_attempt_is_no_longer_open(self) -> None:
        state = state_of(
            AttemptStarting(attempt=1, target="local"),
            AttemptEnded(attempt=1, cause="infra", reason="rank 0 was killed", step=12),
        )

        assert state.open_attempt is None
        ended = state.attempts[0]
        assert (ended.ended, ended.cause, ended.reason, ended.last_step) == (20.0, "infra", "rank 0 was killed", 12)

    def test_an_event_touches_its_own_attempt_only(self) -> None:
        first = (AttemptStarting(attempt=1, target="local"), AttemptEnded(attempt=1, cause="infra", reason="", step=3))

        before = state_of(*first)
        after = state_of(
            *first,
            AttemptStarting(attempt=2, target="local"),
            AttemptResumes(attempt=2, step=3, path=None),
            saved(5, 2),
        )

        assert after.attempts[0] == before.attempts[0]
        assert after.open_attempt == after.attempts[1]

    def test_a_checkpoint_beyond_all_others_is_progress(self) -> None:
        state = state_of(AttemptStarting(attempt=1, target="local"), saved(10))

        assert state.checkpoints == (saved(10),)
        assert state.best_step == 10
        assert state.attempts[0].progressed

    def test_a_checkpoint_of_step_0_is_progress_once(self) -> None:
        assert state_of(AttemptStarting(attempt=1, target="local"), saved(0)).attempts[0].progressed

    @pytest.mark.parametrize("step", [9, 10])
    def test_a_checkpoint_at_a_step_that_was_saved_before_is_none(self, step: int) -> None:
        state = state_of(
            AttemptStarting(attempt=1, target="local"),
            saved(10),
            AttemptEnded(attempt=1, cause="infra", reason="", step=10),
            AttemptStarting(attempt=2, target="local"),
            saved(step, 2),
        )

        assert len(state.checkpoints) == 2
        assert state.best_step == 10
        assert not state.attempts[1].progressed

    def test_a_dropped_checkpoint_no_longer_counts_but_was_progress(self) -> None:
        dropped = CheckpointsDropped(attempt=1, paths=(saved(10).path, saved(30).path), reason="keep_last: 1")

        state = state_of(AttemptStarting(attempt=1, target="local"), saved(10), saved(20), saved(30), dropped)

        assert state.checkpoints == (saved(20),)
        assert state.best_step == 30

    def test_a_cancelled_run_is_cancelling_until_it_is_resumed(self) -> None:
        assert state_of(CancelRequested(by="me")).cancelling
        assert not state_of(CancelRequested(by="me"), ResumeRequested(by="me")).cancelling

    def test_an_ended_run_says_when_and_how(self) -> None:
        state = state_of(Driving(driver=ME), RunEnded(state="failed", reason="why"))

        assert (state.ended, state.ended_at) == (RunEnded(state="failed", reason="why"), 20.0)

    def test_a_resumed_run_has_not_ended_and_counts_from_here(self) -> None:
        attempt = (AttemptStarting(attempt=1, target="local"), AttemptEnded(attempt=1, cause="e", reason="", step=3))

        state = state_of(*attempt, RunEnded(state="failed", reason="why"), ResumeRequested(by="me"))

        assert (state.ended, state.ended_at, state.budget_from) == (None, None, 1)
        assert len(state.attempts) == 1

    def test_a_run_that_was_resumed_elsewhere_is_there_until_it_is_resumed_elsewhere_again(self) -> None:
        there = ResumeRequested(by="me", target="lab", site={"kind": "slurm"}, spec={"name": "there"})

        assert state_of(Driving(driver=ME), there).driver is None
        state = state_of(there, ResumeRequested(by="me"))
        assert (state.target, state.site, state.spec) == ("lab", {"kind": "slurm"}, {"name": "there"})
        assert (state.overrides, state.changed_after) == ((), 0)
        back = state_of(there, ResumeRequested(by="me", target="local"))
        assert (back.target, back.site) == ("local", None)

    def test_a_run_that_was_moved_away_has_ended_here(self) -> None:
        state = state_of(RunEnded(state="stopped", reason=""), Moved(to="gs://bucket/runs/run"))

        assert state.moved_to == "gs://bucket/runs/run"
        assert state.ended == RunEnded(state="moved", reason="it goes on at gs://bucket/runs/run")
        assert state.ended_at == 20.0


SUBMITTING = Submitting(submission=1, target="lab")
SUBMITTED = Submitted(submission=1, job="7")


class TestJobs:
    def test_a_submission_without_an_answer_has_no_job(self) -> None:
        state = state_of(SUBMITTING)

        assert (state.submission, state.submissions) == (Submission(number=1, at=10.0), 1)

    def test_one_that_was_taken_has(self) -> None:
        assert state_of(SUBMITTING, SUBMITTED).submission == Submission(number=1, at=10.0, job="7")

    def test_the_newest_submission_counts_until_its_own_answer_without_a_job(self) -> None:
        again = Submitting(submission=2, target="lab")

        state = state_of(SUBMITTING, SUBMITTED, again)
        assert (state.submission, state.submissions) == (Submission(number=2, at=30.0), 2)
        assert state_of(SUBMITTING, again, SUBMITTED).submission == Submission(number=2, at=20.0), "that is the first's"

    def test_a_resumed_run_needs_no_job_and_numbers_go_on(self) -> None:
        resumed = state_of(SUBMITTING, SUBMITTED, RunEnded(state="failed", reason=""), ResumeRequested(by="me"))

        assert (resumed.submission, resumed.submissions) == (None, 1)
        late = Submitted(submission=1, job="7")
        assert state_of(SUBMITTING, ResumeRequested(by="me"), late).submission is None

    def test_hosts_that_failed_are_excluded_each_once_until_the_run_is_resumed(self) -> None:
        lost = [
            event
            for number, hosts in enumerate([("n2", "n1"), (), ("n3", "n2")], 1)
            for event in (
                AttemptStarting(attempt=number, target="lab"),
                AttemptEnded(attempt=number, cause="infra", reason="", step=0, lost=hosts),
            )
        ]

        assert state_of(*lost).excluded == ("n2", "n1", "n3")
        assert state_of(*lost, ResumeRequested(by="me")).excluded == ()

    @pytest.mark.parametrize("checkpoint", [True, False])
    def test_a_cancel_says_whether_to_save_first_and_the_last_word_counts(self, checkpoint: bool) -> None:
        asked = CancelRequested(by="me", checkpoint=checkpoint)

        state = state_of(CancelRequested(by="me", checkpoint=not checkpoint), asked)
        assert (state.cancelling, state.saves_first) == (True, checkpoint)
        assert not state_of(asked, ResumeRequested(by="me")).saves_first

    def test_an_event_of_before_there_were_jobs_is_read_as_it_was_meant(
        self, storage: PosixStorage, ledger: Ledger
    ) -> None:
        ledger.append(AttemptEnded(attempt=1, cause="infra", reason="", step=3), after=0)
        ledger.append(CancelRequested(by="me"), after=1)
        for name, key in (("00000001.json", "lost"), ("00000002.json", "checkpoint")):
            body = json.loads(storage.read(f"events/{name}"))
            del body[key]
            storage.replace(f"events/{name}", json.dumps(body).encode())

        events = [record.event for record in Ledger(storage).records()]
        assert events == [AttemptEnded(attempt=1, cause="infra", reason="", step=3), CancelRequested(by="me")]


def test_an_appended_event_is_read_back_by_another_process_s_ledger(storage: PosixStorage, ledger: Ledger) -> None:
    events = [
        Submitting(submission=1, target="lab", exclude=("n1",)),
        Submitted(submission=1, job="12_3"),
        Driving(driver=ME),
        AttemptStarting(attempt=1, target="local"),
        AttemptStarted(attempt=1, hosts=("a", "b"), handle={"pids": {"0": [1, 2]}}),
        AttemptResumes(attempt=1, step=0, path=None),
        saved(10),
        CheckpointsDropped(attempt=1, paths=("x", "y"), reason='naïve "reason"\n; 日本'),
        CancelRequested(by="me"),
        ResumeRequested(by="me", target="lab", site={"kind": "slurm", "slurm": {"exclude": ["n1"]}}),
        AttemptEnded(attempt=1, cause="infra", reason="", step=10, lost=("n2",)),
        Moved(to="gs://bucket/runs/run"),
        RunEnded(state="failed", reason=""),
    ]

    for number, event in enumerate(events):
        ledger.append(event, after=number)

    records = Ledger(storage).records()
    assert [record.event for record in records] == events
    assert [record.number for record in records] == list(range(1, len(events) + 1))
    assert {type(event).__name__ for event in events} == {kind.__name__ for kind in Event.__args__}


def test_a_number_that_is_taken_is_a_conflict_and_changes_nothing(storage: PosixStorage, ledger: Ledger) -> None:
    Ledger(storage).append(CancelRequested(by="other"), after=0)

    with pytest.raises(LedgerConflict, match="event 1"):
        ledger.append(CancelRequested(by="me"), after=0)

    assert [record.event for record in ledger.records()] == [CancelRequested(by="other")]


def test_append_returns_what_others_wrote_after_it_too(ledger: Ledger) -> None:
    state = ledger.append(CancelRequested(by="me"), after=0)

    assert (state.version, state.cancelling) == (1, True)


def test_append_while_tries_again_after_a_conflict(storage: PosixStorage, ledger: Ledger) -> None:
    asked = []

    def other_writes_in_between(state: RunState) -> None:
        asked.append(state.version)
        if state.version < 3:
            Ledger(storage).append(CancelRequested(by="other"), after=state.version)

    state = ledger.append_while(other_writes_in_between, ResumeRequested(by="me"))

    assert asked == [0, 1, 2, 3]
    assert (state.version, state.cancelling) == (4, False)


def test_append_while_asks_again_after_a_conflict_and_then_refuses(storage: PosixStorage, ledger: Ledger) -> None:
    def only_into_an_empty_ledger(state: RunState) -> None:
        if state.version:
            raise Fenced("too late")
        Ledger(storage).append(CancelRequested(by="other"), after=0)

    with pytest.raises(Fenced):
        ledger.append_while(only_into_an_empty_ledger, ResumeRequested(by="me"))

    assert [record.event for record in ledger.records()] == [CancelRequested(by="other")]


def test_two_processes_that_append_lose_nothing_and_leave_no_gap(storage: PosixStorage) -> None:
    ready = fork.Barrier(2)

    def write(who: str) -> None:
        ledger = Ledger(storage)
        ready.wait()
        for number in range(100):
            ledger.append_while(always, CancelRequested(by=f"{who}{number}"))

    writers = [fork.Process(target=write, args=(who,)) for who in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    records = Ledger(storage).records()
    by = [record.event.by for record in records if isinstance(record.event, CancelRequested)]
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [record.number for record in records] == list(range(1, 201))
    for who in "ab":  # each one's events, in the order of its writing
        assert [one for one in by if one[0] == who] == [f"{who}{number}" for number in range(100)]


class _Forgetful(PosixStorage):
    """Lists a folder while others write: a directory is read piece by piece, and an entry may be passed over."""

    passes_over: str | None = None

    def list(self, folder: str) -> list[str]:
        return [name for name in super().list(folder) if name != self.passes_over]


def test_a_name_that_a_listing_passes_over_is_read_the_next_time(tmp_path: Path) -> None:
    storage = _Forgetful(tmp_path)
    writer, reader = Ledger(PosixStorage(tmp_path)), Ledger(storage)
    for number in range(5):
        writer.append(CancelRequested(by=str(number)), after=number)

    storage.passes_over = "00000003.json"
    first = reader.refresh().version
    storage.passes_over = None
    records = reader.records()

    assert first == 2
    assert [record.number for record in records] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("change", [{"kind": "Teleported"}, {"format": 2}, {"kind": "Teleported", "format": 2}])
def test_an_event_of_a_newer_launcher_is_refused_by_name(storage: PosixStorage, change: dict[str, Any]) -> None:
    Ledger(storage).append(CancelRequested(by="me"), after=0)
    body = json.loads(storage.read("events/00000001.json")) | {"number": 2}
    storage.create("events/00000002.json", json.dumps(body | change).encode())

    with pytest.raises(FormatTooNew, match=r"00000002\.json .* newer launcher; update"):
        Ledger(storage).refresh()


def test_a_refused_event_is_refused_each_time(storage: PosixStorage, ledger: Ledger) -> None:
    ledger.append(CancelRequested(by="me"), after=0)
    body = json.loads(storage.read("events/00000001.json")) | {"number": 2, "format": 2}
    storage.create("events/00000002.json", json.dumps(body).encode())

    for _ in range(2):
        with pytest.raises(FormatTooNew):
            ledger.refresh()


_steps = st.integers(0, 50)
_attempts = st.integers(1, 4)
_paths = st.sampled_from("abcdef")
_events = st.one_of(
    st.builds(Driving, driver=st.builds(Driver, host=st.just("h"), machine=st.just("m"), pid=_steps, started=_steps)),
    st.builds(AttemptStarting, attempt=_attempts, target=st.just("local")),
    st.builds(
        AttemptStarted,
        attempt=_attempts,
        hosts=st.lists(st.text(), max_size=2).map(tuple),
        handle=st.dictionaries(st.text(), st.integers()),
    ),
    st.builds(AttemptResumes, attempt=_attempts, step=_steps, path=st.none() | _paths),
    st.builds(AttemptEnded, attempt=_attempts, cause=st.text(), reason=st.text(), step=_steps),
    st.builds(
        CheckpointSaved,
        attempt=_attempts,
        step=_steps,
        epoch=_steps,
        path=_paths,
        bytes=_steps,
        complete=st.booleans(),
    ),
    st.builds(CheckpointsDropped, attempt=_attempts, paths=st.lists(_paths).map(tuple), reason=st.text()),
    st.builds(CancelRequested, by=st.text()),
    st.builds(ResumeRequested, by=st.text()),
    st.builds(RunEnded, state=st.text(), reason=st.text()),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(_events, st.booleans()), max_size=12))
def test_reading_bit_by_bit_gives_the_same_state_as_reading_all_at_once(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[Event, bool]]
) -> None:
    storage = PosixStorage(tmp_path_factory.mktemp("ledger"))
    writer, reader = Ledger(storage), Ledger(storage)

    for number, (event, reads_now) in enumerate(events):
        writer.append(event, after=number)
        if reads_now:
            reader.refresh()

    records = Ledger(storage).records()
    assert [record.event for record in records] == [event for event, _ in events]
    assert reader.refresh() == writer.refresh() == fold(records)


@settings(deadline=None)
@given(st.lists(_events, max_size=15), st.integers(0, 15))
def test_a_fold_may_be_cut_anywhere(events: list[Event], cut: int) -> None:
    records = [Record(number, float(number), event) for number, event in enumerate(events, 1)]

    state = fold(records[cut:], fold(records[:cut]))

    assert state == fold(records)
