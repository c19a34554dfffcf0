"""An authority of the test's own, and the files that a TLS server and its clients are given."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

KEY_PASSWORD = "of the key"


@dataclass(frozen=True)
class Certificates:
    """Files (PEM). server: for 127.0.0.1; client: key and certificate in one; client_key: encrypted with KEY_PASSWORD."""

    ca: Path
    other_ca: Path
    server: Path
    server_key: Path
    elsewhere: Path  # key and certificate of a server of another name
    client: Path
    client_certificate: Path
    client_key: Path

    def serving(self, *, elsewhere: bool = False, asks_for_one: bool = False) -> ssl.SSLContext:
        """What a server uses. asks_for_one: it lets in only whom the authority has given a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if elsewhere:
            context.load_cert_chain(self.elsewhere)
        else:
            context.load_cert_chain(self.server, self.server_key)
        if asks_for_one:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make(directory: Path) -> Certificates:
    """They are valid for a few days."""
    ca, other = trustme.CA(), trustme.CA()
    one = Certificates(
        *(directory / name for name in ("ca", "other-ca", "server", "server-key", "elsewhere")),
        *(directory / name for name in ("client", "client-certificate", "client-key")),
    )
    ca.cert_pem.write_to_path(one.ca)
    other.cert_pem.write_to_path(one.other_ca)
    server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("worker@streamtask.test")
    server.cert_chain_pems[0].write_to_path(one.server)
    server.private_key_pem.write_to_path(one.server_key)
    ca.issue_cert("registry.streamtask.test").private_key_and_cert_chain_pem.write_to_path(one.elsewhere)
    client.private_key_and_cert_chain_pem.write_to_path(one.client)
    client.cert_chain_pems[0].write_to_path(one.client_certificate)
    key = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(KEY_PASSWORD.encode()),
    )
    one.client_key.write_bytes(encrypted)
    return one
