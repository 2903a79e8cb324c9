"""The job spec: typed and frozen where it is right; where it is not, every problem at once, with file, line and key."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from launcher.cli.main import main
from launcher.errors import USAGE, SpecError
from launcher.spec import MAX_RANKS, ClassSpec, JobSpec, Model, TrainerArgs, load_spec, parse_spec, seconds
from launcher.yamlfile import MAX_BYTES

JOBS = Path(__file__).parents[2] / "jobs"
LEAST = "name: x\nmodel: {class_path: a.B}\n"
FIVE_LINES = """\
name: boring
model:
  class_path: lightning.pytorch.demos.boring_classes.BoringModel
trainer:
  max_epochs: 1
"""
EVERYTHING = """\
name: everything-1.0_b
seed_everything: 4294967295
model:
  class_path: package.Model
  init_args: {lr: 1e-3, layers: [64, 64], net: {class_path: torch.nn.ReLU}}
data: {class_path: package.Data}
trainer:
  strategy: {class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {static_graph: true}}
  precision: bf16-mixed
  logger: [{class_path: lightning.pytorch.loggers.CSVLogger}]
  callbacks: {class_path: lightning.pytorch.callbacks.DeviceStatsMonitor}
  max_epochs: -1
  max_time: {hours: 12, minutes: 0.5}
  limit_train_batches: 0.5
  limit_val_batches: 7
  val_check_interval: "00:01:00:00"
  gradient_clip_val: 1
  deterministic: warn
  profiler: simple
resources: {nodes: 2, tasks_per_node: 4, gpus_per_node: 4, cpus_per_task: 3, mem: 16G, time: 1-12:00:00}
checkpoint: {every_n_steps: 100, every: null, keep_last: 1}
retry: {preemption: 7, timeout: unlimited, infra: 0, error: 1, max_no_progress: 2}
env: {vars: {NCCL_DEBUG: INFO, ANSWER: "42", EMPTY: ""}}
code: {path: [src, ../shared]}
slurm:
  partition: gpu
  exclude: [node7]
  signal_delay: 90s
  setup: [module load cuda]
  additional_parameters: {licenses: matlab, nice: 100, exclusive: true}
tpu: {accelerator_type: v5litepod-16, zone: us-east1-c, spot: false, reserved: true, labels: {team: vision}}
sweep:
  grid: {model.init_args.lr: [1e-3, 1e-4], trainer.max_epochs: [1, 2]}
