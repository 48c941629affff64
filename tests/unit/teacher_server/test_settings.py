"""The server's settings: which source beats which, and that nothing unknown or impossible gets in."""

import argparse
import dataclasses

import pytest

from teacherfarm.teacher_server.settings import ServerSettings, add_arguments, load_settings

UNASKED = {
    "grpc": {"tls_cert": "cert.pem", "tls_key": "key.pem"},
    "zmq": {"curve_key": "farm.secret", "curve_clients": "any"},
}
"""Encryption without a question who comes."""


def load(*flags: str, environment: dict[str, str] | None = None) -> ServerSettings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return load_settings(parser.parse_args(flags), environment or {})


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> list[str]:
        file = tmp_path / "serve.toml"
        file.write_text(text)
        return ["--config", str(file)]

    return write


def test_defaults():
    settings = load("models")
    assert settings == ServerSettings(models="models")
    assert settings.grpc.startswith("127.0.0.1:")


def test_flag_beats_environment_beats_file_beats_default(toml):
    file = toml('models = "from-file"\nwindow = 1\nmemory_mb = 1\nmax_batch = 1')
    environment = {"TEACHERFARM_WINDOW": "2", "TEACHERFARM_MEMORY_MB": "2"}
    settings = load(*file, "--window", "3", environment=environment)
    assert (settings.window, settings.memory_mb, settings.max_batch) == (3, 2, 1)
    assert settings.payload_kib == ServerSettings(models="m").payload_kib
    assert settings.models == "from-file"
    assert load("from-flag", *file, environment={"TEACHERFARM_MODELS": "e"}).models == "from-flag"
    assert load(*file, environment={"TEACHERFARM_MODELS": "e"}).models == "e"


def test_every_setting_can_be_said_in_all_three_ways(toml):
    said = {
        "models": ("m", "m"),
        "grpc": ("off", "off"),
        "zmq": ("127.0.0.1:0", "127.0.0.1:0"),
        "http": ("off", "off"),
        "allow_plaintext": (True, "yes"),
        "projects": ("projects.toml", "projects.toml"),
        "tls_cert": ("cert.pem", "cert.pem"),
        "tls_key": ("key.pem", "key.pem"),
        "tls_client_ca": ("ca.pem", "ca.pem"),
        "curve_key": ("farm.secret", "farm.secret"),
        "curve_clients": ("any", "any"),
        "idle_session_s": (7.5, "7.5"),
        "triton": ("h:8001,dns://t:8001", "h:8001,dns://t:8001"),
        "triton_deadline_s": (7.5, "7.5"),
        "providers": ("CPUExecutionProvider", "CPUExecutionProvider"),
        "store": ("lmdb:labels", "lmdb:labels"),
        "store_max_gb": (7.5, "7.5"),
        "store_max_days": (7.5, "7.5"),
        "store_timeout_s": (7.5, "7.5"),
        "dataset": (("a=/data/a",), "a=/data/a"),
        "dataset_cache": ("indexes", "indexes"),
        "log_level": ("DEBUG", "DEBUG"),
        "log_json": (True, "true"),
        "max_wait_ms": (7.5, "7.5"),
        "drain_s": (7.5, "7.5"),
    }
    tls = ["--tls-cert=c", "--tls-key=k"]
    others = {"tls_cert": tls[1:], "tls_key": tls[:1], "tls_client_ca": tls}
    others |= {"curve_key": ["--curve-clients=any"], "curve_clients": ["--curve-key=k"]}
    for setting in dataclasses.fields(ServerSettings):
        value, text = said.get(setting.name, (7, "7"))
        models = [] if setting.name == "models" else ["some-models", *others.get(setting.name, [])]
        flag = "--" + setting.name.replace("_", "-")
        by_flag = ["m"] if setting.name == "models" else [flag] if value is True else [flag, text]
        spelled = str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'
        if isinstance(value, tuple):
            spelled = str(list(value))
        for settings in (
            load(*models, *by_flag),
            load(*models, environment={"TEACHERFARM_" + setting.name.upper(): text}),
            load(*models, *toml(f"{setting.name} = {spelled}")),
        ):
            assert getattr(settings, setting.name) == value
            assert type(getattr(settings, setting.name)) is type(value)


def test_data_sets_by_name(toml):
    settings = load("m", "--dataset", "a=/x/{0..3}.tar", "--dataset", "b=/y=z")
    assert settings.datasets() == {"a": "/x/{0..3}.tar", "b": "/y=z"}
    assert load("m", environment={"TEACHERFARM_DATASET": "a=/x 'b=/y z'"}).datasets() == {"a": "/x", "b": "/y z"}
    assert load("m", *toml('dataset = ["a=/x", "b=/y"]')).datasets() == {"a": "/x", "b": "/y"}
    for wrong, words in ((["a"], "NAME=PATH"), (["=/x"], "NAME=PATH"), (["a=/x", "a=/y"], "given twice: /x and /y")):
        with pytest.raises(ValueError, match=words):
            load("m", *(word for entry in wrong for word in ("--dataset", entry)))
    with pytest.raises(ValueError, match="dataset must be"):
        load("m", *toml("dataset = [1]"))


