"""A schema registry behind TLS: whom we believe, whom it lets in, and what is said when either goes wrong."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtask.config import TopicNames, load_settings
from streamtask.domain.model import TaskRequest
from streamtask.errors import ConfigError, RegistryUnreachable
from streamtask.schema_registry import Formats, open_registry, subjects
from tests import certificates
from tests.certificates import KEY_PASSWORD, Certificates
from tests.fake_registry import FakeRegistry, fake_registry

HIGH = TopicNames().requests[0]
SUBJECT = subjects.subject_of(HIGH)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates.make(tmp_path_factory.mktemp("pem"))


@pytest.fixture
def guarded(pem: Certificates) -> Iterator[FakeRegistry]:
    """Lets in only who has a certificate."""
    with fake_registry(pem.serving(asks_for_one=True)) as held:
        yield held


def answers(url: str, **settings: Any) -> bool:
    """Whether the registry at `url` can be talked with. Raises what stands in the way."""
    registry = open_registry(
        url, {"timeout": 5, **{name.replace("_", "."): str(held) for name, held in settings.items()}}
    )
    try:
        return registry.versions(SUBJECT) == []
    finally:
        registry.close()


def test_a_registry_is_believed_by_the_authority_that_is_named(
    pem: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_registry(pem.serving()) as fake:
        assert fake.url.startswith("https://")
        assert answers(fake.url, ssl_ca_location=pem.ca)
        assert fake.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(pem.ca))
        assert answers(fake.url), "or by what the environment believes"


@pytest.mark.parametrize("settings", [{}, {"ssl_ca_location": "other_ca"}], ids=["the system's own", "another one"])
def test_a_registry_of_an_unknown_authority_is_told_nothing_and_the_setting_is_named(
    pem: Certificates, settings: dict[str, str]
) -> None:
    with fake_registry(pem.serving()) as fake:
        given = {name: getattr(pem, attribute) for name, attribute in settings.items()}
        with pytest.raises(RegistryUnreachable, match=r"certificate verify failed.*ssl\.ca\.location"):
            answers(fake.url, basic_auth_user_info="me:secret", **given)
        assert not fake.asked


def test_a_registry_that_is_another_host_is_told_nothing(pem: Certificates) -> None:
    with fake_registry(pem.serving(elsewhere=True)) as fake:
        with pytest.raises(RegistryUnreachable, match="certificate verify failed"):
            answers(fake.url, ssl_ca_location=pem.ca)
        assert not fake.asked


@pytest.mark.parametrize("encrypted", [True, False], ids=["an encrypted key of its own", "both in one file"])
def test_a_registry_that_wants_a_certificate_is_shown_ours(
    guarded: FakeRegistry, pem: Certificates, encrypted: bool
) -> None:
    mine: dict[str, Any] = {"ssl_certificate_location": pem.client}
    if encrypted:
        mine = {
            "ssl_certificate_location": pem.client_certificate,
            "ssl_key_location": pem.client_key,
            "ssl_key_password": KEY_PASSWORD,
        }
    assert answers(guarded.url, ssl_ca_location=pem.ca, **mine)
    # Why is in the server's alert, which may be overtaken by the end of the connection.
    with pytest.raises(RegistryUnreachable, match=r"cannot be reached"):
        answers(guarded.url, ssl_ca_location=pem.ca)
    assert sum(guarded.asked.values()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"ssl_ca_location": "/no/such/file"},
        {"ssl_certificate_location": "client_certificate"},
        {"ssl_certificate_location": "client_certificate", "ssl_key_location": "client_key", "ssl_key_password": "no"},
        {"ssl_certificate_location": "client_certificate", "ssl_key_location": "server_key"},
    ],
    ids=["no such file", "no key", "a wrong password", "the key of another one"],
)
def test_certificates_that_cannot_be_used_are_refused_before_anything_is_sent(
    pem: Certificates, wrong: dict[str, str]
) -> None:
    given = {name: getattr(pem, held, held) for name, held in wrong.items()}
    with pytest.raises(ConfigError, match="registry: the certificates cannot be read"):
        answers("https://127.0.0.1:1", **given)


def test_a_server_that_accepts_and_never_shakes_hands_is_given_up_in_time(pem: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = open_registry(f"https://127.0.0.1:{silent.getsockname()[1]}", {"timeout": 0.3})
        began = time.monotonic()
        with pytest.raises(RegistryUnreachable, match=r"not answered within 0\.3 s"):
            registry.versions(SUBJECT)
        assert time.monotonic() - began < 15
        registry.close()


def test_what_the_settings_say_reaches_the_registry(guarded: FakeRegistry, pem: Certificates, tmp_path: Path) -> None:
    """As a worker is told: through streamtask.toml or STREAMTASK_REGISTRY."""
    tls = {"ssl.ca.location": str(pem.ca), "ssl.certificate.location": str(pem.client)}
    formats = Formats(load_settings(registry_url=guarded.url, registry=tls, format="confluent"))
    try:
        assert formats.encoder().request(HIGH, TaskRequest(task_type="x"))[0] == 0
        assert guarded.held.versions(SUBJECT)
    finally:
        formats.close()
