import ssl
from urllib.error import URLError

import certifi
import pytest

from codeq.common import downloading
from codeq.common.downloading import CHOICES, download
from codeq.common.errors import CodeqError
from codeq.data.downloads import fetch
from codeq.models.weights import loading_weights

URL = "https://files.example/net-0123456789.pth"
# Valid for a hundred years, its key deleted: openssl req -x509 -subj "/CN=proxy of the tests" -days 36500 …
OWN = """\
-----BEGIN CERTIFICATE-----
MIIBkjCCATegAwIBAgIULudPbnCSrL7Oz7l0utx8ltSFloowCgYIKoZIzj0EAwIw
HTEbMBkGA1UEAwwScHJveHkgb2YgdGhlIHRlc3RzMCAXDTI2MTEyOTA4NDUyM1oY
DzIxMjYxMTA1MDg0NTIzWjAdMRswGQYDVQQDDBJwcm94eSBvZiB0aGUgdGVzdHMw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAT4TMAVEssQtcXXWXcB7F38EzXKsLep
ePo+AF/KzHwhZDzFzk6fi/snCe7eFlTYd785fl5ZIZmQC50B70XHVBNDo1MwUTAd
BgNVHQ4EFgQU9K7Z29UVJJ1PwxxEp053Y0NCNlwwHwYDVR0jBBgwFoAU9K7Z29UV
JJ1PwxxEp053Y0NCNlwwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBG
AiEAje10xScR4Hle8taHb+MnK0mMQLYNWh14PZEe3QHGJtkCIQDS1RwTRUsTbhmG
k5vuTc85rBO2U7uQaZpwAdCVDpW7LQ==
-----END CERTIFICATE-----
"""


@pytest.fixture
def contexts(monkeypatch):
    """Contexts of all downloads of a Python without certificates, as a Mac has it at first; none succeeds."""
    found = []

    def refuse(url, timeout, context=None):
        found.append(context or ssl.create_default_context())
        raise URLError(refusal())

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)
    monkeypatch.setattr(downloading, "urlopen", refuse)
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    return found


def refusal() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_message = "unable to get local issuer certificate"
    return error


def trusted_by(**kwargs) -> int:
    return len(ssl.create_default_context(**kwargs).get_ca_certs())


def test_without_certificates_of_the_system_those_of_certifi_are_trusted(contexts, tmp_path):
    with pytest.raises(OSError, match=r"not trusted: unable to get local issuer certificate\. If a proxy"):
        download(URL, tmp_path / "new" / "net.pth", "sha256", "")
    (context,) = contexts
    assert len(context.get_ca_certs()) == trusted_by(cafile=certifi.where()) > 100
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_certificates_chosen_by_the_user_are_the_only_ones(contexts, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "proxy.pem"))
    with pytest.raises(OSError, match=r"; SSL_CERT_FILE is .*proxy\.pem\. If a proxy"):
        download(URL, tmp_path / "net.pth", "sha256", "")
    assert not contexts[0].get_ca_certs()


def test_certificates_of_the_system_stay_trusted(monkeypatch):
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda self, _: self.load_verify_locations(cadata=OWN))
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    subjects = [dict(part[0] for part in cert["subject"]) for cert in downloading._trusted().get_ca_certs()]
    assert {"commonName": "proxy of the tests"} in subjects
    assert len(subjects) > 100


def test_data_sets_and_weights_name_the_problem_once(contexts, tmp_path):
    with pytest.raises(CodeqError) as error:
        fetch("mnist", tmp_path / "data" / "a.gz", [URL, f"{URL}.mirror"], "0" * 32)
    assert str(error.value).count("the certificate of the server is not trusted") == 1
    assert not (tmp_path / "data").exists()
    with pytest.raises(CodeqError, match=r"cannot be downloaded \(the certificate of the server is not trusted"):
        loading_weights(URL, tmp_path / "net.pth").__enter__()
    assert not list(tmp_path.iterdir())
    assert len(contexts) == 3
