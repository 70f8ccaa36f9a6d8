"""A server may ask who is calling by a certificate, and we show ours."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from inbox.errors import ConfigError
from tests.destinations.calling import Called, client_of
from tests.helpers.scripted import CERTIFICATE, answer

CA = str(CERTIFICATE)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[str, str]:
    """The certificate and its key, each in a file of its own."""
    whole = CERTIFICATE.read_text()
    key = whole[whole.index("-----BEGIN PRIVATE KEY") : whole.index("-----END PRIVATE KEY") + 26]
    files = tmp_path / "client.pem", tmp_path / "client.key"
    files[0].write_text(whole.replace(key, ""))
    files[1].write_text(key)
    return str(files[0]), str(files[1])


def test_it_is_shown_to_a_server_that_asks_for_it(stack: ExitStack, parts: tuple[str, str]) -> None:
    certificate, key = parts
    for files in ({"cert_file": CA}, {"cert_file": certificate, "key_file": key}):
        call = Called(stack, answer(200, b"known"), tls="mutual", ca_file=CA, **files)
        assert call().body == b"known"


def test_without_it_such_a_server_gets_no_request(stack: ExitStack) -> None:
    call = Called(stack, answer(), tls="mutual", ca_file=CA)
    assert call().error_class in {"not_sent", "unknown"}, "TLS 1.3 tells a client of it after its request has left"
    assert call.server.seen == []


@pytest.mark.parametrize(
    ("files", "mistake"),
    [
        ({"cert_file": "/nowhere.pem"}, "can't use cert_file /nowhere.pem"),
        ({"key_file": CA}, "key_file needs a cert_file"),
        ({"cert_file": CA, "key_file": "/nowhere.key"}, "can't use cert_file"),
        ({"cert_file": "without its key"}, "can't use cert_file"),
    ],
)
def test_a_certificate_that_can_not_be_used_is_a_mistake(
    files: dict[str, str], mistake: str, parts: tuple[str, str]
) -> None:
    files = {name: parts[0] if file == "without its key" else file for name, file in files.items()}
    with pytest.raises(ConfigError, match=mistake):
        client_of("https://localhost", ca_file=CA, **files)
