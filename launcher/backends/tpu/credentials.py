"""Access tokens for Google's APIs: application-default credentials, else those of the gcloud CLI."""

import os
from collections.abc import Callable
from typing import Any

from launcher import shell
from launcher.backends.tpu.errors import TpuError, Trouble, explained
from launcher.errors import LauncherError

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_GCLOUD = ("gcloud", "auth", "print-access-token")
_TIMEOUT_S = 30.0


class Tokens:
    """Gives a token that is good, a new one when the last is about to expire."""

    def __init__(self) -> None:
        self._fresh: Callable[[bool], str] | None = None

    def __call__(self, *, renew: bool = False) -> str:
        """
        Args:
            renew: the last one was refused.

        Raises:
            TpuError: there are no credentials, or they are good no longer.
            LauncherError: google-auth is not installed.
        """
        self._fresh = self._fresh or _source()
        return self._fresh(renew)


def _source() -> Callable[[bool], str]:
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
    except ImportError as error:
        raise LauncherError(f"Cloud TPU needs google-auth ({error}); install it: pip install 'launcher[gcs]'") from None
    try:
        found, _ = google.auth.default(scopes=[_SCOPE])
    except DefaultCredentialsError:
        return _of_gcloud()
    return lambda renew: _of_default(found, renew)


def _of_default(credentials: Any, renew: bool) -> str:
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.auth.transport.requests import Request

    try:
        if renew or not credentials.valid:
            credentials.refresh(Request())
    except TransportError as error:
        raise TpuError(Trouble.UNAVAILABLE, f"no answer to the request for an access token ({error})") from None
    except GoogleAuthError as error:
        raise explained(Trouble.UNAUTHENTICATED, f"the credentials are good no longer ({error})") from None
    return str(credentials.token)


def _of_gcloud() -> Callable[[bool], str]:
    """A token of `gcloud auth login`. It is good for an hour, and gcloud renews it by itself."""
    token = ""

    def fresh(renew: bool) -> str:
        nonlocal token
        if renew or not token:
            try:
                answer = shell.ask(_GCLOUD, env=os.environ, timeout_s=_TIMEOUT_S)
            except FileNotFoundError:
                raise explained(Trouble.UNAUTHENTICATED, "there are no credentials for Google Cloud here") from None
            if answer.code or not answer.stdout.strip():
                said = " ".join(answer.stderr.split()) or f"exit code {answer.code}"
                raise explained(
                    Trouble.UNAUTHENTICATED,
                    f"there are no credentials for Google Cloud here, nor has gcloud any ({said})",
                )
            token = answer.stdout.strip()
        return token

    return fresh