"""


def problems(text: str | bytes, *overrides: str) -> list[str]:
    """As they are printed; none where the spec is right."""
    try:
        parse_spec(text, source="job.yaml", overrides=overrides)
    except SpecError as error:
        found = error.problems
    else:
        return []
    assert found, "a refusal without a reason"
    return [str(problem) for problem in found]


def spec_of(text: str) -> JobSpec:
    return parse_spec(text, source="job.yaml")


class TestRight:
    def test_five_lines_are_enough(self) -> None:
        spec = spec_of(FIVE_LINES)

        assert spec.name == "boring"
        assert spec.model == Model(class_path="lightning.pytorch.demos.boring_classes.BoringModel")
        assert spec.trainer.max_epochs == 1
        assert spec.data is None

    def test_defaults(self) -> None:
        spec = spec_of(LEAST)

        assert spec.seed_everything == 0
        assert spec.trainer == TrainerArgs()
        assert (spec.resources.nodes, spec.resources.tasks_per_node, spec.resources.time) == (1, None, None)
        assert (spec.checkpoint.every_n_steps, spec.checkpoint.every, spec.checkpoint.keep_last) == (None, "auto", 3)
        assert (spec.retry.preemption, spec.retry.timeout) == ("unlimited", "unlimited")
        assert (spec.retry.infra, spec.retry.error, spec.retry.max_no_progress) == (3, 0, 5)
        assert (spec.env.vars, spec.code.path) == ({}, [])
        assert (spec.slurm, spec.tpu, spec.sweep) == (None, None, None)

    def test_every_section_has_its_type(self) -> None:
        spec = spec_of(EVERYTHING)

        assert spec.model.init_args == {"lr": 0.001, "layers": [64, 64], "net": {"class_path": "torch.nn.ReLU"}}
        assert isinstance(spec.trainer.strategy, ClassSpec)
        assert isinstance(spec.trainer.callbacks, ClassSpec)
        assert isinstance(spec.trainer.logger, list)
        assert isinstance(spec.trainer.logger[0], ClassSpec)
        assert spec.trainer.max_time == {"hours": 12, "minutes": 0.5}
        assert type(spec.trainer.limit_train_batches) is float
        assert type(spec.trainer.limit_val_batches) is int
        assert type(spec.trainer.gradient_clip_val) is float
        assert spec.resources.time is not None
        assert seconds(spec.resources.time) == 36 * 3600
        assert spec.checkpoint.every is None
        assert spec.slurm is not None
        assert spec.slurm.additional_parameters == {"licenses": "matlab", "nice": 100, "exclusive": True}
        assert spec.tpu is not None
        assert spec.tpu.zone == ["us-east1-c"]
        assert spec.sweep is not None
        assert spec.sweep.grid["trainer.max_epochs"] == [1, 2]

    @pytest.mark.parametrize("text", [FIVE_LINES, EVERYTHING, LEAST], ids=["five lines", "everything", "least"])
    def test_a_spec_comes_back_from_json(self, text: str) -> None:
        spec = spec_of(text)
        dumped = json.dumps(spec.model_dump(mode="json", exclude_unset=True), allow_nan=False)

        assert JobSpec.model_validate(json.loads(dumped)) == spec

    def test_a_spec_does_not_change(self) -> None:
        spec = spec_of(EVERYTHING)

        for section, field in [(spec, "name"), (spec.model, "class_path"), (spec.trainer, "max_epochs")]:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, field, "else")
        with pytest.raises(ValidationError, match="frozen"):
            spec.resources.nodes = 3  # type: ignore[misc]

    @pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_the_jobs_of_this_repository_are_right(self, path: Path) -> None:
        assert load_spec(path).model.class_path


class TestDurations:
    @pytest.mark.parametrize(
        ("written", "long"),
        [
            ("90s", 90),
            ("10m", 600),
            ("24h", 86_400),
            ("2d", 172_800),
            ("1h30m", 5400),
            ("1d2h3m4s", 93_784),
            ("1.5h", 5400),
            ("0:01:30", 90),
            ("24:00:00", 86_400),
            ("1-12:00:00", 129_600),
            ("1-12", 129_600),
            ("1-12:30", 131_400),
        ],
    )
    def test_a_duration_is_so_many_seconds(self, written: str, long: float) -> None:
        assert seconds(written) == long
        assert problems(f"{LEAST}resources: {{time: {written}}}") == []

    @pytest.mark.parametrize("written", ["30", "0", "-5", "1.5", "10:00", "'30'", "1e3"])
    @pytest.mark.parametrize("key", ["resources.time", "checkpoint.every", "slurm.signal_delay"])
    def test_a_number_without_a_unit_is_refused_and_the_message_says_why(self, key: str, written: str) -> None:
        section, name = key.split(".")
        (problem,) = problems(f"{LEAST}{section}:\n  {name}: {written}")

        assert problem.startswith(f"job.yaml:4: {key}: expected ")
        assert "a duration such as '90s'" in problem
        assert "a bare 30 or 10:00 could mean minutes or seconds" in problem

    @pytest.mark.parametrize(
        "written", ["0s", "0:00:00", "''", "5x", "1m1h", "s", "1h 30m", "1:60:00", "1-", "\u0661m", "5M"]
    )
    def test_no_time_and_other_forms_are_refused(self, written: str) -> None:
        (problem,) = problems(f"{LEAST}resources: {{time: {written}}}")

        assert "expected a duration such as" in problem

    @pytest.mark.parametrize("written", ["", "30", "10:00", "1h\n"])
    def test_seconds_refuses_what_a_spec_may_not_say(self, written: str) -> None:
        with pytest.raises(ValueError, match="not a duration"):
            seconds(written)


class TestWrong:
    @pytest.mark.parametrize(
        ("section", "key", "message"),
        [
            # unknown keys, and the name that was meant
            ("trainr: {}", "trainr", "unknown key 'trainr'; did you mean 'trainer'?"),
            ("trainer: {max_epoch: 3}", "trainer.max_epoch", "unknown key 'max_epoch'; did you mean 'max_epochs'?"),
            ("trainer: {grad_clip: 3}", "trainer.grad_clip", "unknown key 'grad_clip'"),
            ("resources: {node: 1}", "resources.node", "unknown key 'node'; did you mean 'nodes'?"),
            ("max_epochs: 3", "max_epochs", "unknown key 'max_epochs'; did you mean 'trainer.max_epochs'?"),
            ("resources: {infra: 3}", "resources.infra", "unknown key 'infra'; did you mean 'retry.infra'?"),
            ("code: {zzz: 1}", "code.zzz", "unknown key 'zzz'; known here: path"),
            ("data: {class_path: a.B, args: {}}", "data.args", "unknown key 'args'; did you mean 'init_args'?"),
            ("'a b': 1", "'a b'", "unknown key 'a b'; known here: name, seed_everything, model"),
            # of another type
            ("trainer: {max_epochs: '3'}", "trainer.max_epochs", "expected a whole number, got the text '3'; remove"),
            ("trainer: {max_epochs: 1_000}", "trainer.max_epochs", "expected a whole number, got the text '1_000'"),
            ("trainer: {max_epochs: 1.5}", "trainer.max_epochs", "expected a whole number, got the number 1.5"),
            ("trainer: {max_epochs: true}", "trainer.max_epochs", "expected a whole number, got true"),
            ("trainer: 3", "trainer", "expected a mapping, got the number 3"),
            ("trainer: [1]", "trainer", "expected a mapping, got a list"),
            ("trainer:", "trainer", "expected a mapping, got nothing; give it a value or leave it out"),
            ("data: a.B", "data", "expected a mapping with class_path and init_args, got the text 'a.B'"),
            ("data: {class_path: B}", "data.class_path", "expected an importable name such as 'package.module.Class'"),
            ("data: {class_path: a.B, init_args: [1]}", "data.init_args", "expected a mapping, got a list"),
            ("data: {init_args: {}}", "data.class_path", "required, but missing"),
            ("data: {class_path: }", "data.class_path", "expected an importable name such as 'package.module.Class'"),
            ("code: {path: src}", "code.path", "expected a list, got the text 'src'"),
            ("env: {vars: {A: 1}}", "env.vars.A", "expected text, got the number 1; put it in quotes: \"1\""),
            ("env: {vars: {A: true}}", "env.vars.A", "expected text, got true; put it in quotes: \"true\""),
            ("env: {vars: {2A: x}}", "env.vars.2A", "expected letters, digits and '_', no digit first, got the text"),
            ("resources: {mem: 16}", "resources.mem", "expected an amount with its unit, such as '16G' or '512M'"),
            ("trainer: {logger: yes}", "trainer.logger", "got the text 'yes'; write true"),
            ("trainer: {benchmark: 'Off'}", "trainer.benchmark", "expected true or false, got the text 'Off'; write"),
            ("trainer: {callbacks: [3]}", "trainer.callbacks.0", "expected a mapping with class_path and"),
            ("trainer: {callbacks: [{class_path: 1}]}", "trainer.callbacks.0.class_path", "expected an importable"),
            ("trainer: {max_time: 30}", "trainer.max_time",
             "expected a time such as '01:12:00:00' (DD:HH:MM:SS) or a mapping such as {hours: 12}, got the number 30"),
            ("trainer: {max_time: {hour: 3}}", "trainer.max_time.hour",
             "expected 'weeks', 'days', 'hours', 'minutes' or 'seconds', got the text 'hour'; did you mean 'hours'?"),
            ("trainer: {precision: 17}", "trainer.precision", "expected 64, 32, 16, 'transformer-engine'"),
            ("trainer: {precision: bf16_mixed}", "trainer.precision", "; did you mean 'bf16-mixed'?"),
            ("retry: {preemption: unlimitd}", "retry.preemption",
             "expected a whole number or 'unlimited', got the text 'unlimitd'; did you mean 'unlimited'?"),
            # negative, or out of range
            ("trainer: {max_epochs: -2}", "trainer.max_epochs", "expected -1 or more, got -2"),
            ("trainer: {gradient_clip_val: -0.5}", "trainer.gradient_clip_val", "expected 0 or more, got -0.5"),
            ("trainer: {limit_train_batches: -1}", "trainer.limit_train_batches", "expected a share from 0.0"),
            ("trainer: {limit_train_batches: 1.5}", "trainer.limit_train_batches", "expected a share from 0.0"),
            ("trainer: {val_check_interval: 0}", "trainer.val_check_interval", "expected more than 0, got 0"),
            ("trainer: {max_time: {hours: -1}}", "trainer.max_time.hours", "expected 0 or more, got -1"),
            ("resources: {nodes: 0}", "resources.nodes", "expected 1 or more, got 0"),
            ("resources: {gpus_per_node: -1}", "resources.gpus_per_node", "expected 0 or more, got -1"),
            ("checkpoint: {keep_last: 0}", "checkpoint.keep_last", "expected 1 or more, got 0"),
            ("retry: {infra: -1}", "retry.infra", "expected 0 or more, got -1"),
            ("seed_everything: 4294967296", "seed_everything", "expected 4294967295 or less, got 4294967296"),
            ("resources: {nodes: 4-2}", "resources.nodes",
             "expected a whole number or a range such as '2-4', got the text '4-2'"),
            ("resources: {nodes: '4'}", "resources.nodes", "got the text '4'; remove the quotes"),
            ("resources: {nodes: 1-100001}", "resources", f"make 100,001 ranks; at most {MAX_RANKS:,} are possible"),
            ("resources: {nodes: 100001}", "resources", f"make 100,001 ranks; at most {MAX_RANKS:,} are possible"),
            ("resources: {nodes: 5000000000000000000, gpus_per_node: 8}", "resources", "40,000,000,000,000,000,000"),
            ("tpu: {accelerator_type: v, reserved: true}", "tpu", "with reserved: true, write spot: false"),
            # no plain value, of what must not be nothing
            ("trainer: {max_epochs: .inf}", "trainer.max_epochs", ".inf is no finite number"),
            ("trainer: {max_epochs: 1e999}", "trainer.max_epochs", "the number '1e999' is too large"),
            ("seed_everything: !!python/name:os.system", "seed_everything", "the tag '!!python/name:os.system' is not"),
            ("data: {class_path: .nan}", "data.class_path", ".nan is no finite number"),
        ],
    )  # fmt: skip
    def test_a_problem_names_line_and_key_and_what_to_write(self, section: str, key: str, message: str) -> None:
        (problem,) = problems(LEAST + section)

        assert problem.startswith(f"job.yaml:3: {key}: ")
        assert message in problem

    @pytest.mark.parametrize(
        ("name", "right"),
        [
            ("a", True),
            ("A.b-c_9", True),
            ("9", False),  # a number
            ("'9'", True),
            ("x" * 63, True),
            ("x" * 64, False),
            ("-a", False),
            (".a", False),
            ("a/b", False),
            ("ä", False),
            ("''", False),
            ("'a\n\n'", False),
        ],
    )
    def test_a_name_can_be_a_folder_and_a_host(self, name: str, right: bool) -> None:
        assert bool(problems(f"name: {name}\nmodel: {{class_path: a.B}}")) is not right

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "the file is empty"),
            ("# nothing\n---\n", "the file is empty"),
            ("- a\n- b", "expected keys and values, got a list"),
            ("[]", "expected keys and values, got an empty list"),
            ("rubbish", "expected keys and values, got the text 'rubbish'"),
            ("x" * 10_000, f"expected keys and values, got the text '{'x' * 57}...'"),
        ],
    )
    def test_what_is_no_mapping_is_told_what_a_spec_is(self, text: str, problem: str) -> None:
        assert problems(text, "name=x") == [f"job.yaml:1: {problem}; a job spec has at least a name and a model"]

    def test_what_is_missing_is_named(self) -> None:
        assert problems("trainer: {}") == [
            "job.yaml:1: name: required, but missing",
            "job.yaml:1: model: required, but missing",
        ]
        assert problems("name:\nmodel:\n") == [
            "job.yaml:1: name: expected 1 to 63 letters, digits, '.', '_' and '-', a letter or digit first, got "
            "nothing; give it a value",
            "job.yaml:2: model: expected a mapping with class_path and init_args, got nothing; give it a value",
        ]

    def test_all_problems_come_at_once_and_in_the_order_of_the_lines(self) -> None:
        found = problems(
            "name: x\n"
            "model: {class_path: a.B}\n"
            "trainer:\n"
            "  max_epoch: 3\n"
            "  max_steps: -5\n"
            "  devices: 2\n"
            "  callbacks:\n"
            "    - class_path: a.B\n"
            "      init_arg: {}\n"
            "    - init_args: {lr: .nan}\n"
            "resources: {nodes: 0, time: 30}\n"
            "name: y\n"
            "env: {vars: {A: 1}}\n"
            "sweep: {grid: {trainer.max_steps: [1, two]}}\n",
            "retry.infra=-1",
            "retry.infra",
        )

        assert [problem.split(": ")[:2] for problem in found] == [
            ["job.yaml:4", "trainer.max_epoch"],
            ["job.yaml:5", "trainer.max_steps"],
            ["job.yaml:6", "trainer.devices"],
            ["job.yaml:9", "trainer.callbacks.0.init_arg"],
            ["job.yaml:10", "trainer.callbacks.1.init_args.lr"],
            ["job.yaml:10", "trainer.callbacks.1.class_path"],
            ["job.yaml:11", "resources.nodes"],
            ["job.yaml:11", "resources.time"],
            ["job.yaml:12", "name"],
            ["job.yaml:13", "env.vars.A"],
            ["job.yaml:14", "sweep.grid.trainer.max_steps.1"],
            ["--set retry.infra", "expected key=value, such as trainer.max_epochs=3"],
            ["--set retry.infra=-1", "retry.infra"],
        ]

    def test_however_many_there_are(self) -> None:
        keys = [f"key_{number}_{'x' * 40}" for number in range(300)]

        found = problems(LEAST + "".join(f"{key}: 1\n" for key in keys))

        assert [problem.split(": ")[:2] for problem in found] == [
            [f"job.yaml:{line}", key] for line, key in enumerate(keys, 3)
        ]

    @pytest.mark.parametrize("key", ["ClassSpec", "str", "list[ClassSpec]", "[key]", "literal['simple']", "0"])
    @pytest.mark.parametrize("field", ["strategy", "callbacks", "logger", "profiler", "max_time", "precision"])
    def test_keys_that_the_validation_itself_uses_are_no_trouble(self, field: str, key: str) -> None:
        for value in (1, {key: 1}, {key: {key: []}}, {"class_path": 1}):
            found = problems(f"{LEAST}trainer: {json.dumps({field: {key: value}})}")

            assert found
            assert all(one.startswith(f"job.yaml:3: trainer.{field}") for one in found)


class TestTrainer:
    @pytest.mark.parametrize(
        ("name", "where"), TrainerArgs.elsewhere.items(), ids=lambda value: value.partition(" ")[0]
    )
    def test_what_the_launcher_decides_is_told_where_to_put_it(self, name: str, where: str) -> None:
        assert name not in TrainerArgs.model_fields
        assert problems(f"{LEAST}trainer:\n  {name}: 1") == [f"job.yaml:4: trainer.{name}: cannot be set here; {where}"]

    def test_these_are_what_the_launcher_decides(self) -> None:
        owned = {"accelerator", "devices", "num_nodes", "default_root_dir", "enable_checkpointing"}

        assert owned <= TrainerArgs.elsewhere.keys()

    def test_its_arguments_are_checked_without_lightning(self, tmp_path: Path) -> None:
        (tmp_path / "job.yaml").write_text(f"{FIVE_LINES}  max_epoch: 1\n")
        code = (
            "import sys, pathlib\n"
            "from launcher.errors import SpecError\n"
            "from launcher.spec import load_spec\n"
            "try: load_spec(pathlib.Path('job.yaml'))\n"
            "except SpecError as error: print(error)\n"
            "print(sorted({'lightning', 'torch', 'numpy'} & sys.modules.keys()))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

        assert done.stdout == "job.yaml:6: trainer.max_epoch: unknown key 'max_epoch'; did you mean 'max_epochs'?\n[]\n"


class TestSweep:
    @pytest.mark.parametrize(
        ("grid", "key", "message"),
        [
            ("{}", "", "expected at least one value, got an empty mapping"),
            ("{trainer.max_epochs: []}", ".trainer.max_epochs", "expected at least one value, got an empty list"),
            ("{trainer.max_epochs: 3}", ".trainer.max_epochs", "expected a list, got the number 3"),
            ("{trainer.max_epochs: [1, -2]}", ".trainer.max_epochs.1", "expected -1 or more, got -2"),
            ("{trainer.max_epoch: [1, 2, 3]}", ".trainer.max_epoch.0", "unknown key 'max_epoch'; did you mean"),
            ("{trainer.devices: [1]}", ".trainer.devices.0", "cannot be set here; use resources.tasks_per_node"),
            ("{trainer: [{max_epochs: -2}]}", ".trainer.0", "max_epochs: expected -1 or more, got -2"),
            ("{resources.time: [30]}", ".resources.time.0", "a bare 30 or 10:00 could mean minutes or seconds"),
            ("{resources.nodes: [1, 1000000]}", ".resources.nodes.1", "at most 100,000 are possible"),
            ("{name.x: [1]}", ".name.x", "name is no mapping; it cannot have a key 'x'"),
            ("{trainer..x: [1]}", ".trainer..x", "is no dotted key such as trainer.max_epochs"),
            ("{sweep.grid: [1]}", ".sweep.grid", "a sweep cannot vary itself"),
            ("{trainer.callbacks.1.class_path: [a.B]}", ".trainer.callbacks.1.class_path", "is a list of 1"),
            ("{trainer.callbacks.0.class_path: [B]}", ".trainer.callbacks.0.class_path.0", "expected an importable"),
        ],
    )  # fmt: skip
    def test_a_value_must_be_one_that_set_could_give(self, grid: str, key: str, message: str) -> None:
        (problem,) = problems(f"{LEAST}trainer: {{callbacks: [{{class_path: a.B}}]}}\nsweep:\n  grid: {grid}")

        assert problem.startswith(f"job.yaml:5: sweep.grid{key}: ")
        assert message in problem

    def test_what_is_around_a_value_does_not_matter(self) -> None:
        grid = "{model.init_args.lr: [1, x], model.class_path: [a.C, a.D], trainer.callbacks.0.init_args.x: [null]}"

        assert problems(f"{LEAST}trainer: {{callbacks: [{{class_path: a.B}}]}}\nsweep: {{grid: {grid}}}") == []


class TestFile:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"\0" * 1000, "job.yaml:1: contains a NUL byte"),
            (b"a: 1\n\xff\xfe", "job.yaml:2: not a text in UTF-8"),
            (bytes(range(256)) * 40_000, "job.yaml: a job spec is a few KB; this file has 10,240,000 bytes"),
            (b"trainer:\n\tmax_epochs: 1\n", "job.yaml:2: indent with spaces, not with tabs"),
            (b"name: x\n---\nname: y\n", "job.yaml:2: a second document begins here; a file holds one"),
            (b"{a: " * 50_000, "job.yaml:1: nested deeper than 50 levels"),
            (b"a: &a [" + b"1," * 5000 + b"]\nb: [*a, *a]", "job.yaml:2: more than 10,000 values, aliases expanded"),
            (b"a: &a " + b"x" * 200_000 + b"\nb: [*a, *a]", f"job.yaml:2: more than {MAX_BYTES:,} characters"),
        ],
        ids=["NUL", "not UTF-8", "10 MB", "tabs", "two documents", "depth", "bomb", "bomb of text"],
    )
    def test_hostile_files_are_told_apart(self, tmp_path: Path, content: bytes, says: str) -> None:
        path = tmp_path / "job.yaml"
        path.write_bytes(content)

        with pytest.raises(SpecError) as refused:
            load_spec(path)

        assert len(refused.value.problems) == 1
        assert str(refused.value).startswith(f"{tmp_path}/{says}")

    @pytest.mark.parametrize("path", ["/dev/zero", ".", "missing.yaml", "a\0b"])
    def test_what_is_no_file_is_a_problem_of_the_spec(self, path: str) -> None:
        with pytest.raises(SpecError) as refused:
            load_spec(Path(path))

        (problem,) = refused.value.problems
        assert (problem.where, problem.key) == (path, "")


class TestCommandLine:
    def test_check_prints_all_problems_and_no_traceback(self, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text(f"{FIVE_LINES}  max_epoch: 3\n  devices: 2\nresources:\n  time: 30\n")

        done = subprocess.run(
            [sys.executable, "-m", "launcher.cli.main", "check", "bad.yaml", "--set", "trainer.max_epochs=many"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

        assert (done.returncode, done.stdout) == (USAGE, "")
        assert "Traceback" not in done.stderr
        assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
            ["bad.yaml:6", "trainer.max_epoch"],
            ["bad.yaml:7", "trainer.devices"],
            ["bad.yaml:9", "resources.time"],
            ["--set trainer.max_epochs=many", "trainer.max_epochs"],
        ]

    @pytest.mark.parametrize("verb", ["check", "plan", "run"])
    @pytest.mark.parametrize("spec", ["/dev/zero", "/", "empty.yaml", "missing.yaml", "bomb.yaml", "huge.yaml"])
    def test_every_verb_that_reads_a_spec_refuses_a_wrong_one(
        self, verb: str, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("empty.yaml").touch()
        Path("bomb.yaml").write_text("".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 30)))
        Path("huge.yaml").write_text(f"{LEAST}resources: {{nodes: 1000000000}}")

        assert main([verb, spec]) == USAGE

        printed = capsys.readouterr()
        assert printed.out == ""
        assert spec in printed.err
        assert not Path("runs").exists()


QUICK = settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
MNIST = (JOBS / "mnist.yaml").read_text()
TOKENS = st.sampled_from(
    ["\n", " ", "  ", "- ", ": ", "? ", "{", "}", "[", "]", ",", "&a ", "*a", "<<: ", "!!str ", "!x ", "|\n ", ">-\n ",
     "#", "'", '"', "%", "---\n", "...\n", "\t", "\0", "\u2028", "\ufeff", "\\", "~", "null", "true", "yes", "1", "-1",
     "0x1f", "1e-3", ".inf", "1e999", "9" * 30, "name: x\n", "model: {class_path: a.B}\n", "trainer:\n", "max_epochs: ",
     "callbacks: ", "class_path: a.B\n", "init_args: ", "ClassSpec", "strategy: ", "resources: ", "time: ", "nodes: ",
     "env: {vars: ", "sweep: {grid: ", "trainer.max_epochs: [1]", "max_time: ", "precision: "]
)  # fmt: skip
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def a_spec_or_problems(text: str | bytes, *overrides: str) -> None:
    """Either a spec, which survives its way through JSON, or problems, each with a place and on a line of its own."""
    try:
        spec = parse_spec(text, source="job.yaml", overrides=overrides)
    except SpecError as error:
        found = error.problems
    else:
        dumped = json.dumps(spec.model_dump(mode="json", exclude_unset=True), allow_nan=False)
        assert JobSpec.model_validate(json.loads(dumped)) == spec
        return
    assert found
    for where, key, message in found:
        assert where.startswith(("job.yaml:", "--set "))
        assert message
        assert "something else" not in message
        assert "\n" not in where + key + message


class TestAnything:
    @QUICK
    @given(st.binary(max_size=300))
    def test_bytes(self, content: bytes) -> None:
        a_spec_or_problems(content)

    @QUICK
    @given(st.lists(TOKENS | st.text(max_size=3), max_size=40).map("".join))
    def test_what_looks_like_yaml(self, text: str) -> None:
        a_spec_or_problems(text)
        a_spec_or_problems(LEAST + text)

    @QUICK
    @given(st.data())
    def test_mutations_of_a_job(self, data: st.DataObject) -> None:
        text = MNIST
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(text)))
            length = data.draw(st.integers(0, 30))
            text = text[:start] + data.draw(TOKENS | st.text(max_size=5) | st.just(MNIST)) + text[start + length :]
        a_spec_or_problems(text)

    @QUICK
    @given(st.data())
    def test_any_value_in_any_field(self, data: st.DataObject) -> None:
        section = data.draw(st.sampled_from(sorted(JobSpec.model_fields)))
        fields = sorted(getattr(JobSpec.model_fields[section].annotation, "model_fields", ["x"]))
        key = data.draw(st.sampled_from([section, *(f"{section}.{field}" for field in fields)]))
        tree: dict[str, Any] = {"name": "x", "model": {"class_path": "a.B"}}
        value = data.draw(PLAIN)
        first, _, second = key.partition(".")
        tree[first] = {second: value} if second else value

        a_spec_or_problems(json.dumps(tree))

    @QUICK
    @given(
        st.lists(TOKENS | st.text(max_size=4), max_size=6).map("".join), st.sampled_from(sorted(JobSpec.model_fields))
    )
    def test_overrides(self, value: str, key: str) -> None:
        a_spec_or_problems(MNIST, f"{key}={value}", value, f"{key}.{value}")
