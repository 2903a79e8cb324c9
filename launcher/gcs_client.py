"""The connection to Google Cloud Storage: gcsfs, made patient, and what its errors mean."""

import errno
import logging
import os
import time
from typing import Any

from launcher.errors import LauncherError
from launcher.storage import Denied, Unreachable

SCHEME = "gs://"
PATIENCE_S = 180.0
"""What fails for a passing reason (no connection, no answer, 408, 429, 5xx) is tried again for so long."""
_SILENCE_S = 60.0
"""A server that sends nothing for so long does not answer. gcsfs on its own waits for ever."""
_made: dict[int, Any] = {}
"""The connection of each process. That of a parent must not be used in its child, nor be cleared away there."""

log = logging.getLogger(__name__)


def as_oserror(error: Exception, failed: str) -> OSError | None:
    """What an error of gcsfs or of what it stands on means; None if it is not one."""
    import aiohttp
    import google.auth.exceptions
    import requests.exceptions
    from gcsfs.retry import HttpError, is_retriable  # type: ignore[import-untyped]  # has no types

    said = " ".join(str(error).split()) or type(error).__name__
    code = str(error.code) if isinstance(error, HttpError) else ""
    if isinstance(error, OSError) and error.errno is None and str(error).startswith("Forbidden"):
        code, said = "403", said.partition(" ")[2].partition(" ")[2]  # without the URL
    if code in ("403", "429") and "quota" in said.lower():
        return OSError(
            errno.EDQUOT, f"{failed}: a quota is used up ({said}); raise it, or make room, in the Google Cloud console"
        )
    if code in ("401", "403") or isinstance(error, google.auth.exceptions.GoogleAuthError):
        return Denied(
            errno.EACCES,
            f"{failed}: permission denied ({said}); log in (gcloud auth application-default login), or give this "
            "account the role roles/storage.objectUser on the bucket",
        )
    passing = (TimeoutError, aiohttp.ClientError, requests.exceptions.RequestException)
    if isinstance(error, passing) or is_retriable(error):
        return Unreachable(
            errno.ETIMEDOUT,
            f"{failed}: no good answer for {PATIENCE_S:g} s ({said}); look at the network and at "
            "https://status.cloud.google.com",
        )
    if isinstance(error, HttpError) or (isinstance(error, ValueError) and said.startswith("Bad Request")):
        return OSError(errno.EIO, f"{failed}: refused ({said})")
    return None


def connection() -> Any:
    """gcsfs in this process, without any cache. (Two threads may make two at first: that does no harm.)"""
    pid = os.getpid()
    if pid not in _made:
        _made[pid] = _connected()
    return _made[pid]


def _connected() -> Any:
    # What gcsfs exports else asks, through another protocol, what kind each bucket is, and waits a minute where nobody
    # answers that. The variable saves its import; it is of no effect where something else has imported gcsfs before.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import aiohttp
        from gcsfs.core import GCSFileSystem  # type: ignore[import-untyped]  # has no types
        from gcsfs.retry import is_retriable
    except ImportError as error:
        raise LauncherError(
            f"{SCHEME} addresses need gcsfs ({error}); install it: pip install 'launcher[gcs]'"
        ) from None

    class Patient(GCSFileSystem):  # type: ignore[misc]  # has no types
        async def _request(self, *args: Any, **kwargs: Any) -> Any:
            """gcsfs tries a request six times within half a minute; an outage may last longer."""
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    return await super()._request(*args, **kwargs)
                except Exception as error:
                    # A failed login is none that passes, though gcsfs tries it again too.
                    if not is_retriable(error) or "401" in str(error) or time.monotonic() > deadline:
                        raise
                    log.warning("the storage does not answer (%s), trying again", error)

    # Its log repeats with a traceback what it raises.
    logging.getLogger("gcsfs").addFilter(lambda line: not line.getMessage().startswith("_request "))
    return Patient(
        token="anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None,  # who is on no Google has no account there
        requests_timeout=aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_SILENCE_S),
        use_listings_cache=False,
        skip_instance_cache=True,
    )
