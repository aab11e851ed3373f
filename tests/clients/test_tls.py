"""TLS and mutual TLS: jobs run through it, and each way in which trust can fail has a name and a remedy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from headrace import AsyncClient, ClientSettings, Job, RedisTlsError, RedisUnavailableError
from headrace.server.connection import commands, reads
from headrace_cluster.embedded import EmbeddedServer, find_server
from support.by_hand import HandService
from support.certificates import Authority, Pair
from support.redis_cluster import free_ports
from support.tls_front import TlsFront

MODEL = "by-hand"
QUICK = ClientSettings(command_timeout_s=2, retries=3)
PASSWORD = "tr0ub4dor"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> Pair:
    return authority.issue("server", "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def client_pair(authority: Authority) -> Pair:
    return authority.issue("client")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that the other side does not trust."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def plain_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(fsync="no", die_with_parent=True, options={"requirepass": PASSWORD}) as server:
        yield server


def front(server: EmbeddedServer, pair: Pair, *, clients_of: Authority | None = None) -> TlsFront:
    return TlsFront(server.socket, pair, clients_of=clients_of.file if clients_of else None)


def url_to(port: int, host: str = "localhost", /, **options: str | Path) -> str:
    query = "&".join(f"{name}={quote(str(value))}" for name, value in options.items())
    return f"rediss://:{PASSWORD}@{host}:{port}/0?{query}"


async def refusal(url: str) -> str:
    """What a client is told, on its ordinary connection and on the one that reads; neither tells the password."""
    async with AsyncClient(url, settings=QUICK) as client:
        with pytest.raises(RedisTlsError) as caught:
            await client.ping()
        client.own_inbox.demultiplexer(MODEL).open("job")
        with pytest.raises(RedisTlsError):
            await client.result("job", model=MODEL, timeout_s=10)
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__
    return str(caught.value)


# -- where it holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_jobs_through_tls(
    plain_server: EmbeddedServer, server_pair: Pair, authority: Authority, host: str
) -> None:
    """The certificate is for the name and for the address; blocking reads go through it, too."""
    with front(plain_server, server_pair) as tls:
        url = url_to(tls.port, host, ssl_ca_certs=authority.file)
        async with HandService(url, MODEL) as service, AsyncClient(url) as client:
            service.keep_answering()
            results = [result async for result in client.map(Job(model=MODEL, input=n) for n in range(50))]
            assert [result.unwrap() for result in results] == list(range(50))


async def test_both_sides_show_certificates(
    plain_server: EmbeddedServer, server_pair: Pair, client_pair: Pair, authority: Authority
) -> None:
    """Given in the URL, or in the client's settings."""
    with front(plain_server, server_pair, clients_of=authority) as tls:
        files = {"ssl_certfile": client_pair.certificate, "ssl_keyfile": client_pair.key}
        async with AsyncClient(url_to(tls.port, ssl_ca_certs=authority.file, **files)) as client:
            await client.ping()
        settings = ClientSettings(
            ca_file=authority.file, cert_file=client_pair.certificate, key_file=client_pair.key, retries=0
        )
        async with AsyncClient(url_to(tls.port), settings=settings) as client:
            await client.ping()


async def test_no_questions_asked(plain_server: EmbeddedServer, server_pair: Pair) -> None:
    """Encrypted, to whoever it may be: only for a user who says so."""
    with front(plain_server, server_pair) as tls:
        async with AsyncClient(url_to(tls.port, ssl_cert_reqs="none")) as client:
            await client.ping()


async def test_any_host_of_the_authority(plain_server: EmbeddedServer, authority: Authority) -> None:
    """Certificates for other names pass if their names are not looked at."""
    with front(plain_server, authority.issue("elsewhere", "elsewhere.example")) as tls:
        url = url_to(tls.port, ssl_ca_certs=authority.file, ssl_check_hostname="false")
        async with AsyncClient(url) as client:
            await client.ping()


async def test_a_server_with_tls_of_its_own(
    tmp_path: Path, server_pair: Pair, client_pair: Pair, authority: Authority
) -> None:
    """Redis itself asks for our certificate, where it was built with TLS."""
    [port] = free_ports(1)
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(server_pair.certificate),
        "tls-key-file": str(server_pair.key),
        "tls-ca-cert-file": str(authority.file),
        "requirepass": PASSWORD,
    }
    if not await has_tls(find_server()):
        pytest.skip("the server was built without TLS; the proxy stands in for it in the other tests")
    with EmbeddedServer(die_with_parent=True, options=options):
        files = {"ssl_certfile": client_pair.certificate, "ssl_keyfile": client_pair.key}
        url = url_to(port, ssl_ca_certs=authority.file, **files)
        async with HandService(url, MODEL) as service, AsyncClient(url) as client:
            service.keep_answering()
            assert (await client.run(Job(model=MODEL, input="x"), timeout_s=10)).unwrap() == "x"
        assert "asks for a certificate of ours" in await refusal(url_to(port, ssl_ca_certs=authority.file))


