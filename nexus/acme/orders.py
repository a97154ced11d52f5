"""One certificate from one certificate authority: account, order, challenge, key, chain. Everything here blocks.

Strategy: the library ``acme`` speaks the protocol; this module decides what it does not: a nonce that the CA refuses
is replaced more than once, an answer's ``Retry-After`` is remembered, ``tls-alpn-01`` is known, an order says which
certificate it replaces (RFC 9773 section 5, which frees renewals from rate limits), and every failure becomes one
``AcmeError``. The library and its HTTP client are loaded here alone, at the first call: a node with files of its own
does without them.

Sources: RFC 8555; RFC 8737; RFC 9773.
"""

from __future__ import annotations

import base64
import datetime
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from josepy.b64 import b64encode
from josepy.errors import Error as JoseError
from josepy.interfaces import JSONDeSerializable
from josepy.json_util import field as json_field
from josepy.jwa import ES256, ES384, ES512, RS256, JWASignature
from josepy.jwk import JWK, JWKEC, JWKRSA

from nexus.acme.explain import CaProblem, explain, tidy
from nexus.acme.settings import AcmeSettings, ExternalAccount
from nexus.acme.store import AccountKey, key_to_pem, read_account_secret
from nexus.errors import AcmeError

REQUEST_TIMEOUT_S: Final = 30
AUTHORIZATION_TIMEOUT_S: Final = 90.0
ISSUANCE_TIMEOUT_S: Final = 180.0
NONCE_TRIES: Final = 20  # ours: a CA that refuses half of its nonces is served in 999,999 cases of a million
_POLL_S: Final = 1.0
_ALREADY_REPLACED: Final = "alreadyReplaced"  # RFC 9773 7.4

