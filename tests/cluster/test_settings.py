"""What a service is told: which source outranks which, and what is said of everything that is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ray.serve import Application

from headrace.errors import ConfigError
from headrace_cluster.app import BuildArgs, application, build
from headrace_cluster.config.settings import ServiceConfig, load_config

ECHO: dict[str, Any] = {"models": {"echo": {"engine": {"kind": "echo"}}}}


@pytest.fixture(autouse=True)
def _a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


def echo(**keys: Any) -> dict[str, Any]:
    """A configuration with one model that has these keys."""
    return {"models": {"echo": {"engine": {"kind": "echo"}, **keys}}}


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refused(file: Path | dict[str, Any] | None, overrides: dict[str, Any] | None = None) -> str:
    """What is said of it."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides=overrides)
    return str(caught.value)


# -- priority -------------------------------------------------------------------------------------------------------


def url_of(config: ServiceConfig) -> str:
    return config.redis_url.get_secret_value()


def test_command_line_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key, said by more and more of them."""
    silent = written(tmp_path, "models: {echo: {engine: {kind: echo}}}")
    assert url_of(load_config(silent)) == ""
    file = written(tmp_path, "redis_url: redis://file\nmodels: {echo: {engine: {kind: echo}}}")
    assert url_of(load_config(file)) == "redis://file"
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://environment")
    assert url_of(load_config(file)) == "redis://environment"
    assert url_of(load_config(file, overrides={"redis_url": "redis://command-line"})) == "redis://command-line"


def test_a_higher_source_replaces_only_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours in the same map stay as they were."""
    monkeypatch.setenv("HEADRACE_ROUTER__REPLICAS", "2")
    config = load_config(ECHO | {"router": {"replicas": 3, "cpus": 2, "drain_s": 7}}, overrides={"router": {"cpus": 4}})
    assert (config.router.replicas, config.router.cpus, config.router.drain_s) == (2, 4, 7)


def test_the_environment_reaches_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's key, a whole list as JSON, and one entry of a list."""
    monkeypatch.setenv("HEADRACE_MODELS__ECHO__BATCHING__MAX_JOBS", "7")
    monkeypatch.setenv("HEADRACE_MODELS__ECHO__POOLS", '[{"replicas": 2}, {"name": "gpu"}]')
    monkeypatch.setenv("HEADRACE_MODELS__ECHO__POOLS__1__GPUS", "0.5")
    echo = load_config(ECHO).models["echo"]
    assert echo.batching.max_jobs == 7
    assert [(pool.name, pool.replicas, pool.gpus) for pool in echo.pools] == [("cpu", 2, 0), ("gpu", 1, 0.5)]


def test_the_environment_finds_models_whatever_their_names_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables have neither small letters nor dashes nor dots."""
    monkeypatch.setenv("HEADRACE_MODELS__ALL_MINILM_V1_5__LONE_FAILURES", "9")
    config = load_config({"models": {"All-MiniLM-v1.5": {"engine": {"kind": "echo"}}}})
    assert config.models["All-MiniLM-v1.5"].lone_failures == 9


def test_the_environment_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any file."""
    monkeypatch.setenv("HEADRACE_MODELS", '{"one": {"engine": {"kind": "echo"}}}')
    monkeypatch.setenv("HEADRACE_MODELS__TWO__ENGINE__KIND", "echo")
    assert set(load_config().models) == {"one", "two"}


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files write one that is not set."""
    monkeypatch.setenv("HEADRACE_REDIS_URL", "")
    assert url_of(load_config(ECHO | {"redis_url": "redis://file"})) == "redis://file"


def test_what_kubernetes_says_of_our_services_is_not_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pod gets such variables for a Service that is called `headrace-redis`."""
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_REDIS", "PORT", "PORT_6379_TCP", "PORT_6379_TCP_ADDR"):
        monkeypatch.setenv(f"HEADRACE_REDIS_{name}", "tcp://10.0.0.1:6379")
    assert url_of(load_config(ECHO)) == ""


