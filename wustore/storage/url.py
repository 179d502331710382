"""URLs: what is shown of them, their options, and what their libraries raise.

Credentials come from wherever the library of the protocol finds them (environment, profiles, instance roles);
nothing here asks for them, and what messages show of a URL has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from wustore.errors import MissingDependencyError, StoreNotFoundError, UsageError, WuStoreError

__all__ = [
    "OBSTORE",
    "WEB",
    "UrlWithOptions",
    "errors_of",
    "is_read_only",
    "is_remote",
    "options_of",
    "protocol_of",
    "redact",
    "refuse_writing",
    "settings_of",
    "unknown_options",
    "with_options_of",
    "without_user",
]

WEB = ("http", "https")

OBSTORE = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "abfs": "az"} | {
    name: name for name in ("abfss", "http", "https")
}
"""Protocols of obstore, under the name that it knows."""

_SAME = {
    "anon": "skip_signature",
    "key": "access_key_id",
    "secret": "secret_access_key",
    "endpoint_url": "endpoint",
    "region_name": "region",
    "requester_pays": "request_payer",
    "headers": "default_headers",
}
"""Options that fsspec's libraries have under another name than obstore."""

_OF_CLIENT = {
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "default_headers",
    "proxy_url",
    "read_timeout",
    "root_certificate",
    "timeout",
    "user_agent",
}
_SECONDS = {"connect_timeout", "read_timeout", "timeout", "retry_timeout"}


def is_remote(address: Any) -> bool:
    """Return whether ``address`` is a URL."""
    return isinstance(address, str) and "://" in address


def protocol_of(url: str) -> str:
    """Return the part of a URL before ``://``, in small letters."""
    return url.partition("://")[0].lower()


_URL_END = re.compile(r"[\s'\"<>]")
_AUTHORITY_END = re.compile(r"[/?#]")
_QUERY = re.compile(r"[?#]")


def redact(text: str) -> str:
    """Return a text whose URLs are without user, password, query string and fragment; in linear time.

    What comes before the last ``@`` of the part that names the server goes, however many there are. A password may
    hold a slash as well: where what seems to be a port is none, the next ``@`` ends the password.
    """
    parts, at = [], 0
    while (found := text.find("://", at)) >= 0:
        start = found + 3
        parts.append(text[at:start])
        match = _URL_END.search(text, start)
        end = len(text) if match is None else match.start()
        parts.append(_without_secrets(text[start:end]))
        at = end
    return "".join(parts) + text[at:]


def _without_secrets(rest: str) -> str:
    """Return what follows ``://`` in a URL without credentials."""
    tail = ""
    if rest[-1:] in {")", "]", ",", ";", "."}:  # of the sentence around it
        rest, tail = rest[:-1], rest[-1]
    match = _AUTHORITY_END.search(rest)
    end = len(rest) if match is None else match.start()
    user, _, port = rest[:end].rpartition(":")
    if user and "@" not in rest[:end] and not port.isdigit() and not port.endswith("]"):
        end = max(rest.rfind("@"), end)
        host = rest[end + 1 :] if rest[end : end + 1] == "@" else rest
    else:
        host = rest[:end].rpartition("@")[2] + rest[end:]
    match = _QUERY.search(host)
    return (host if match is None else host[: match.start()]) + tail


def without_user(rest: str) -> tuple[str, str]:
    """Return the header that a user and password of a URL of a web server mean, and the rest."""
    from base64 import b64encode
    from urllib.parse import unquote

    shown = redact(f"http://{rest}").removeprefix("http://").partition("/")[0]
    user, at, _ = rest.partition(f"@{shown}")
    if not at:
        return "", rest
    return f"Basic {b64encode(unquote(user).encode()).decode()}", rest[len(user) + 1 :]


@contextmanager
def errors_of(url: str) -> Iterator[None]:
    """Turn what the libraries of a protocol raise into our errors and `OSError`, without credentials in the text.

    Their own errors are not chained: they quote the whole URL.
    """
    failed: Exception
    try:
        yield
        return
    except (WuStoreError, MemoryError):
        raise
    except FileNotFoundError as error:
        failed = StoreNotFoundError("there is nothing at this URL", path=redact(url), hint="Check the name.")
        cause = error.__cause__
        if cause is not None and getattr(cause, "status", 404) != 404:
            failed = OSError(_text_of(cause, url))
        elif isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            # fsspec calls every server that it cannot talk to a missing file.
            failed = OSError(_text_of(cause, url))
    except ImportError as error:
        failed = MissingDependencyError(
            f"reading and writing {protocol_of(url)}:// needs a package that is not installed",
            path=redact(url),
            found=redact(str(error)),
            hint="pip install 'wustore[cloud]' brings obstore and fsspec; other protocols of fsspec need their own.",
        )
    except OSError as error:
        failed = type(error)(*(redact(part) if isinstance(part, str) else part for part in error.args))
        failed.filename = failed.filename or redact(url)  # that nothing listens there says not where
    except Exception as error:
        # What obstore, aiohttp and their kin raise derives from nothing in common.
        if getattr(error, "status", None) == 404:
            failed = StoreNotFoundError("there is nothing at this URL", path=redact(url), hint="Check the name.")
        else:
            failed = _failure(error, url)
    raise failed from None


def _text_of(error: BaseException, url: str) -> str:
    # obstore's texts end in what its error is made of.
    return f"{redact(url)}: {type(error).__name__}: {redact(str(error).partition(_OBSTORE_SOURCE)[0])}"


_OBSTORE_SOURCE = "\n\nDebug source:"


