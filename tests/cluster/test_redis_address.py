"""How a service is told where Redis is, and what of it can be seen."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace_cluster.app import application
from headrace_cluster.config.settings import load_config
from headrace_cluster.redis_address import RedisAddress

SECRET = "tr0ub4dor"
ECHO = {"models": {"echo": {"engine": {"kind": "echo"}}}}


def test_a_url_in_the_configuration() -> None:
    """Whole where it is used, and hidden wherever it is printed."""
    address = load_config(ECHO | {"redis_url": f"redis://u:{SECRET}@host/0"}).redis_address
    assert address
    assert address.resolve() == f"redis://u:{SECRET}@host/0"
    assert SECRET not in f"{address!r} {address}"
    assert str(address) == "redis://u:***@host/0"
    assert pickle.loads(pickle.dumps(address)) == address


def test_a_url_in_a_file(tmp_path: Path) -> None:
    """Read by whoever connects, each time: the password may change, and does not travel."""
    file = tmp_path / "url"
    file.write_text(f"redis://:{SECRET}@one\n")
    address = load_config(ECHO | {"redis": {"url_file": str(file)}}).redis_address
    assert address.resolve() == f"redis://:{SECRET}@one"
    file.write_text("redis://two")
    assert address.resolve() == "redis://two"
    assert SECRET.encode() not in pickle.dumps(address)
    assert str(address) == f"the URL in {file}"


def test_the_url_outranks_the_file(tmp_path: Path) -> None:
    """As the command line's and the environment's word does."""
    config = ECHO | {"redis_url": "redis://this", "redis": {"url_file": str(tmp_path / "missing")}}
    assert load_config(config).redis_address.resolve() == "redis://this"


def test_files_that_hold_no_url(tmp_path: Path) -> None:
    """Told by the key and the file's name."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, says in (("missing", "No such file"), ("empty", "is empty"), ("binary", "it is not text")):
        with pytest.raises(ConfigError, match=rf"redis.url_file: .*{name}.* ?{says}"):
            RedisAddress(url_file=tmp_path / name).resolve()


def test_certificates() -> None:
    """From the configuration into the URL, as it is used."""
    redis = {"ca_file": "/ca.pem", "cert_file": "/cert.pem", "key_file": "/key.pem"}
    url = load_config(ECHO | {"redis_url": "rediss://host", "redis": redis}).redis_address.resolve()
    assert url == "rediss://host?ssl_ca_certs=%2Fca.pem&ssl_certfile=%2Fcert.pem&ssl_keyfile=%2Fkey.pem"


def test_none_is_named() -> None:
    """`headrace serve` starts a server of its own then; a deployed application is refused."""
    config = load_config(ECHO)
    assert not config.redis_address
    with pytest.raises(ConfigError, match="redis_url: is missing"):
        application(config)
    with pytest.raises(ConfigError, match="redis_url: is missing"):
        config.redis_address.resolve()


def test_the_application_keeps_no_plain_url() -> None:
    """What Serve is given to keep can be printed."""
    deployment = application(load_config(ECHO | {"redis_url": f"redis://u:{SECRET}@host/0"}))._bound_deployment
    assert SECRET not in repr((deployment.init_args, deployment.init_kwargs))
