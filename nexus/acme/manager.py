"""The hub's certificate by ACME: in service from the cache, obtained where there is none, renewed in time.

Strategy: the file in the cache is the certificate, followed like one of the operator's (``ReloadingCertificate``);
obtaining one ends with writing that file. So a restart with a warm cache asks nobody, an imported pair is taken up, and
a crash leaves the old pair or the new. One loop looks at the clock; what it decides is in ``schedule``. Nothing here
holds up the node: without a certificate the hub's handshakes fail, and health says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nexus import __version__
from nexus.acme.challenges import Challenges
from nexus.acme.schedule import RETRY_AFTER_MAX_S, renewal_time, retry_delay_s
from nexus.acme.settings import AcmeSettings
from nexus.acme.store import State, Store
from nexus.errors import AcmeError, TlsFileError
from nexus.files import FileSignature, file_signature
from nexus.threads import in_thread
from nexus.tls.certificates import Certificate, CertificateFiles, date_text
from nexus.tls.contexts import ReloadingCertificate, hub_server_context

if TYPE_CHECKING:
    from nexus.acme.orders import Authority

_log = logging.getLogger("nexus.acme")

# Ours. Peers are told of a token within a tenth of a second, and a CA takes longer to ask.
SHARE_S: Final = 1.0
_PUBLISH_TIMEOUT_S: Final = 30.0
_ADVICE_LATER_S: Final = 6 * 3600.0  # RFC 9773 4.3.3
ADVICE_MIN_S: Final = 60.0  # RFC 9773 4.3.2: a shorter Retry-After may be raised to a minute
USER_AGENT: Final = f"nexus-proxy/{__version__}"


class AcmeCertificate:
    """A ``nexus.tls.contexts.CertificateSource`` that looks after itself; use it in one event loop."""

    def __init__(
        self,
        settings: AcmeSettings,
        store: Store,
        challenges: Challenges,
        *,
        clock: Callable[[], float] = time.time,
        renews: bool = True,
    ) -> None:
        """Take up what the cache holds; unless it ``renews``, another process of the node fills it.

        Raises:
            ConfigError: the cache directory cannot be written to.
        """
        store.prepare()
        self.attempts: Counter[str] = Counter()
        self.challenges = challenges
        self.has_peers: Callable[[], bool] = lambda: False
        self.changed: Callable[[], None] = lambda: None  # another certificate is in service
        self._settings = settings
        self._store = store
        self._clock = clock
        self._random = random.Random()  # noqa: S311 — spreads load, guards nothing
        self._followed: ReloadingCertificate | None = None
        self._rejected: dict[Path, FileSignature] = {}
        self._bare = hub_server_context()
        self._state = store.state()
        if self._state.asked not in ("", settings.directory_url):
            self._state = replace(self._state, failures=0, error="", retry_at=0.0)
        self._ask_at = 0.0
        self._held = False  # the CA asked to wait
        self._renews = renews
        self._woken = asyncio.Event()
        self._take_up()

    # -- CertificateSource ------------------------------------------------------------------------------------------

    @property
    def certificate(self) -> Certificate | None:
        """The certificate in service, None while there is none."""
        return self._followed.certificate if self._followed is not None else None

    @property
    def context(self) -> ssl.SSLContext:
        """The hub's context; without a certificate its handshakes fail."""
        return self._followed.context if self._followed is not None else self._bare

    @property
    def renew_at(self) -> float | None:
        """When the certificate in service is to be renewed, in unix seconds."""
        return self._renew_at(self.certificate) if self.certificate is not None and self._renews else None

    def unready(self) -> tuple[str, ...]:
        """Return why the hub cannot serve; nothing where it can."""
        if self._followed is not None:
            return self._followed.unready()
        return (f"the hub waits for its certificate{f': {self._state.error}' if self._state.error else ''}",)

    def look(self) -> None:
        """Look at the cache at once; a failed attempt is made again, unless the CA asked to wait."""
        self._woken.set()

    async def watch(self, interval_s: float) -> None:
        """Obtain and renew until cancelled; the cache, and operators' wishes, are looked at every ``interval_s``."""
        if not self._renews:
            await self._follow(interval_s)
        self._tell()
        while True:
            before = self.certificate
            self._take_up()
            if self.certificate is not before:
                self.changed()
                if self._state.failures:  # somebody else mended it
                    self._remember(replace(self._state, renew_at=0.0, failures=0, error="", retry_at=0.0))
            now = self._clock()
            if self._is_time(now):
                await self._attempt()
            elif now >= self._ask_at:
                await self._ask_advice(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(interval_s, max(self._due_at(now) - self._clock(), 0.0))):
                    await self._woken.wait()

    async def _follow(self, interval_s: float) -> None:
        """Only look at the cache, until cancelled."""
        while True:
            self._woken.clear()
            self._state = self._store.state()  # which CA the pair is of
            self._take_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._woken.wait()

    # -- The cache --------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Serve what the cache holds; a pair that cannot be used counts as absent, and is told of once."""
        for path in self._store.pair_files():
            if self._followed is not None and self._followed.files.cert_file == path:
                self._followed.look()
                return
            signature = file_signature(path)
            if self._rejected.get(path) == signature:
                continue
            try:
                found = ReloadingCertificate(CertificateFiles(path, path), clock=self._clock)
            except TlsFileError as error:
                refusal = str(error)
            else:
                refusal = self._refusal(found.certificate)
            if not refusal:
                self._followed = found
                return
            self._rejected[path] = signature
            _log.warning("%s (it is not used)", refusal)

    def _refusal(self, certificate: Certificate) -> str:
        """Return why a pair of the cache is not for this hub, or not of the CA that is configured; "" where it is."""
        path, hostname = certificate.files.cert_file, self._settings.hostname
        if hostname not in certificate.names:
            return f"{path}: is for {', '.join(certificate.names) or 'nobody'}, not for {hostname}"
        if self._state.directory not in ("", self._settings.directory_url):
            return f"{path}: was issued by {self._state.directory}, not by the CA of acmeDirectoryURL"
        return f"{path}: has expired" if certificate.expires_at <= self._clock() else ""

    # -- Time -------------------------------------------------------------------------------------------------------

    def _is_time(self, now: float) -> bool:
        """Tell whether to make an attempt now: it is due, an operator wants it, or a failure may be mended."""
        retries = self._woken.is_set() and self._state.failures > 0 and not self._held
        self._woken.clear()
        return self._store.hear_wish() or retries or now >= self._due_at(now)

    def _due_at(self, now: float) -> float:
        """Return when the next attempt begins, in unix seconds."""
        certificate = self.certificate
        retry_at = min(self._state.retry_at, now + RETRY_AFTER_MAX_S)  # it may come from a clock that was wrong
        return max(now if certificate is None else self._renew_at(certificate), retry_at)

    def _renew_at(self, certificate: Certificate) -> float:
        """Return what was decided for this certificate; decide where nothing was."""
        if certificate.not_before < self._state.renew_at < certificate.expires_at:
            return self._state.renew_at
        planned = renewal_time(certificate.not_before, certificate.expires_at, self._random.random())
        self._remember(replace(self._state, renew_at=planned))
        return planned

    def _tell(self) -> None:
        """Say at the start what an operator would look for."""
        now, state = self._clock(), self._state
        if self.certificate is None and state.retry_at > now:
            _log.warning(
                "%s: no certificate yet: %s (tried again in %d s, or at once by `nexus cert renew`)",
                self._settings.hostname, state.error, state.retry_at - now,
            )  # fmt: skip

    # -- Attempts ---------------------------------------------------------------------------------------------------

    async def _attempt(self) -> None:
        settings, state = self._settings, self._state
        challenge = settings.challenge_for(state.failures)
        loop = asyncio.get_running_loop()

        def publish(token: str, key_authorization: str) -> None:
            published = asyncio.run_coroutine_threadsafe(self._publish(token, key_authorization), loop)
            try:
                published.result(_PUBLISH_TIMEOUT_S)
            except TimeoutError:
                raise AcmeError("this node is too busy to answer the CA; it is tried again", reached=False) from None

        replaced = self.certificate.pem if self.certificate is not None else None
        _log.info("%s: asking %s for a certificate by %s", settings.hostname, settings.directory_url, challenge)
        try:
            issued = await in_thread("nexus-acme", lambda: self._authority().obtain(challenge, publish, replaced))
            self._store.save_pair(issued.key_pem, issued.chain_pem)
        except AcmeError as error:
            self._failed(error)
        except OSError as error:
            what = f"{self._store.directory}: cannot be written to: {error.strerror}; check its owner and the disk"
            self._failed(AcmeError(what))
        except Exception as error:  # noqa: BLE001 — whatever it is, the node must go on
            _log.exception("%s: a fault in the conversation with the CA", settings.hostname)
            self._failed(AcmeError(f"a fault of this program ({type(error).__name__}); report it with the log"))
        else:
            self.attempts["issued"] += 1
            self._ask_at, self._held = 0.0, False
            self._remember(State(directory=settings.directory_url, asked=settings.directory_url))
            self._take_up()
            self.changed()
            if (certificate := self.certificate) is not None:
                _log.info("%s: certificate valid until %s", settings.hostname, date_text(certificate.expires_at))
        finally:
            self.challenges.withdraw()

    async def _publish(self, token: str, key_authorization: str) -> None:
        self.challenges.publish(token, key_authorization)
        if self.has_peers():
            await asyncio.sleep(SHARE_S)

    def _failed(self, error: AcmeError) -> None:
        self.attempts["refused" if error.reached else "unreachable"] += 1
        failures = self._state.failures + 1
        delay_s = retry_delay_s(
            failures, self._random.random(), reached=error.reached, retry_after_s=error.retry_after_s
        )
        self._held = error.retry_after_s is not None
        _log.error("%s: no certificate: %s (tried again in %d s)", self._settings.hostname, error, delay_s)
        self._remember(
            replace(
                self._state,
                asked=self._settings.directory_url,
                failures=failures,
                error=str(error),
                retry_at=self._clock() + delay_s,
            )
        )

    async def _ask_advice(self, now: float) -> None:
        """Ask the CA when to renew; whatever fails, the lifetime tells."""
        certificate = self.certificate
        self._ask_at = now + _ADVICE_LATER_S
        if certificate is None or self._state.directory not in ("", self._settings.directory_url):
            return
        try:
            advice = await in_thread("nexus-acme", lambda: self._authority().advise(certificate.pem))
        except (AcmeError, OSError) as error:
            _log.debug("%s: no renewal information: %s", self._settings.hostname, error)
            return
        self._ask_at = max(advice.ask_at, now + ADVICE_MIN_S)
        if advice.renew_at is not None:
            planned = renewal_time(certificate.not_before, certificate.expires_at, 0.0, advice.renew_at)
            self._remember(replace(self._state, renew_at=planned))

    def _authority(self) -> Authority:
        from nexus.acme.orders import Authority  # noqa: PLC0415 — see there

        return Authority(self._settings, self._store.account_key(), USER_AGENT)

    def _remember(self, state: State) -> None:
        self._state = state
        try:
            self._store.save_state(state)
        except OSError as error:
            _log.warning("%s: cannot be written to: %s", self._store.directory, error.strerror)
