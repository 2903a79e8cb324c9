"""What a cluster to test on is made of, as far as it is a pure function: tests/slurm holds the rest."""

from dataclasses import fields
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from machines import processes
from machines.lab import networks_for
from slurm.cluster import Client, ClusterError, Settings, client, command_line, configuration
from slurm.cluster.layout import Addresses, Layout

GOLDEN = Path(__file__).with_name("golden") / "slurm"
LAYOUT = Layout("lab", Path("/state/lab"))
ADDRESSES = Addresses(IPv4Network("198.18.7.0/24"))
BOOKWORM, TRIXIE = (22, 5), (24, 11)
CLUSTERS = {
    "as-most-sites": (Settings(nodes=2, gpus=2), BOOKWORM, 1),
    "all-turned-round": (
        Settings(1, 2, 2000, 0, False, "linuxproc", 0, 30, 120, send_user_signal=False, requeue=False),
        BOOKWORM,
        None,
    ),
    "newer": (Settings(nodes=1, gpus=1), TRIXIE, 2),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_configuration_files(name: str, request: pytest.FixtureRequest) -> None:
    settings, version, cgroups = CLUSTERS[name]
    files = configuration.files(LAYOUT, settings, ADDRESSES, version, cgroups)

    shown = "".join(f"----- {path.name}\n{text.rstrip()}\n" for path, text in files.items())
    golden = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(shown)
    assert shown == golden.read_text(), "if this is meant: pytest --update-golden"


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_setting_is_left_empty(name: str) -> None:
    """Slurm refuses such a file."""
    for path, text in configuration.files(LAYOUT, CLUSTERS[name][0], ADDRESSES, *CLUSTERS[name][1:]).items():
        assert not [line for line in text.splitlines() if line.endswith("=")], path


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"nodes": 0}, "nodes is 0; give 1 or more"),
        ({"nodes": 201}, "at most 200"),
        ({"cpus": 8, "memory_mb": 7}, "memory_mb is 7; give 8 or more"),
        ({"kill_wait_seconds": 0}, "kill_wait_seconds is 0"),
        ({"cred_expire_seconds": 4}, "cred_expire_seconds is 4; give 5 or more"),
        ({"shared": ("/home/me",)}, "only folders under /tmp"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        Settings(**wrong)  # type: ignore[arg-type]


def test_settings_are_the_same_after_they_were_written_down() -> None:
    settings = Settings(nodes=3, proctrack="linuxproc", shared=("/tmp/a", "/tmp/b"))

    assert Settings.from_json(settings.to_json()) == settings
    assert settings.differences(Settings(nodes=3, shared=("/tmp/a", "/tmp/b"))) == ["proctrack: linuxproc -> cgroup"]


def test_settings_of_another_version_are_refused() -> None:
    with pytest.raises(ClusterError, match="down --wipe"):
        Settings.from_json('{"nodes": 3}')


@pytest.mark.parametrize("name", ["", "8th", "Upper", "eightletter", "a-b"])
def test_names_that_no_interface_can_have(name: str) -> None:
    with pytest.raises(ClusterError, match="up to 7"):
        Layout(name, Path("/state"))


@pytest.mark.parametrize("folder", ["/with blank", "/with#hash", "/" + "x" * 100])
def test_folders_that_cannot_stand_in_slurm_conf(folder: str) -> None:
    with pytest.raises(ClusterError, match="--state"):
        Layout("lab", Path(folder))


def test_the_longest_interface_fits_the_kernel() -> None:
    assert len(Layout("seven77", Path("/state")).interface("n200")) == 15


def test_marks_tell_machines_apart() -> None:
    assert LAYOUT.mark("n1").startswith(LAYOUT.mark())
    assert not (LAYOUT.mark("n10") + "\0").startswith(LAYOUT.mark("n1") + "\0")


def test_addresses_are_all_different_and_in_the_network() -> None:
    machines = [ADDRESSES.of(name) for name in ("ctl", *Settings(nodes=200).node_names)]

    assert len({*machines, ADDRESSES.login}) == 202
    assert all(address.startswith("198.18.7.") for address in machines)


def test_two_clusters_try_networks_in_another_order_and_can_take_any() -> None:
    assert networks_for("lab")[0] != networks_for("test")[0]
    assert len(set(networks_for("lab"))) == 256


def test_what_scontrol_shows_is_read_to_the_end_of_each_value() -> None:
    line = "JobId=7 JobName=wrap it Restarts=1 Comment= Command=/a b=c TRES=cpu=4,gres/gpu=2 CPUs/Task=4 Reason=x y"

    assert client.pairs(line) == {
        "JobId": "7",
        "JobName": "wrap it",
        "Restarts": "1",
        "Comment": "",
        "Command": "/a b=c",
        "TRES": "cpu=4,gres/gpu=2",
        "CPUs/Task": "4",
        "Reason": "x y",
    }


def test_a_client_names_the_program_that_is_missing(tmp_path: Path) -> None:
    user = Client(tmp_path / "slurm.conf", tmp_path)

    with pytest.raises(ClusterError, match="no-such-program is not installed"):
        user.output("no-such-program")
    with pytest.raises(ClusterError, match=r"exit code 3 of sh .*because"):
        user.output("sh", "-c", "echo because >&2; exit 3")
    with pytest.raises(ClusterError, match="no answer after 0 s"):
        user.output("sleep", "9", seconds=0.1)
    assert user.output("sh", "-c", "echo $SLURM_CONF; pwd") == f"{tmp_path}/slurm.conf\n{tmp_path}\n"


def test_words_become_settings() -> None:
    words = ["up", "--nodes=2", "--no-accounting", "--share", "/tmp/a", "--share", "/tmp/b"]

    chosen = command_line.settings_of(command_line.parser().parse_args(words))
    assert chosen == Settings(nodes=2, accounting=False, shared=("/tmp/a", "/tmp/b"))
    assert command_line.settings_of(command_line.parser().parse_args(["up"])) is None


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.parser().parse_args(["up", "--help"])

    shown = capsys.readouterr().out
    for field in fields(Settings):
        assert "--" + field.name.replace("_", "-").removesuffix("d") in shown


def test_what_is_waited_for_is_named() -> None:
    with pytest.raises(ClusterError, match="waited 0 s for rain"):
        processes.until(lambda: False, 0.01, "rain", every=0.001)
