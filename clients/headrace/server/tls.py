"""TLS towards Redis: whom we trust, and who we say we are.

One context is made for all connections of a client. If a certificate authority is named, it is the only one
that is trusted: with the machine's own beside it, any public certificate for the host's name would pass.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import SentinelManagedConnection

from headrace.errors import RedisTlsError

__all__ = ["TlsConnection", "TlsSentinelConnection", "context_of", "explain"]

_FILES: Final = {"ssl_ca_certs": "certificate authority", "ssl_certfile": "certificate", "ssl_keyfile": "private key"}
_KNOWN: Final = frozenset({*_FILES, "ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers"})


class TlsConnection(Connection):
    """A connection within a context that was made before."""

    def __init__(self, *, tls: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._tls}


class TlsSentinelConnection(SentinelManagedConnection, TlsConnection):
    """The same, to the master that sentinels name."""


def context_of(options: dict[str, Any]) -> ssl.SSLContext:
    """Take the TLS options out of a connection's options, and make a context of them.

    Raises:
        RedisTlsError: a file cannot be read, or is not what it should be; or there is no such option.
    """
    given = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    if unknown := given.keys() - _KNOWN:
        raise RedisTlsError(f"no such TLS option: {', '.join(sorted(unknown))}; known are {', '.join(sorted(_KNOWN))}")
    context = _trusting(given.get("ssl_ca_certs"))
    if given.get("ssl_cert_reqs", "required") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif not given.get("ssl_check_hostname", True):
        context.check_hostname = False
    _introduce(context, given)
    return context


def _trusting(authority: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise _unreadable("ssl_ca_certs", authority, error) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _introduce(context: ssl.SSLContext, given: dict[str, Any]) -> None:
    certificate, key = given.get("ssl_certfile"), given.get("ssl_keyfile")
    if key and not certificate:
        raise RedisTlsError("ssl_keyfile is the key of ssl_certfile, which is missing")
    try:
        if certificate:
            # Without a password, OpenSSL would ask whoever sits at the terminal.
            context.load_cert_chain(certificate, key, password=given.get("ssl_password") or "")
        if ciphers := given.get("ssl_ciphers"):
            context.set_ciphers(ciphers)
    except (OSError, ssl.SSLError) as error:
        raise _unreadable("ssl_keyfile" if key else "ssl_certfile", key or certificate, error) from None


def _unreadable(option: str, path: str | None, error: OSError) -> RedisTlsError:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return RedisTlsError(f"{path} cannot serve as the {_FILES[option]} ({option}): {reason or 'not in PEM form'}")


_ALERTS: Final = (
    ("CERTIFICATE_REQUIRED", "the server asks for a certificate of ours: set ssl_certfile and ssl_keyfile"),
    ("HANDSHAKE_FAILURE", "the server refuses us: set ssl_certfile and ssl_keyfile if it asks for a certificate"),
    ("UNKNOWN_CA", "the server does not trust the authority of our certificate: see ssl_certfile"),
    ("BAD_CERTIFICATE", "the server does not take our certificate: see ssl_certfile"),
    ("CERTIFICATE_EXPIRED", "the server says that our certificate has expired: see ssl_certfile"),
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS on this port: use redis:// or its TLS port"),
    ("RECORD_LAYER_FAILURE", "the server does not speak TLS on this port: use redis:// or its TLS port"),
)


def explain(error: BaseException | None) -> str | None:
    """What is wrong between the two sides and how to make it right; None if an error is not of TLS."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ssl.SSLCertVerificationError):
            return _verification(error)
        if isinstance(error, ssl.SSLError):
            text = error.reason or str(error)
            return next((advice for word, advice in _ALERTS if word in text), f"TLS failed: {text}")
        error = error.__cause__ or error.__context__
    return None


def _verification(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in (62, 64):  # host name or address mismatch
        return f"the server's certificate is for another host: {error.verify_message}; name the host as it does"
    return (
        f"the server's certificate is not trusted: {error.verify_message}; "
        "set ssl_ca_certs to the certificate of the authority that issued it"
    )
