"""Where Redis is, as it travels to routers and replicas: nobody who looks on sees the password.

Serve keeps an actor's arguments, and Ray shows environments of actors in its dashboard; whatever prints this
object prints no secret. With a file, the URL is not in Ray at all: each process reads it where it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from headrace.errors import ConfigError
from headrace.server.connection import redacted
from headrace.server.url import with_tls

__all__ = ["RedisAddress"]


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A URL, or the file that holds it; and certificate files, as they lie on every node."""

    url: SecretStr = field(default_factory=lambda: SecretStr(""))
    url_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.url.get_secret_value()) or self.url_file is not None

    def __str__(self) -> str:
        return redacted(self.url.get_secret_value()) or f"the URL in {self.url_file}"

    def resolve(self) -> str:
        """The URL itself, password and all.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        url = self.url.get_secret_value() or self._read()
        return with_tls(url, ca_file=self.ca_file, cert_file=self.cert_file, key_file=self.key_file)

    def _read(self) -> str:
        if self.url_file is None:
            raise ConfigError("redis_url: is missing; set it in the file, or HEADRACE_REDIS_URL in the environment")
        try:
            url = self.url_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"redis.url_file: {self.url_file} cannot be read: {reason}") from None
        if not url:
            raise ConfigError(f"redis.url_file: {self.url_file} is empty")
        return url