async def has_tls(program: Path) -> bool:
    """A server without TLS knows no `tls-port` but 0."""
    process = await asyncio.create_subprocess_exec(
        program, "--port", "0", "--tls-port", "1", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), timeout=10)
    return b"Failed finding TLS support" not in output and b"Missing implement of connection type tls" not in output


# -- where it does not --------------------------------------------------------------------------------------------


async def test_a_server_of_an_unknown_authority(
    plain_server: EmbeddedServer, server_pair: Pair, stranger: Authority
) -> None:
    """Whether another authority is named, or only those that this machine knows."""
    with front(plain_server, server_pair) as tls:
        for url in (url_to(tls.port), url_to(tls.port, ssl_ca_certs=stranger.file)):
            assert "not trusted" in (told := await refusal(url))
            assert "set ssl_ca_certs" in told


async def test_a_server_for_another_host(plain_server: EmbeddedServer, authority: Authority) -> None:
    """Its certificate is good, but not for the name that we used."""
    with front(plain_server, authority.issue("elsewhere", "elsewhere.example")) as tls:
        for host in ("localhost", "127.0.0.1"):
            told = await refusal(url_to(tls.port, host, ssl_ca_certs=authority.file))
            assert "is for another host" in told


async def test_an_expired_certificate(plain_server: EmbeddedServer, authority: Authority) -> None:
    """Said as it is."""
    with front(plain_server, authority.issue("expired", "localhost", days=0)) as tls:
        assert "certificate has expired" in await refusal(url_to(tls.port, ssl_ca_certs=authority.file))


async def test_a_server_that_asks_for_our_certificate(
    plain_server: EmbeddedServer, server_pair: Pair, authority: Authority, stranger: Authority
) -> None:
    """We have none, or one that it does not trust."""
    with front(plain_server, server_pair, clients_of=authority) as tls:
        told = await refusal(url_to(tls.port, ssl_ca_certs=authority.file))
        assert "the server asks for a certificate of ours: set ssl_certfile and ssl_keyfile" in told
        pair = stranger.issue("intruder")
        files = {"ssl_certfile": pair.certificate, "ssl_keyfile": pair.key}
        assert "does not trust the authority" in await refusal(url_to(tls.port, ssl_ca_certs=authority.file, **files))


async def test_a_server_that_does_not_speak_tls(authority: Authority) -> None:
    """`rediss` where it should be `redis`, and the server answers in its own way."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        told = await refusal(url_to(listener.sockets[0].getsockname()[1], "127.0.0.1", ssl_ca_certs=authority.file))
    assert "does not speak TLS on this port: use redis://" in told


async def test_a_client_that_does_not_speak_tls(plain_server: EmbeddedServer, server_pair: Pair) -> None:
    """`redis` where it should be `rediss`: the server hangs up, and no more than that can be known."""
    with front(plain_server, server_pair) as tls:
        async with AsyncClient(f"redis://:{PASSWORD}@localhost:{tls.port}", settings=QUICK) as client:
            with pytest.raises(RedisUnavailableError) as caught:
                await client.ping()
            assert PASSWORD not in str(caught.value)


async def test_nobody_tries_again_in_vain(plain_server: EmbeddedServer, server_pair: Pair) -> None:
    """Trust does not come by waiting."""
    with front(plain_server, server_pair) as tls:
        started_s = asyncio.get_running_loop().time()
        async with AsyncClient(url_to(tls.port), settings=ClientSettings(retries=20)) as client:
            with pytest.raises(RedisTlsError):
                await client.ping()
        assert asyncio.get_running_loop().time() - started_s < 3


@pytest.mark.parametrize("connect", [commands, reads])
def test_files_that_cannot_be_used(connect: object, tmp_path: Path, server_pair: Pair, client_pair: Pair) -> None:
    """Known before anything is connected, by the file's name and the option's."""
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("not a certificate")
    certificate, key, other = client_pair.certificate, client_pair.key, server_pair.key
    for options, says in [
        ({"ssl_ca_certs": tmp_path / "missing.pem"}, r"missing.pem cannot serve as the certificate authority.*No such"),
        ({"ssl_ca_certs": nonsense}, "nonsense.pem cannot serve as the certificate authority"),
        (
            {"ssl_certfile": certificate, "ssl_keyfile": tmp_path / "missing.key"},
            "missing.key cannot serve as the priv",
        ),
        ({"ssl_certfile": certificate, "ssl_keyfile": other}, "cannot serve as the private key.*MISMATCH"),
        ({"ssl_keyfile": key}, "ssl_certfile, which is missing"),
        ({"ssl_kyefile": key}, "no such TLS option: ssl_kyefile"),
    ]:
        with pytest.raises(RedisTlsError, match=says) as caught:
            connect(url_to(1, **options))  # type: ignore[operator]
        assert PASSWORD not in str(caught.value)


def test_old_versions_of_tls_are_not_spoken() -> None:
    """1.2 at least."""
    from headrace.server.tls import context_of

    assert context_of({}).minimum_version is ssl.TLSVersion.TLSv1_2