def test_a_flag_can_switch_off_what_a_file_switched_on(toml):
    file = toml("log_json = true")
    assert load("m", *file).log_json
    assert not load("m", *file, "--no-log-json").log_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("windoww = 5", "unknown settings windoww; known are .*window"),
        ("[server]\nwindow = 5", "unknown settings server"),
        ('window = "5"', "window must be int, got '5'"),
        ("window = 5.5", "window must be int"),
        ("window = true", "window must be int"),
        ("log_json = 1", "log_json must be bool"),
        ("grpc = 7000", "grpc must be str"),
        ("window = ", "cannot read settings"),
    ],
)
def test_a_bad_file_is_named_with_its_key(toml, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        load("m", *toml(text))
    assert "serve.toml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read settings from .*none\.toml"):
        load("m", "--config", str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("name", "text"), [("WINDOW", "many"), ("WINDOW", ""), ("WINDOW", "5.5"), ("LOG_JSON", "maybe"), ("DRAIN_S", "x")]
)
def test_a_bad_environment_variable_is_named(name, text):
    with pytest.raises(ValueError, match=f"TEACHERFARM_{name} must be .*{text!r}"):
        load("m", environment={f"TEACHERFARM_{name}": text})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"memory_mb": -1}, "memory_mb"),
        ({"preferred_batch": 0}, "preferred_batch"),
        ({"payload_kib": 0}, "payload_kib"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"max_strangers": 0}, "max_strangers must be at least 1"),
        ({"idle_session_s": 0}, "idle_session_s must be positive"),
        ({"idle_session_s": float("nan")}, "idle_session_s must be positive"),
        ({"tls_cert": "c"}, "tls_cert and tls_key come together"),
        ({"tls_key": "k"}, "tls_cert and tls_key come together"),
        ({"tls_client_ca": "a"}, "tls_client_ca asks students for certificates, which needs tls_cert and tls_key"),
        ({"curve_key": "k"}, "curve_key and curve_clients come together.*who may in"),
        ({"curve_clients": "c"}, "curve_key and curve_clients come together"),
        ({"tls_cert": "c", "tls_key": "k", "grpc": "off"}, "tls_cert has no effect with grpc = 'off'"),
        ({"curve_key": "k", "curve_clients": "c", "zmq": "off"}, "curve_key has no effect with zmq = 'off'"),
        ({"threads": -1}, "threads must not be negative"),
        ({"max_batch": -1}, "max_batch"),
        ({"max_wait_ms": -0.1}, "max_wait_ms"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms"),
        ({"drain_s": float("nan")}, "drain_s"),
        ({"store_max_gb": 0.01}, "store_max_gb must be at least"),
        ({"store_max_days": float("nan")}, "store_max_days must be more than 0"),
        ({"store_timeout_s": 0}, "store_timeout_s must be more than 0 and at most 60, got 0"),
        ({"log_level": "LOUD"}, "DEBUG, INFO, WARNING or ERROR, got 'LOUD'"),
        ({"grpc": "off", "zmq": "off"}, "both wires are off"),
        ({"grpc": "7000"}, "grpc must be HOST:PORT or 'off', got '7000'"),
        ({"zmq": "127.0.0.1:"}, "zmq must be HOST:PORT"),
        ({"http": "127.0.0.1:65536"}, "http must be HOST:PORT"),
        ({"http": "127.0.0.1:x"}, "http must be HOST:PORT"),
    ],
)
def test_an_impossible_value_is_named(values, words):
    with pytest.raises(ValueError, match=words):
        ServerSettings(models="m", **values)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:7000", "192.168.1.2:7000", "example.org:7000", "127.example.org:7000", "[::]:7000"]
)
@pytest.mark.parametrize("name", ["grpc", "zmq"])
def test_listening_beyond_this_machine_in_the_clear_must_be_meant(name, address):
    for more in ({}, {"projects": "p"}, UNASKED["zmq" if name == "grpc" else "grpc"]):
        with pytest.raises(
            ValueError, match=rf"{name} = .*in the clear.*--allow-plaintext.*see crops, labels and API keys"
        ):
            ServerSettings(models="m", **{name: address}, **more)
        assert getattr(ServerSettings(models="m", allow_plaintext=True, **{name: address}, **more), name) == address


@pytest.mark.parametrize("name", ["grpc", "zmq"])
def test_listening_beyond_this_machine_encrypted_asks_who_comes(name):
    beyond = {name: "0.0.0.0:7000"}
    with pytest.raises(ValueError, match=rf"{name} = .*encrypted but for anybody. Say who may in by .*--projects"):
        ServerSettings(models="m", **beyond, **UNASKED[name])
    lists = {"tls_client_ca": "ca.pem"} if name == "grpc" else {"curve_clients": "clients/"}
    for more in (lists, {"projects": "p.toml"}, {"allow_plaintext": True}):
        assert getattr(ServerSettings(models="m", **beyond, **UNASKED[name] | more), name) == "0.0.0.0:7000"


def test_the_status_page_may_be_read_from_elsewhere():
    assert ServerSettings(models="m", http="0.0.0.0:7002").http == "0.0.0.0:7002"


@pytest.mark.parametrize("address", ["localhost:1", "127.8.9.1:0", "[::1]:7000"])
def test_this_machine_alone_needs_no_word(address):
    assert ServerSettings(models="m", grpc=address).grpc == address


def test_which_teachers_must_be_said():
    with pytest.raises(ValueError, match=r"serve models/.*teacherfarm export"):
        load()
