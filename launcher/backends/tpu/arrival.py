"""What a host does before its ranks: sees that its account may use the run directory, and brings the code.

python -m launcher.backends.tpu.arrival RUN_DIR ARCHIVE      started by runner.py, with the ranks' Python
"""

import os
import sys
import urllib.request

from launcher.address import storage_at
from launcher.backends.tpu.runner import NOT_ALLOWED
from launcher.gcs import NoBucket
from launcher.gcs_client import SCHEME
from launcher.snapshot import unpack
from launcher.storage import Denied, try_out

ROLE = "roles/storage.objectUser"
_EMAIL = "computeMetadata/v1/instance/service-accounts/default/email"


def main() -> int:
    run_dir, archive = sys.argv[1:]
    try:
        try_out(storage_at(run_dir))
        unpack(archive)
    except (Denied, NoBucket) as error:
        print(explained(str(error.strerror), run_dir, account()), file=sys.stderr)
        return NOT_ALLOWED
    return 0


def explained(said: str, run_dir: str, email: str) -> str:
    """Who lacks what, and the command that gives it. Pure.

    Args:
        said: the storage's error, whose advice is for those who can log in.
        email: of the account; "" where it has none.
    """
    bucket = run_dir.removeprefix(SCHEME).partition("/")[0]
    what, _, _ = said.partition("; ")
    if not email:
        return (
            f"{what}; hosts have no service account: name one in tpu.service_account, with the role {ROLE} on {bucket}"
        )
    return (
        f"{what}; hosts act as {email}, which needs the role {ROLE} on the bucket: gcloud storage buckets "
        f"add-iam-policy-binding {SCHEME}{bucket} --member=serviceAccount:{email} --role={ROLE}"
    )


def account() -> str:
    """The service account of this host, as its metadata server says; "" where there is none."""
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(f"http://{server}/{_EMAIL}", headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.read().decode().strip())
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
