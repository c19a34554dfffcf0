"""A Kafka that enforces security: TLS, client certificates, SCRAM, PLAIN and signed tokens, and ACLs: deny by default.

    with Identities() as tokens, SecureBroker(tokens) as kafka:
        kafka.add_user("alice", "pw")
        kafka.allow("alice", acl)                         # ACLs of streamtask.kafka.acls
        KafkaSettings(*kafka.scram("alice", "pw"))        # (bootstrap, raw client settings)

Every way in has a listener of its own. The plain one is the administrator's door (User:ANONYMOUS is super user), and so
is the TLS one that asks for no certificate: there is nobody to be told apart.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from streamtask.devbroker.cluster import QUICK, DevBroker, free_ports
from streamtask.errors import DevBrokerUnavailable
from tests.conftest import warm_up

ANSWER_S = 30.0
AUDIENCE = "kafka"
LISTENERS = ("TLS", "MTLS", "SASL")
Way = tuple[str, dict[str, Any]]  # (bootstrap servers, raw client settings)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Identities:
    """An OIDC provider as small as can be: client credentials → signed token, and the key that proves it.

    clients  {name: secret}; may be added to while it runs
    """

    def __init__(self) -> None:
        self.clients: dict[str, str] = {}
        self._key = rsa.generate_private_key(65_537, 2_048)
        identities = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: Mapping[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer(200, identities.keys())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                basic = base64.b64decode(self.headers.get("Authorization", "Basic ").split(" ")[1])
                name, _, secret = map(urllib.parse.unquote, basic.decode().partition(":"))
                if identities.clients.get(name) != secret:
                    self.answer(401, {"error": "invalid_client"})
                    return
                self.answer(200, {"access_token": identities.token(name), "token_type": "Bearer", "expires_in": 300})

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def keys(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        modulus, exponent = (_base64url(n.to_bytes((n.bit_length() + 7) // 8)) for n in (numbers.n, numbers.e))
        return {"keys": [{"kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256", "n": modulus, "e": exponent}]}

    def token(self, name: str, *, seconds: int = 300) -> str:
        now = int(time.time())
        claims = {"sub": name, "aud": AUDIENCE, "iss": "test", "iat": now, "exp": now + seconds}
        text = ".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, claims))
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_base64url(signature)}"

    def __enter__(self) -> Identities:
        threading.Thread(target=self._server.serve_forever, name="identities", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class SecureBroker(DevBroker):
    """One broker. Every way to come in is a method that returns (bootstrap servers, raw client settings)."""

    def __init__(self, identities: Identities) -> None:
        super().__init__(config=QUICK)
        self.identities = identities
        self.files = Path(tempfile.mkdtemp(prefix="streamtask-secure-"))
        self._authority, self._other = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = str(self.files / "ca.pem"), str(self.files / "other-ca.pem")
        self._authority.cert_pem.write_to_path(self.ca)
        self._other.cert_pem.write_to_path(self.other_ca)
        server = self._authority.issue_cert("127.0.0.1")
        # PKCS#8 is the only form of a key that Kafka reads.
        key = serialization.load_pem_private_key(server.private_key_pem.bytes(), None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.files / "server.pem").write_bytes(key + b"".join(one.bytes() for one in server.cert_chain_pems))
        self._extra_ports: dict[str, int] = {}
        self._admin: AdminClient | None = None

    # --- the broker ---------------------------------------------------------------------------------------------------

    def _open_once(self) -> None:
        self._extra_ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        super()._open_once()

    def open(self) -> None:
        try:
            super().open()
        except DevBrokerUnavailable:  # a machine that is very busy: once more
            super().open()
        warm_up(self.bootstrap)

    def close(self) -> None:
        self._admin = None
        super().close()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        shutil.rmtree(self.files, ignore_errors=True)

    def properties(self, node: int) -> dict[str, str]:
        plain = super().properties(node)
        more = "".join(f",{name}://127.0.0.1:{port}" for name, port in self._extra_ports.items())
        modules = "org.apache.kafka.common.security"
        sasl = "listener.name.sasl"
        return plain | {
            "listeners": plain["listeners"] + more,
            "advertised.listeners": plain["advertised.listeners"] + more,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,MTLS:SSL,SASL:SASL_SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": (self.files / "server.pem").as_posix(),
            # Whoever has a certificate of the authority is who its CN says.
            "listener.name.mtls.ssl.client.auth": "required",
            "listener.name.mtls.ssl.truststore.type": "PEM",
            "listener.name.mtls.ssl.truststore.location": self.ca,
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
            f"{sasl}.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN,OAUTHBEARER",
            f"{sasl}.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
            f"{sasl}.plain.sasl.jaas.config": f'{modules}.plain.PlainLoginModule required user_plain="plain secret";',
            f"{sasl}.oauthbearer.sasl.jaas.config": f"{modules}.oauthbearer.OAuthBearerLoginModule required;",
            f"{sasl}.oauthbearer.sasl.server.callback.handler.class": (
                f"{modules}.oauthbearer.OAuthBearerValidatorCallbackHandler"
            ),
            f"{sasl}.sasl.oauthbearer.jwks.endpoint.url": f"{self.identities.url}/keys",
            f"{sasl}.sasl.oauthbearer.expected.audience": AUDIENCE,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "false",
        }

    def command(self, node: int) -> list[str]:
        java, *rest = super().command(node)
        # Kafka 4 refuses the address of keys that is not listed.
        return [java, f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self.identities.url}/keys", *rest]

    # --- ways in ------------------------------------------------------------------------------------------------------

    def _at(self, listener: str, protocol: str, **more: Any) -> Way:
        given = {name.replace("_", "."): value for name, value in more.items()}
        address = f"127.0.0.1:{self._extra_ports[listener]}"
        return address, {"security.protocol": protocol, "ssl.ca.location": self.ca, **given}

    def tls(self) -> Way:
        return self._at("TLS", "SSL")

    def mtls(self, user: str, *, as_files: bool = False) -> Way:
        """With a certificate for `user`; inside the settings, or in files."""
        leaf = self._authority.issue_cert(f"{user}@streamtask.test", common_name=user)
        if not as_files:
            return self._with(leaf)
        chain = b"".join(one.bytes() for one in leaf.cert_chain_pems)
        certificate, key_file = self.files / f"{user}.pem", self.files / f"{user}.key"
        certificate.write_bytes(chain)
        leaf.private_key_pem.write_to_path(key_file)
        return self._at("MTLS", "SSL", ssl_certificate_location=str(certificate), ssl_key_location=str(key_file))

    def _with(self, leaf: trustme.LeafCert) -> Way:
        chain = b"".join(one.bytes() for one in leaf.cert_chain_pems).decode()
        key = leaf.private_key_pem.bytes().decode()
        return self._at("MTLS", "SSL", ssl_certificate_pem=chain, ssl_key_pem=key)

    def foreign_certificate(self, user: str) -> Way:
        """Whose authority the broker does not know."""
        return self._with(self._other.issue_cert(f"{user}@streamtask.test", common_name=user))

    def without_certificate(self) -> Way:
        return self._at("MTLS", "SSL")

    def scram(self, user: str, password: str) -> Way:
        return self._at("SASL", "SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_username=user, sasl_password=password)

    def plain(self, password: str = "plain secret") -> Way:
        return self._at("SASL", "SASL_SSL", sasl_mechanism="PLAIN", sasl_username="plain", sasl_password=password)

    def oidc(self, user: str, secret: str) -> Way:
        """librdkafka fetches the token."""
        return self._at(
            "SASL",
            "SASL_SSL",
            sasl_mechanism="OAUTHBEARER",
            sasl_oauthbearer_method="oidc",
            sasl_oauthbearer_client_id=user,
            sasl_oauthbearer_client_secret=secret,
            sasl_oauthbearer_token_endpoint_url=f"{self.identities.url}/token",
        )

    def oauth_callback(self, path: str) -> Way:
        """A function of the user's has the token: `module:function`."""
        address, settings = self._at("SASL", "SASL_SSL", sasl_mechanism="OAUTHBEARER")
        return address, {**settings, "oauth_cb": path}

    # --- the administrator --------------------------------------------------------------------------------------------

    def __enter__(self) -> SecureBroker:
        self.open()
        return self

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap})
        return self._admin

    def add_user(self, name: str, password: str) -> None:
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4_096)
        change = UserScramCredentialUpsertion(name, info, password.encode())
        self.admin.alter_user_scram_credentials([change])[name].result(ANSWER_S)

    def allow(self, user: str, acls: Iterable[Any]) -> None:
        """Exactly these, whatever the user had before. acls: of streamtask.kafka.acls."""
        self.forbid_all(user)
        bindings = [_binding(user, acl) for acl in acls]
        for future in self.admin.create_acls(bindings).values():
            future.result(ANSWER_S)
        self._until_known(user, bindings)

    def allow_everything(self, user: str) -> None:
        kinds = (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID, ResourceType.BROKER)
        everything = [
            AclBinding(
                kind,
                "kafka-cluster" if kind is ResourceType.BROKER else "*",
                ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                AclOperation.ALL,
                AclPermissionType.ALLOW,
            )
            for kind in kinds
        ]
        for future in self.admin.create_acls(everything).values():
            future.result(ANSWER_S)
        self._until_known(user, everything)

    def forbid_all(self, user: str) -> None:
        self.admin.delete_acls([_everything(user)])[_everything(user)].result(ANSWER_S)
        self._until_known(user, ())

    def _until_known(self, user: str, wanted: Sequence[AclBinding]) -> None:
        """The controller answers before the broker's authorizer has heard of it."""
        deadline = time.monotonic() + ANSWER_S
        while set(self.admin.describe_acls(_everything(user)).result(ANSWER_S)) != set(wanted):
            assert time.monotonic() < deadline, f"the ACLs of {user} do not come into force"


def _everything(user: str) -> AclBindingFilter:
    return AclBindingFilter(
        ResourceType.ANY,
        None,  # type: ignore[arg-type]  # any name; confluent-kafka documents None and does not annotate it
        ResourcePatternType.ANY,
        f"User:{user}",
        None,  # type: ignore[arg-type]  # any host, likewise
        AclOperation.ANY,
        AclPermissionType.ANY,
    )


def _binding(user: str, acl: Any) -> AclBinding:
    return AclBinding(
        ResourceType[acl.resource.value],
        acl.name,
        ResourcePatternType.PREFIXED if acl.prefixed else ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[acl.operation.value],
        AclPermissionType.ALLOW,
    )
