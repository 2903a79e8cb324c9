"""`python drive.py RUN_DIR [NAME=SECONDS ...]`: drives a run of stubs, as `launcher run` does one of ranks."""

import logging
import signal
import sys

from launcher.address import storage_at
from launcher.backends.tpu import attempt
from launcher.backends.tpu.backend import TpuBackend
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.supervise import Supervisor

for word in sys.argv[2:]:
    name, seconds = word.split("=")
    assert hasattr(attempt, name)
    setattr(attempt, name, float(seconds))
logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S")
run = Run(storage_at(sys.argv[1]))
supervisor = Supervisor(run, JobSpec.model_validate(run.now.spec), TpuBackend(worker=("-m", "gs_stub")))
signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
print(supervisor.drive())