def _failure(error: Exception, url: str) -> OSError:
    """Return what an error that is no `OSError` means."""
    kind, text, said = type(error).__name__, str(error), _text_of(error, url)
    if kind in {"PermissionDeniedError", "UnauthenticatedError"}:
        return PermissionError(said)
    if kind == "NotSupportedError" and "ange request" in text:
        return OSError(f"the server of {redact(url)} does not answer range requests")
    if "kind: Timeout" in text:
        return TimeoutError(f"{said}; it did not answer in time")
    if "kind: Connect" in text:
        return ConnectionError(f"{said}; no connection could be made")
    if "instance metadata" in text or "169.254.169.254" in text:
        return PermissionError(f"{said}; no credentials were found: a public bucket needs the storage option anon=true")
    if "LOCATION" in text and "region" in text:
        return OSError(f"{said}; the bucket is in another region: give it as the storage option region")
    return OSError(said)


class UrlWithOptions(str):
    """A URL and the options of its file system that the user gave; its text is that of the URL alone.

    Parameters
    ----------
    storage_options
        As docs/howto/cloud.md lists them. They are pickled with it, and appear in no message and no stored document.
    fits_index
        Path or URL of the index of FITS files there, if the user named one.
    """

    __slots__ = ("fits_index", "storage_options")
    storage_options: Mapping[str, Any]
    fits_index: str | None

    def __new__(cls, url: str, storage_options: Mapping[str, Any], fits_index: str | None = None) -> UrlWithOptions:  # noqa: D102
        self = super().__new__(cls, url)
        self.storage_options = dict(storage_options)
        self.fits_index = fits_index
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlWithOptions, (str(self), self.storage_options, self.fits_index)


def with_options_of(url: str, other: str) -> str:
    """Return ``url`` with the options that another URL of the same file system has, if it has any."""
    return UrlWithOptions(url, other.storage_options) if isinstance(other, UrlWithOptions) else url


def options_of(url: object) -> dict[str, Any]:
    """Return the storage options that the user gave with a URL."""
    return dict(url.storage_options) if isinstance(url, UrlWithOptions) else {}


def refuse_writing(url: str, kind: str) -> None:
    """Refuse to write a single file to a URL."""
    raise UsageError(
        f"{kind} is not written to URLs", path=redact(url), hint="Write to a local path and copy it, or write Zarr."
    )


def is_read_only(url: str) -> bool:
    """Return whether nothing can be written by this protocol."""
    return protocol_of(url) in WEB


# --- options --------------------------------------------------------------------------------------------


def unknown_options(url: str, found: str) -> UsageError:
    """Return the error of storage options that no library takes."""
    return UsageError(
        "unknown storage options, or values that do not fit",
        path=redact(url),
        found=redact(found),
        hint="docs/howto/cloud.md lists them; the others are those of obstore.",
    )


def settings_of(
    root: str, protocol: str, options: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any], dict[str, Any], Any]:
    """Return what options say of a store, its client and its retries, and what gives credentials."""
    retries: dict[str, Any] = {}
    client: dict[str, Any] = {}
    given = dict(options)
    for name in ("client_kwargs", "client_options", "config_kwargs"):  # where fsspec's libraries have them
        given |= given.pop(name, None) or {}
    config: dict[str, str] = {}
    provider = given.pop("credential_provider", None)
    profile = given.pop("profile", None)
    for name, value in given.items():
        name = _SAME.get(name, name)  # noqa: PLW2901
        if name in _SECONDS and isinstance(value, int | float):
            value = timedelta(seconds=value)  # noqa: PLW2901
        if name == "token" and protocol in {"gs", "gcs"}:
            name, value = ("skip_signature", True) if value == "anon" else ("application_credentials", value)  # noqa: PLW2901
        if name == "verify":
            client["allow_invalid_certificates"] = not value
        elif name in _OF_CLIENT:
            client[name] = value
        elif name in {"max_retries", "retry_timeout"}:
            retries[name] = value
        elif value is not None:
            config[name] = str(value).lower() if isinstance(value, bool) else str(value)
    if OBSTORE[protocol] == "s3" and provider is None:
        provider = _from_profile(root, config, profile)
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if root.startswith("http:") or (OBSTORE[protocol] == "s3" and endpoint.startswith("http:")):
        client.setdefault("allow_http", True)
    return config, client, retries, provider


_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def _from_profile(root: str, config: dict[str, str], profile: str | None) -> Any:
    """Return what gives the credentials of a profile of AWS; None if there is none, or others are given.

    Region and endpoint of the profile are added to ``config``.
    """
    profile = profile or os.environ.get("AWS_PROFILE")
    if profile is None:
        if {"skip_signature", "access_key_id"} & config.keys() or any(map(os.environ.get, _KEYS)):
            return None
        home = Path(os.path.expanduser("~/.aws"))  # noqa: PTH111 - without a home, `Path.expanduser` fails
        files = ("AWS_SHARED_CREDENTIALS_FILE", home / "credentials"), ("AWS_CONFIG_FILE", home / "config")
        if not any(Path(os.environ.get(name, default)).is_file() for name, default in files):
            return None
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise MissingDependencyError(
            "profiles of AWS are read by a package that is not installed",
            path=redact(root),
            expected="boto3",
            hint="pip install boto3 brings it; or give the credentials by the environment or storage options.",
        ) from error
    session = boto3.Session(profile_name=profile)
    if session.get_credentials() is None and profile is None:
        return None
    if session.region_name:
        config.setdefault("region", session.region_name)
    endpoint = session.client("s3", region_name=session.region_name or "us-east-1").meta.endpoint_url
    if not endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        config.setdefault("endpoint", endpoint)
    return None if "skip_signature" in config else Boto3CredentialProvider(session)
