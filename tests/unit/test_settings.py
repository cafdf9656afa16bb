"""Settings: every problem at once, precedence, and nothing secret in what is shown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gateway.backend import Proxy
from gateway.errors import SettingsError
from gateway.settings import NAMES, Settings


def problems(environment: dict[str, str], directory: Path) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as error:
        Settings.load(environment, directory)
    return error.value.problems


def test_nothing_set_gives_the_defaults(tmp_path: Path) -> None:
    settings = Settings.load({}, tmp_path)
    assert settings == Settings()
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8080, 1)
    assert settings.warnings == ()


def test_environment_wins_over_local_file_over_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_PORT=1001\nGATEWAY_HOST=one\nWEB_CONCURRENCY=2\n")
    (tmp_path / ".env.local").write_text("GATEWAY_PORT=1002\nGATEWAY_HOST=two\n")
    settings = Settings.load({"GATEWAY_PORT": "1003"}, tmp_path)
    assert (settings.port, settings.host, settings.workers) == (1003, "two", 2)


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_empty_value_means_unset_and_hides_no_other(tmp_path: Path, empty: str) -> None:
    (tmp_path / ".env").write_text("GATEWAY_PORT=1001\nGATEWAY_HOST=\n")
    (tmp_path / ".env.local").write_text(f"GATEWAY_PORT='{empty}'\n")
    settings = Settings.load({"GATEWAY_PORT": empty, "DATABASE_URL": empty}, tmp_path)
    assert (settings.port, settings.host, settings.database_url) == (1001, "127.0.0.1", None)


def test_values_in_files_are_taken_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('# a comment\nexport GATEWAY_HOST="::1"\nDATABASE_URL=postgresql://u:$HOME${X}@h/d # trailing\n')
    settings = Settings.load({}, tmp_path)
    assert (settings.host, settings.database_url) == ("::1", "postgresql://u:$HOME${X}@h/d")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_PROT=1\nGATEWAY_IDLE_S=soon\n")
    (tmp_path / ".env.local").write_text("GATEWAY_ZZZZZZ=1\n")
    found = problems({"GATEWAY_PORT": "0", "OPENAI_BASE_URL": "ftp://x", "GATEWAY_FIRST_BYTE_S": "900"}, tmp_path)
    assert found[:2] == (".env: unknown setting GATEWAY_PROT; did you mean GATEWAY_PORT?", ".env.local: unknown setting GATEWAY_ZZZZZZ")
    assert [line.split()[0] for line in found[2:]] == ["GATEWAY_PORT", "OPENAI_BASE_URL", "GATEWAY_IDLE_S"]


@pytest.mark.parametrize("name", ["GATEWAY_PROT", "GATEWAY_SERVICE_HOST", "GATEWAY_PORT_8080_TCP"])
def test_unknown_setting_in_the_environment_is_a_warning(tmp_path: Path, name: str) -> None:
    settings = Settings.load({name: "1", "OTHER": "2", "GATEWAY_KEY": "gw_user_x"}, tmp_path)
    assert len(settings.warnings) == 1
    assert settings.warnings[0].startswith(f"unknown setting {name}")


def test_kubernetes_service_link_is_ignored_and_hides_no_file(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text("GATEWAY_PORT=9000\n")
    settings = Settings.load({"GATEWAY_PORT": "tcp://10.0.0.1:8080"}, tmp_path)
    assert settings.port == 9000
    assert settings.warnings == ("GATEWAY_PORT is ignored: its value looks like a Kubernetes service link",)


BAD = {
    "GATEWAY_HOST": ["http://x", "a b", "u@h"],
    "GATEWAY_PORT": ["0", "65536", "-1", "80.0", "eighty", "+-5", "1_000", "9" * 5000, "\u0661"],
    "WEB_CONCURRENCY": ["0", "65", "auto"],
    "DATABASE_URL": ["mysql://u:hunter22@h/d", "gateway.db", "sqlite:/x"],
    "REDIS_URL": ["redis.example:6379", "http://u:hunter22@h", "redis:/x"],
    "GATEWAY_MASTER_KEY": ["short"],
    "GATEWAY_PEPPER": ["short"],
    "GATEWAY_METRICS_TOKEN": ["short"],
    "OPENAI_BASE_URL": [
        "api.openai.com",
        "ftp://h",
        "http://",
        "http://u:hunter22@h/v1",
        "http://:hunter22@h/v1",
        "http://h/v1?x=1",
        "http://h/v1#x",
        "http://h:99999/v1",
        "http://h:0/v1",
        "http://h:x/v1",
        "http://a b/v1",
        "http://h/v 1",
        "http://[::1/v1",
        "http://h\nx/v1",
    ],
    "GO_CHATGPT_API_PROXY": ["proxy:1080", "ftp://proxy:1", "http://u:hunter22@proxy", "socks5://:hunter22@proxy:1080"],
    "CHATGPT_BASE_URL": ["http://u:hunter22@h"],
    "GATEWAY_CALLER_TOKENS": ["yes"],
    "GATEWAY_UNPRICED": ["yes"],
    "GATEWAY_JSON_LIMIT": ["999", "1e6", "20MB"],
    "GATEWAY_UPLOAD_LIMIT": ["0"],
    "GATEWAY_HEARTBEAT_S": ["-1", "0.001", "inf", "never"],
    "GATEWAY_BODY_S": ["0", "-1", "nan", "inf", "soon", "86401"],
    "GATEWAY_TOTAL_S": ["0.001"],
    "GATEWAY_TRUSTED_PROXIES": ["nginx", "10.0.0.1/8"],
    "GATEWAY_DRAIN_S": ["1.5"],
    "GATEWAY_LOG_LEVEL": ["loud"],
    "AGENT_ORIGINS": ["chatgpt.com", "https://chatgpt.com/page", "https://a b"],
    "AGENT_OPEN": ["maybe"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_malformed_value_is_one_clear_line_that_does_not_show_it(tmp_path: Path, name: str, value: str) -> None:
    (line,) = problems({name: value}, tmp_path)
    assert line.startswith(f"{name} ")
    assert "\n" not in line
    assert "hunter22" not in line
    assert "invalid literal" not in line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("https://my_host.example/a/b@1/", "https://my_host.example/a/b@1"),
    ],
)
def test_base_url_loses_its_last_slash(tmp_path: Path, value: str, expected: str) -> None:
    assert Settings.load({"OPENAI_BASE_URL": value}, tmp_path).openai_base_url == expected


def test_good_values_are_parsed(tmp_path: Path) -> None:
    environment = {"GATEWAY_UNPRICED": "Refuse", "GATEWAY_LOG_LEVEL": "DEBUG", "GATEWAY_IDLE_S": "1e1", "GATEWAY_PORT": " 9000 ", "GATEWAY_POLICY": "a.b:C"}
    settings = Settings.load(environment, tmp_path)
    assert (settings.unpriced, settings.log_level, settings.idle_s, settings.port, settings.policy) == ("refuse", "debug", 10.0, 9000, "a.b:C")
    assert settings.deadlines.idle_s == 10.0


def test_file_that_cannot_be_read_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"GATEWAY_HOST=\xff\n")
    assert problems({}, tmp_path) == (".env cannot be read: it is not UTF-8",)


def test_secrets_do_not_show(tmp_path: Path) -> None:
    secret = "very-secret-value-0123456789"
    environment = dict.fromkeys(("OPENAI_API_KEY", "GATEWAY_MASTER_KEY", "GATEWAY_PEPPER", "GATEWAY_METRICS_TOKEN", "IMITATE_ACCESS_TOKEN"), secret)
    urls = {"DATABASE_URL": f"postgresql://u:{secret}@h/d", "REDIS_URL": f"rediss://u:{secret}@h/1"}
    settings = Settings.load(environment | urls, tmp_path)
    assert secret not in repr(settings) + str(settings)
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.reveal() == secret
    assert settings.redis_url is not None
    assert settings.redis_url.reveal() == urls["REDIS_URL"]


@pytest.mark.parametrize(
    ("data", "secrets", "run"),
    [
        ("data", "data-secrets", "data/run"),
        ("a/b/", "a/b-secrets", "a/b/run"),
        (".", "../{name}-secrets", "run"),
        ("a/..", "../{name}-secrets", "run"),
    ],
)
def test_secrets_lie_beside_the_data_and_run_files_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, secrets: str, run: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    settings = Settings.load({"GATEWAY_DATA_DIR": data}, tmp_path)
    assert settings.secrets_path == (tmp_path / secrets.format(name=tmp_path.name)).resolve()
    assert settings.run_path == tmp_path / run
    assert settings.database == f"sqlite:///{(tmp_path / data).resolve()}/gateway.db"


@pytest.mark.parametrize(("data", "secrets"), [("/", ""), ("d", "d/keys"), ("data", "data")])
def test_secrets_within_the_data_are_refused(tmp_path: Path, data: str, secrets: str) -> None:
    (line,) = problems({"GATEWAY_DATA_DIR": data, "GATEWAY_SECRETS_DIR": secrets}, tmp_path)
    assert line.startswith("GATEWAY_SECRETS_DIR must not be inside")


def test_settings_without_an_environment_read_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GATEWAY_PORT", "9123")
    monkeypatch.chdir(tmp_path)
    assert Settings.load().port == 9123


def test_allowed_networks_are_separated_by_commas(tmp_path: Path) -> None:
    found = Settings.load({"GATEWAY_ALLOW_NETWORKS": "10.0.0.0/8, 192.168.1.5,fd00::/8,"}, tmp_path).allow_networks
    assert [str(network) for network in found or ()] == ["10.0.0.0/8", "192.168.1.5/32", "fd00::/8"]


def test_trusted_proxies_are_those_of_this_host_unless_others_or_none_are_named(tmp_path: Path) -> None:
    def found(text: str) -> list[str]:
        return [str(network) for network in Settings.load({"GATEWAY_TRUSTED_PROXIES": text}, tmp_path).trusted_proxies]

    assert (found(""), found("10.0.0.7"), found("None")) == (["127.0.0.1/32", "::1/128"], ["10.0.0.7/32"], [])


def test_origins_of_agents_are_a_list_that_may_be_empty(tmp_path: Path) -> None:
    def found(text: str) -> tuple[str, ...]:
        return Settings.load({"AGENT_ORIGINS": text}, tmp_path).agent_origins

    assert found("") == ("https://chat.openai.com", "https://chatgpt.com", "moz-extension://*", "chrome-extension://*")
    assert (found("https://a.example:8443, http://[::1]:80"), found("*"), found("None")) == (("https://a.example:8443", "http://[::1]:80"), ("*",), ())


def test_the_admin_key_is_not_shown(tmp_path: Path) -> None:
    settings = Settings.load({"GATEWAY_ADMIN_KEY": "canary-of-the-admin"}, tmp_path)
    assert settings.admin_key is not None
    assert settings.admin_key.reveal() == "canary-of-the-admin"
    assert "canary" not in repr(settings)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "ollama", "10.0.0.0-10.0.0.9", "10.0.0.0/33", "10.0.0.0/8 192.168.0.0/16"])
def test_what_is_no_network_is_told(tmp_path: Path, text: str) -> None:
    (line,) = problems({"GATEWAY_ALLOW_NETWORKS": text}, tmp_path)
    assert line.startswith("GATEWAY_ALLOW_NETWORKS must be networks such as")


@pytest.mark.parametrize(("text", "seconds"), [("0", math.inf), ("0.0", math.inf), ("5", 5.0), ("0.01", 0.01)])
def test_no_heartbeat_at_all_is_a_setting(tmp_path: Path, text: str, seconds: float) -> None:
    assert Settings.load({"GATEWAY_HEARTBEAT_S": text}, tmp_path).heartbeat_s == seconds


@pytest.mark.parametrize(
    ("environment", "file", "port"),
    [
        ({"PORT": "1"}, "", 1),
        ({"PORT": "1", "GO_CHATGPT_API_PORT": "2"}, "", 2),
        ({"PORT": "1", "GO_CHATGPT_API_PORT": "2", "GATEWAY_PORT": "3"}, "", 3),
        ({"PORT": "1"}, "GATEWAY_PORT=3", 1),
        ({}, "GATEWAY_PORT=3\nPORT=1", 3),
        ({}, "PORT=1", 1),
        ({"PORT": " "}, "", 8080),
    ],
)
def test_older_name_of_a_setting_stands_in_for_it(tmp_path: Path, environment: dict[str, str], file: str, port: int) -> None:
    (tmp_path / ".env").write_text(file)
    assert Settings.load(environment, tmp_path).port == port


def test_proxy_of_callers_has_two_names_and_shows_no_password(tmp_path: Path) -> None:
    for name in ("GO_CHATGPT_API_PROXY", "PROXY"):
        settings = Settings.load({name: "socks5://ann:hunter22@proxy:1080"}, tmp_path)
        assert settings.callers_proxy == Proxy("socks5", "proxy", 1080, "ann", "hunter22")
        assert "hunter22" not in repr(settings)


def test_the_password_that_everybody_knows_is_for_this_host_alone(tmp_path: Path) -> None:
    known = {"ADMIN_PASSWORD": "TotallySecurePassword"}
    for host in ("127.0.0.1", "::1", "localhost"):
        Settings.load({**known, "GATEWAY_HOST": host}, tmp_path)
    for host in ("0.0.0.0", "gateway.example", "10.0.0.1"):
        with pytest.raises(SettingsError, match="ADMIN_PASSWORD is an older program's default") as refused:
            Settings.load({**known, "GATEWAY_HOST": host}, tmp_path)
        assert "TotallySecure" not in str(refused.value)
    Settings.load({"ADMIN_PASSWORD": "another", "GATEWAY_HOST": "10.0.0.1"}, tmp_path)