def test_a_checked_configuration_looks_at_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor is told what was checked, and its node may have other variables."""
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://another")
    assert url_of(ServiceConfig(**ECHO, redis_url="redis://told")) == "redis://told"


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ECHO | {"redis_ur": "x"}, "redis_ur: there is no such key; did you mean redis_url?"),
        (echo(batchin={}), "models.echo.batchin: there is no such key; did you mean batching?"),
        (echo(batching={"max_job": 1}), "models.echo.batching.max_job: there is no such key; did you mean max_jobs?"),
        (echo(pools=[{}, {"cpu": 1}]), "models.echo.pools.1.cpu: there is no such key; did you mean cpus?"),
        (echo(limits={"retention": 5}), "limits.retention: there is no such key; did you mean retention_s?"),
        (ECHO | {"router": {"xyz": 1}}, "router.xyz: there is no such key; known are cpus, drain_s, labels, replicas"),
        ({"models": {"e": {"engine": {"kind": "echo", "model": "x"}}}}, "an engine of kind echo has no model"),
    ],
)
def test_unknown_keys(content: dict[str, Any], said: str) -> None:
    """Named with their place, and the nearest right name if there is one."""
    assert refused(content).endswith(said)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HEADRACE_REDIS_ULR", "redis://x", "HEADRACE_REDIS_ULR is no setting; did you mean HEADRACE_REDIS_URL?"),
        ("HEADRACE_COLOUR", "red", "known are HEADRACE_GENERATION, HEADRACE_LOGS, HEADRACE_METRICS, HEADRACE_MODELS"),
        ("HEADRACE_ROUTER__REPLICA", "1", "router.replica: there is no such key; did you mean replicas?"),
        ("HEADRACE_ROUTER__REPLICAS__X", "1", "router.replicas: Input should be a valid integer"),
        ("HEADRACE_MODELS__ECH0__LONE_FAILURES", "1", "models.ech0.engine: is missing"),
        ("HEADRACE_MODELS__ECHO__POOLS__2__CPUS", "1", "there is no 2 in models.echo.pools"),
        ("HEADRACE_MODELS__ECHO__POOLS__CPUS", "1", "there is no 'CPUS' in models.echo.pools"),
    ],
)
def test_unknown_variables(variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by their own names."""
    monkeypatch.setenv(variable, value)
    text = refused(echo(pools=[{}, {"name": "b"}]))
    assert text.startswith("environment: HEADRACE_")
    assert said in text


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "models: is missing"),
        ({"models": {}}, "models: Dictionary should have at least 1 item"),
        ({"models": None}, "models: Input should be an object"),
        ({"models": {"a b": {"engine": {"kind": "echo"}}}}, "String should match pattern"),
        ({"models": {"echo": {}}}, "models.echo.engine: is missing"),
        ({"models": {"e": {"engine": {}}}}, "models.e.engine: an engine of kind encoder needs model"),
        ({"models": {"e": {"engine": {"kind": "ekko"}}}}, "Input should be 'encoder', 'decoder', 'echo' or 'custom'"),
        (
            {"models": {"e": {"engine": {"kind": "decoder", "model": "m"}, "call_timeout_s": 5}}},
            "models.e: call_timeout_s must be at least 10 for an engine that generates",
        ),
        (ECHO | {"redis_url": 5}, "redis_url: Input should be a valid string"),
        (ECHO | {"router": 2}, "router: Input should be an object"),
        (ECHO | {"router": {"replicas": "2"}}, "router.replicas: Input should be a valid integer"),
        (ECHO | {"router": {"replicas": True}}, "router.replicas: Input should be a valid integer"),
        (ECHO | {"router": {"replicas": 1.5}}, "router.replicas: Input should be a valid integer"),
        (echo(batching={"padded": "yes"}), "padded: Input should be a valid boolean"),
        (echo(pools=[]), "pools: Tuple should have at least 1 item"),
        (echo(pools=[{}, {}]), "two pools have one name"),
        ({"models": {"echo#1": {**ECHO["models"]["echo"], "shards": 4}}}, "'echo#1' names one shard of 'echo'"),
        (echo(pools=[{"name": "GPU 1"}]), "pools.0.name: String should match pattern"),
        (echo(batching={"patience_s": [0, 1]}), "patience_s.2: is missing"),
    ],
)
def test_wrong_values(content: dict[str, Any], said: str) -> None:
    """Types are strict: what YAML reads as text or as true is not taken for a number."""
    assert said in refused(content)


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("router.replicas", (0, 65)),
        ("router.cpus", (0, 65, float("nan"))),
        ("router.drain_s", (-1, 3601)),
        ("pools.0.replicas", (0, 10_001)),
        ("pools.0.cpus", (0, 1025, float("inf"))),
        ("pools.0.gpus", (-1, 65)),
        ("pools.0.batches_per_replica", (0, 17)),
        ("batching.max_jobs", (0, 4097)),
        ("batching.max_tokens", (0, (1 << 24) + 1)),
        ("batching.max_bytes", (1, (1 << 26) + 1)),
        ("batching.linger_ms", (-0.1, 60_001)),
        ("batching.patience_s", ([-1, 0, 0], [0, 0, float("nan")])),
        ("limits.lane_capacity", (0, 100_000_001)),
        ("limits.tenant_capacity", (0, 100_000_001)),
        ("limits.retention_s", (0.5, 31 * 86_400)),
        ("call_timeout_s", (0, 86_401)),
        ("lone_failures", (0, 101)),
    ],
)
def test_bounds(place: str, values: tuple[Any, ...]) -> None:
    """Every number has a least and a greatest value."""
    for value in values:
        assert place in refused(_with(place, value))


