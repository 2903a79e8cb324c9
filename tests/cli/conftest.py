"""One folder of runs for all tests of the command line: to start a rank takes seconds, so that they share runs."""

from collections.abc import Iterator

import pytest

from cli.commands import JOBS, Done, Shell


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("cli"))
    yield shell
    shell.end()


@pytest.fixture(scope="session")
def finished(launcher: Shell) -> Done:
    """The run `reference`, which nothing disturbed."""
    done = launcher("run", JOBS / "net.yaml", "--name", "reference", "--json", seconds=240)
    assert done.code == 0, done.err
    return done