Publish = Callable[[str, str], None]
"""Takes a token and its key authorization; returns once every node that may be asked can answer it."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A private key, and its certificate followed by the chain (PEM)."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes


@dataclass(frozen=True, slots=True)
class RenewalAdvice:
    """When the CA suggests to renew, None where it suggests nothing, and when to ask again; unix seconds."""

    renew_at: float | None
    ask_at: float


class _Order(messages.NewOrder):
    """An order that says which certificate it replaces."""

    replaces: str | None = json_field("replaces", omitempty=True)


class _Adapter(requests.adapters.HTTPAdapter):
    """Checks the CA's server as every other server is checked here.

    From Python 3.13 on ``urllib3`` asks for ``VERIFY_X509_STRICT``, which refuses what others take, such as a CA that
    was made by ``openssl req -x509`` and has no key usage.
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        kwargs["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return super().proxy_manager_for(proxy, **kwargs)


class _Network(client.ClientNetwork):
    """The library's HTTP, with more patience for nonces, and with a memory for what the last refusal asked to wait."""

    retry_after_s: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.session.mount("https://", _Adapter())

    def _send_request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        response: requests.Response = super()._send_request(method, url, *args, **kwargs)
        if not response.ok:
            self.retry_after_s = _retry_after_s(response)
        return response

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        for _ in range(NONCE_TRIES):
            try:
                response: requests.Response = self._post_once(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
                refusal = error
                self._nonces.clear()
            else:
                return response
        raise refusal


class Authority:
    """One conversation with a certificate authority, on behalf of one account."""

    def __init__(self, settings: AcmeSettings, account_key: AccountKey, user_agent: str) -> None:
        """Read the directory.

        Raises:
            AcmeError: the CA cannot be asked, or its directory is none.
        """
        key, algorithm = _jwk(account_key)
        self._settings = settings
        self._key = key
        self._network = _Network(key, alg=algorithm, user_agent=user_agent, timeout=REQUEST_TIMEOUT_S)
        self._network.verify_ssl = _roots(settings.ca_file)  # type: ignore[assignment]  # what ``requests`` takes
        with self._explained():
            directory = client.ClientV2.get_directory(settings.directory_url, self._network)
        self._client = client.ClientV2(directory, self._network)

    def obtain(self, challenge: str, publish: Publish, replaced: bytes | None = None) -> Issued:
        """Return a new certificate, proven by ``challenge``; ``replaced`` is the one (PEM) that it takes the place of.

        Raises:
            AcmeError: there is none, and why.
        """
        with self._explained():
            self._enter()
        key = _new_key(self._settings.key_type)
        key_pem = key_to_pem(key)
        csr = crypto_util.make_csr(key_pem, [self._settings.hostname])
        with self._explained(challenge):
            order = self._order(csr, _certificate_id(replaced) if replaced else None)
            for authorization in order.authorizations:
                if authorization.body.status != messages.STATUS_VALID:
                    self._prove(authorization, challenge, publish)
            order = self._client.poll_authorizations(order, _deadline(AUTHORIZATION_TIMEOUT_S))
        with self._explained():
            issued = self._client.finalize_order(order, _deadline(ISSUANCE_TIMEOUT_S))
        return Issued(key_pem, issued.fullchain_pem.encode())

    def advise(self, certificate_pem: bytes) -> RenewalAdvice:
        """Return when the CA suggests to renew a certificate (RFC 9773).

        Raises:
            AcmeError: it cannot be asked.
        """
        with self._explained():
            renew_at, ask_at = self._client.renewal_time(certificate_pem)
        return RenewalAdvice(renew_at.timestamp() if renew_at else None, ask_at.timestamp())

    # -- Account ----------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Find this key's account, or make it."""
        settings, directory = self._settings, self._client.directory
        binding = None
        if settings.external_account is not None:
            binding = _binding(settings.external_account, self._key, directory)
        elif self._client.external_account_required():
            raise AcmeError(explain(CaProblem("externalAccountRequired"), settings.hostname))
        wanted = messages.NewRegistration.from_data(
            email=settings.email or None, terms_of_service_agreed=True, external_account_binding=binding
        )
        try:
            self._client.new_account(wanted)
        except errors.ConflictError as known:
            account = messages.RegistrationResource(body=wanted, uri=known.location)
            self._network.account = account
            if settings.email and wanted.contact != self._client.query_registration(account).body.contact:
                self._client.update_registration(account, messages.Registration(contact=wanted.contact))

    # -- Order ------------------------------------------------------------------------------------------------------

    def _order(self, csr_pem: bytes, replaces: str | None) -> messages.OrderResource:
        """Place an order; a CA without renewal information is not told what it replaces."""
        directory = self._client.directory
        order = _Order(
            identifiers=[messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=self._settings.hostname)],
            profile=self._settings.profile or None,
            replaces=replaces if "renewalInfo" in directory.to_partial_json() else None,
        )
        try:
            response = self._post(directory["newOrder"], order)
        except messages.Error as error:
            if order.replaces is None or not str(error.typ).endswith((_ALREADY_REPLACED, "malformed")):
                raise
            response = self._post(directory["newOrder"], order.update(replaces=None))
        body = messages.Order.from_json(response.json())
        found = [
            messages.AuthorizationResource(body=messages.Authorization.from_json(self._post(url, None).json()), uri=url)
            for url in body.authorizations
        ]
        return messages.OrderResource(
            body=body, uri=response.headers["Location"], authorizations=found, csr_pem=csr_pem
        )

    def _prove(self, authorization: messages.AuthorizationResource, challenge: str, publish: Publish) -> None:
        """Make the answer known, then ask the CA to look."""
        offered = {str(_raw(body).get("type")): body for body in authorization.body.challenges}
        if challenge not in offered:
            what = f"the CA offers {', '.join(offered) or 'no challenge'}, not {challenge}"
            raise AcmeError(f"{what}; set acmeChallenges, or the ports that another challenge needs")
        body = offered[challenge]
        token = str(_raw(body)["token"])
        thumbprint = b64encode(self._key.thumbprint()).decode()
        publish(token, f"{token}.{thumbprint}")
        # What is sent is the empty object, whatever the challenge (RFC 8555 7.5.1).
        self._client.answer_challenge(body, challenges.HTTP01Response(key_authorization=f"{token}.{thumbprint}"))

    def _post(self, url: str, document: JSONDeSerializable | None) -> requests.Response:
        return self._network.post(url, document, new_nonce_url=self._client.directory["newNonce"])

    # -- Failures ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _explained(self, challenge: str = "") -> Iterator[None]:
        """Turn what the library raises into an ``AcmeError``; ``challenge``: the CA may be looking at this node."""
        settings = self._settings
        self._network.retry_after_s = None
        port = settings.local_port(challenge)
        try:
            yield
        except errors.ValidationError as error:
            problem = _first_problem(error.failed_authzrs)
            raise AcmeError(explain(problem, settings.hostname, challenge, port)) from None
        except errors.IssuanceError as error:
            raise AcmeError(explain(_problem(error.error), settings.hostname, challenge, port)) from None
        except messages.Error as error:
            words = explain(_problem(error), settings.hostname)
            raise AcmeError(words, retry_after_s=self._network.retry_after_s) from None
        except errors.TimeoutError:
            raise AcmeError("the CA did not come to a decision in time; nothing to do, it is tried again") from None
        except requests.exceptions.SSLError as error:
            what = f"{settings.directory_url}: the CA's own certificate is not trusted: {_cause(error)}"
            raise AcmeError(f"{what}; set acmeCAFile to its root", reached=False) from None
        except (requests.exceptions.RequestException, OSError) as error:
            what = f"{settings.directory_url}: the CA cannot be reached: {_cause(error)}"
            raise AcmeError(f"{what}; check the URL, and that this machine may connect there", reached=False) from None
        except (errors.Error, JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{settings.directory_url}: no answer of an ACME server: {_cause(error)}"
            raise AcmeError(f"{what}; check acmeDirectoryURL", retry_after_s=self._network.retry_after_s) from None


def _raw(body: messages.ChallengeBody) -> dict[str, Any]:
    """Return a challenge as the CA wrote it: the library does not know every kind."""
    found: dict[str, Any] = body.to_json()
    return found


def _problem(error: messages.Error | None) -> CaProblem:
    if error is None:
        return CaProblem("")
    inner = error.subproblems[0] if error.subproblems else error
    return CaProblem(str(error.typ).rsplit(":", 1)[-1], str(inner.detail or error.detail or ""))


def _first_problem(authorizations: list[messages.AuthorizationResource]) -> CaProblem:
    for authorization in authorizations:
        for body in authorization.body.challenges:
            if body.error is not None:
                return _problem(body.error)
    return CaProblem("")


def _cause(error: BaseException) -> str:
    """Return the innermost words: those of ``requests`` hold the library's objects and all of a URL."""
    inner = error
    while inner.__cause__ is not None or inner.__context__ is not None or getattr(inner, "reason", None):
        following = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        if not isinstance(following, BaseException):
            break
        inner = following
    return tidy(
        getattr(inner, "verify_message", "") or getattr(inner, "strerror", "") or str(inner) or type(inner).__name__
    )


def _retry_after_s(response: requests.Response) -> float | None:
    """Return what ``Retry-After`` asks for: seconds, or a date (RFC 9110 10.2.3)."""
    if "Retry-After" not in response.headers:
        return None
    when: datetime.datetime = client.ClientV2.retry_after(response, 0)
    return max(when.timestamp() - time.time(), 0.0)


def _deadline(timeout_s: float) -> datetime.datetime:
    return datetime.datetime.now() + datetime.timedelta(seconds=timeout_s)  # noqa: DTZ005 — as the library compares it


def _jwk(key: AccountKey) -> tuple[JWK, JWASignature]:
    if isinstance(key, rsa.RSAPrivateKey):
        return JWKRSA(key=key), RS256
    algorithms = {"secp256r1": ES256, "secp384r1": ES384, "secp521r1": ES512}
    return JWKEC(key=key), algorithms.get(key.curve.name, ES256)


def _new_key(key_type: str) -> AccountKey:
    kind, _, size = key_type.partition("-")
    if kind == "rsa":
        return rsa.generate_private_key(65_537, int(size))
    return ec.generate_private_key(ec.SECP384R1() if size == "p384" else ec.SECP256R1())


def _roots(ca_file: Path | None) -> str | bool:
    """Return the roots that the CA's own certificate must lead to: the system's, where the system has any."""
    if ca_file is not None:
        return str(ca_file)
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def _binding(account: ExternalAccount, key: JWK, directory: messages.Directory) -> dict[str, Any]:
    secret = read_account_secret(account.key_file)
    bound: dict[str, Any] = messages.ExternalAccountBinding.from_data(
        key.public_key(), account.key_id, secret, directory
    )
    return bound


def _certificate_id(pem: bytes) -> str | None:
    """Return how RFC 9773 4.1 names a certificate: key identifier of its issuer, and serial number; None without."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    if issuer is None:
        return None
    serial = certificate.serial_number.to_bytes(certificate.serial_number.bit_length() // 8 + 1, "big")
    return f"{_base64url(issuer)}.{_base64url(serial)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