def _with(place: str, value: Any) -> dict[str, Any]:
    """A configuration with one key set."""
    first, _, rest = place.partition(".")
    if first == "router":
        return ECHO | {"router": {rest: value}}
    if first == "pools":
        return echo(pools=[{rest.removeprefix("0."): value}])
    return echo(**({first: {rest: value}} if rest else {first: value}))


def test_everything_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each under the source that said it."""
    monkeypatch.setenv("HEADRACE_ROUTER__CPUS", "many")
    text = refused(ECHO | {"router": {"replicas": 0, "drain": 1}}, {"redis_url": 7})
    for part in (
        "configuration: router.replicas: ",
        "router.drain: there is no such key; did you mean drain_s?",
        "environment: HEADRACE_ROUTER__CPUS: router.cpus: Input should be a valid number",
        "command line: redis_url: Input should be a valid string",
    ):
        assert part in text


def test_no_value_is_repeated() -> None:
    """It may be a password."""
    assert "s3cret" not in refused(ECHO | {"redis_url": ["redis://:s3cret@host"]})
    assert "s3cret" not in repr(load_config(ECHO | {"redis_url": "redis://:s3cret@host"}))


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    assert refused(tmp_path).endswith("cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "not YAML: "),
        ("models:\n\t- x", "in line 2, column 1"),
        ("redis_url: s3cret: x", "not YAML: mapping values are not allowed here in line 1, column 18"),
        (b"models: \xff\xfe", "not YAML: byte 8 is not UTF-8"),
        ("models: \x07", "not YAML: it holds a character that may not stand there"),
        ("", "must be a map with at least the key 'models'"),
        ("- models", "must be a map"),
        ("models: {}\nmodels: {}", "the key 'models' again in line 2, column 1"),
        ("models: {1: {}}", "a key that is not text in line 1, column 10"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_files_that_are_no_configuration(text: str | bytes, said: str, tmp_path: Path) -> None:
    """Named with the line; the line itself is not shown."""
    file = written(tmp_path, text)
    assert refused(file).startswith(f"{file}: ")
    assert said in refused(file)
    assert "s3cret" not in refused(file)


def test_anchors_and_merge_keys_are_yaml_too(tmp_path: Path) -> None:
    """Two models may share what they have in common."""
    file = written(
        tmp_path,
        "models:\n  one: &one {engine: {kind: echo}, lone_failures: 5}\n  two: {<<: *one, lone_failures: 6}\n",
    )
    assert [model.lone_failures for model in load_config(file).models.values()] == [5, 6]


# -- the application that a Serve config names ------------------------------------------------------------------


def test_build_takes_what_serve_hands_over(tmp_path: Path) -> None:
    """A map with a path or a configuration in it, checked or not."""
    content = ECHO | {"redis_url": "redis://localhost"}
    file = written(tmp_path, "redis_url: redis://localhost\nmodels: {echo: {engine: {kind: echo}}}")
    for args in ({"config": content}, {"config": str(file)}, BuildArgs(config=content)):
        assert isinstance(build(args), Application)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "args: config: is missing"),
        ({"config": ECHO, "confg": 1}, "args: confg: there is no such key; did you mean config?"),
        ({"config": "/no/such/file.yaml"}, "/no/such/file.yaml: cannot be read"),
        ({"config": {"model": {}}}, "model: there is no such key; did you mean models?"),
        ({"config": ECHO}, "redis_url: is missing; set it in the file, or HEADRACE_REDIS_URL in the environment"),
    ],
)
def test_build_refuses_what_is_wrong(args: dict[str, Any], said: str) -> None:
    """In the words of the configuration."""
    with pytest.raises(ConfigError) as caught:
        build(args)
    assert said in str(caught.value)


def test_the_applications_parts_have_the_names_that_serve_shows() -> None:
    """One deployment of routers, one for each pool."""
    config = load_config(echo(pools=[{}, {"name": "gpu", "gpus": 1}]) | {"redis_url": "redis://localhost"})
    deployment = application(config)._bound_deployment
    assert deployment.name == "router"
    assert set(deployment.init_args[2]) == {"echo@cpu", "echo@gpu"}


# -- engines that generate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "jobs"),
    [
        ({"kind": "echo"}, 0),
        ({"kind": "custom", "target": "a:B"}, 0),
        ({"kind": "custom", "target": "a:B", "slots": 32}, 36),
        ({"kind": "decoder", "model": "m"}, 36),
        ({"kind": "decoder", "model": "m", "slots": 1}, 2),
    ],
)
def test_a_replica_that_generates_is_given_a_few_jobs_more_than_it_has_slots(engine: dict[str, Any], jobs: int) -> None:
    """So that another is prepared when one ends."""
    config = load_config({"models": {"m": {"engine": engine}}})

    assert config.models["m"].to_policy().jobs_per_replica == jobs
