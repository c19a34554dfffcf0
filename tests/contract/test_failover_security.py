"""The settings that let librdkafka in let the second client in: SASL_SSL with a certificate of its own, on a real Kafka."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from streamtask.config.kafka import KafkaSettings
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.errors import StreamtaskError
from streamtask.kafka import admin
from streamtask.worker.failover import remove_members
from tests.conftest import warm_up

pytest.importorskip("kafka.admin", reason="needs the extra `failover`")
x509 = pytest.importorskip("cryptography.x509", reason="needs cryptography, to make certificates")
pytestmark = pytest.mark.broker

USER, PASSWORD, KEY_PASSWORD = "worker", "p,=; ss", "of the key"


def _pem(path: Path, *parts: bytes) -> str:
    path.write_bytes(b"".join(parts))
    return path.as_posix()


def _certificates(place: Path) -> dict[str, str]:
    """Files: ca, broker (key and certificate), mine, mine_key (encrypted), other_ca."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)

    def issued(name: str, ca: tuple[Any, Any] | None) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder(ca[1].subject if ca else subject, subject, key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=2))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        if ca is None:
            usage = dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True)
            rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
            usage |= dict.fromkeys((*rest, "encipher_only", "decipher_only"), False)
            builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        else:
            here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            builder = builder.add_extension(here, critical=False)
        public = (ca or (key, None))[0].public_key()
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        return key, builder.sign((ca or (key, None))[0], hashes.SHA256())

    def key_bytes(key: Any, password: str | None = None) -> bytes:
        secret = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)  # type: ignore[no-any-return]

    def cert_bytes(pair: tuple[Any, Any]) -> bytes:
        return pair[1].public_bytes(serialization.Encoding.PEM)  # type: ignore[no-any-return]

    ca, other = issued("ca", None), issued("other", None)
    broker, mine = issued("broker", ca), issued("mine", ca)
    return {
        "ca": _pem(place / "ca.pem", cert_bytes(ca)),
        "other_ca": _pem(place / "other.pem", cert_bytes(other)),
        "broker": _pem(place / "broker.pem", key_bytes(broker[0]), cert_bytes(broker), cert_bytes(ca)),
        "mine": _pem(place / "mine.pem", cert_bytes(mine)),
        "mine_key": _pem(place / "mine.key", key_bytes(mine[0], KEY_PASSWORD)),
    }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """(address of a listener that asks for TLS, a certificate and a password; the certificates)."""
    files = _certificates(tmp_path_factory.mktemp("certificates"))
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    plain, controller, secure = (one.getsockname()[1] for one in taken)
    for one in taken:
        one.close()
    modules = "org.apache.kafka.common.security"
    here = "listener.name.secure"
    config = {
        **QUICK,
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},SECURE://127.0.0.1:{secure}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
        f"{here}.ssl.keystore.type": "PEM",
        f"{here}.ssl.keystore.location": files["broker"],
        f"{here}.ssl.truststore.type": "PEM",
        f"{here}.ssl.truststore.location": files["ca"],
        f"{here}.ssl.client.auth": "required",
        f"{here}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        f"{here}.plain.sasl.jaas.config": f'{modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
        f"{here}.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
    }
    with DevBroker(ports=[plain, controller], config=config) as kafka:
        warm_up(kafka.bootstrap)
        client = AdminClient({"bootstrap.servers": kafka.bootstrap})
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4_096)
        user = UserScramCredentialUpsertion(USER, info, PASSWORD.encode())
        client.alter_user_scram_credentials([user])[USER].result(20)
        yield f"127.0.0.1:{secure}", files


def _settings(secured: tuple[str, dict[str, str]], **other: str) -> KafkaSettings:
    address, files = secured
    extra = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": PASSWORD,
        "ssl.ca.location": files["ca"],
        "ssl.certificate.location": files["mine"],
        "ssl.key.location": files["mine_key"],
        "ssl.key.password": KEY_PASSWORD,
        **{name.replace("_", "."): value for name, value in other.items()},
    }
    return KafkaSettings(address, extra=extra)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_both_clients_come_in_with_the_same_settings(secured: tuple[str, dict[str, str]], mechanism: str) -> None:
    settings = _settings(secured, sasl_mechanism=mechanism)
    assert admin.cluster_id(settings)
    assert remove_members(settings, "nobody", ["stranger"], reason="test") == {"stranger": False}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # kafka-python forgets a socket whose TLS failed
@pytest.mark.parametrize("wrong", ["password", "ca"])
def test_what_keeps_the_first_client_out_keeps_the_second_out(
    secured: tuple[str, dict[str, str]], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtask.worker.failover.CALL_S", 1.0)
    # Captured log records would hold the error, and with it the sockets, beyond this test.
    monkeypatch.setattr(logging.getLogger("kafka"), "propagate", False)
    other = {"password": {"sasl_password": "guess"}, "ca": {"ssl_ca_location": secured[1]["other_ca"]}}[wrong]
    with pytest.raises(StreamtaskError) as caught:
        remove_members(_settings(secured, **other), "nobody", ["stranger"], reason="test")
    assert "guess" not in str(caught.value)
    del caught
    gc.collect()  # now, while the warning is expected
