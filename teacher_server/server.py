"""Puts the server together, the only place that chooses implementations: start, ready, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from teacherfarm.label_store.label_store import LabelStore
from teacherfarm.label_store.memory_store import MemoryStore
from teacherfarm.label_store.read_through import ReadThrough
from teacherfarm.label_store.store_upkeep import WITHOUT_REDIS
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.backends.backend import Backend, BackendPool
from teacherfarm.teacher_server.backends.onnx_backend import OnnxBackend
from teacherfarm.teacher_server.backends.triton_addresses import parse_addresses
from teacherfarm.teacher_server.credit import CreditPool
from teacherfarm.teacher_server.farm.farm import BatchSettings, Farm
from teacherfarm.teacher_server.farm.model_directory import ExportedTeacher, read_model_directory
from teacherfarm.teacher_server.frontends.conversation import Conversation, Send
from teacherfarm.teacher_server.frontends.curve import ServerCurve
from teacherfarm.teacher_server.frontends.grpc_frontend import GrpcFrontend
from teacherfarm.teacher_server.frontends.status_frontend import StatusFrontend
from teacherfarm.teacher_server.frontends.tls import ServerTls
from teacherfarm.teacher_server.frontends.zmq_frontend import ZmqFrontend
from teacherfarm.teacher_server.gateway import Gateway
from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.projects.projects_file import BadProjectsFile, read_projects
from teacherfarm.teacher_server.projects.registry import Projects
from teacherfarm.teacher_server.samples.data_sets import DataSets
from teacherfarm.teacher_server.settings import ServerSettings

log = logging.getLogger(__name__)

DRAIN_POLL_S = 0.02
DAY_S = 86_400
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

MakeBackend = Callable[[ExportedTeacher, TeacherCard], Backend]


class Server:
    """One farm with its front-ends. ``make_backend`` replaces ONNX Runtime in tests and benchmarks."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        make_backend: MakeBackend | None = None,
        teachers: list[ExportedTeacher] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        found = read_model_directory(Path(settings.models)) if teachers is None else teachers
        self.farm = Farm(
            found,
            make_backend or self._onnx_backend,
            metrics=self.metrics,
            batches=BatchSettings(preferred_batch=settings.preferred_batch, longest_wait_s=settings.max_wait_ms / 1000),
            pool=_triton_pool(settings) if settings.triton else None,
        )
        self.store = _label_store(settings)
        if self.store is not None:
            self.metrics.store.watch(self.store.stats)
        self.data_sets = _data_sets(settings)
        self.gateway = Gateway(
            self.farm,
            credit=CreditPool(budget_bytes=settings.memory_mb << 20, most_crops=settings.window),
            metrics=self.metrics,
            projects=Projects(
                read_projects(Path(settings.projects)) if settings.projects else None,
                most_sessions=settings.max_sessions,
            ),
            kept=self.store,
            data_sets=self.data_sets,
            payload_bytes=settings.payload_kib << 10,
        )
        largest_crop = max((t.card.crop_format.crop_bytes for t in found if t.card is not None), default=0)
        payload_bytes = max(settings.payload_kib << 10, largest_crop)
        self.frontends: list[GrpcFrontend | ZmqFrontend] = []
        if settings.grpc != "off":
            self.frontends.append(
                GrpcFrontend(
                    settings.grpc,
                    lambda send: self._converse("grpc", send),
                    payload_bytes=payload_bytes,
                    most_sessions=settings.max_sessions,
                    most_strangers=settings.max_strangers,
                    idle_session_s=settings.idle_session_s,
                    tls=_tls(settings),
                )
            )
        if settings.zmq != "off":
            self.frontends.append(
                ZmqFrontend(
                    settings.zmq,
                    lambda send: self._converse("zmq", send),
                    payload_bytes=payload_bytes,
                    most_sessions=settings.max_sessions,
                    most_strangers=settings.max_strangers,
                    idle_session_s=settings.idle_session_s,
                    curve=_curve(settings),
                )
            )
        self.status: StatusFrontend | None = None
        if settings.http != "off":
            self.status = StatusFrontend(
                settings.http,
                metrics=self.metrics,
                teachers=self.gateway.teachers,
                readiness=self._missing,
                addresses=self.addresses,
                endpoints=self.farm.endpoints,
                store=self.store.stats if self.store is not None else tuple,
            )

    def __repr__(self) -> str:
        return f"<Server {self.gateway!r} {' '.join(self.addresses())}>"

    def addresses(self) -> list[str]:
        """What students may be given, and the status page."""
        found = [frontend.url for frontend in self.frontends]
        return found + ([f"http://{self.status.address}"] if self.status else [])

    async def start(self) -> None:
        """Open the front-ends (students are told NotReady meanwhile), then load and check the teachers."""
        if self.status is not None:
            self.status.start()
        if self.store is not None:
            await self.store.start()
        for frontend in self.frontends:
            await frontend.start()
        await self.farm.start()
        await self.data_sets.start()

    def reload(self) -> None:
        """Read projects, certificates and the allow-list again; a file that cannot be used changes nothing."""
        files = [self.settings.projects, self.settings.tls_cert, self.settings.curve_clients]
        if not any(files):
            log.warning("SIGHUP: there are no --projects, --tls-cert or --curve-clients to read again")
        for frontend in self.frontends:
            try:
                frontend.reload()
            except ValueError as error:
                log.error("%s stays as it was: %s", frontend.url, error)
        if self.settings.projects:
            self.reload_projects()

    def reload_projects(self) -> None:
        """Read the projects file again, for open sessions, too; a file that cannot be used changes nothing."""
        try:
            entries = read_projects(Path(self.settings.projects))
        except BadProjectsFile as error:
            log.error("the projects stay as they were: %s", error)
            self.metrics.projects_current.set(0)
            return
        self.gateway.update_projects(entries)
        for frontend in self.frontends:
            frontend.check_stay()
        self.metrics.projects_current.set(1)
        log.info("read %d project(s) from %s", len(entries), self.settings.projects)

    async def drain(self) -> None:
        """Refuse what is new, tell the students, and answer what was accepted, for at most ``drain_s``."""
        self.gateway.draining = True
        for frontend in self.frontends:
            frontend.go_away()
        try:
            async with asyncio.timeout(self.settings.drain_s):
                while self.gateway.admitted_crops:
                    await asyncio.sleep(DRAIN_POLL_S)
            # The last answers wait for neighbours before they leave.
            await asyncio.sleep(DRAIN_POLL_S)
        except TimeoutError:
            log.warning("%d crops were not answered within drain_s", self.gateway.admitted_crops)

    async def stop(self) -> None:
        """Close everything; safe after a failed start."""
        for frontend in self.frontends:
            await frontend.close()
        await self.farm.close()
        self.data_sets.close()
        if self.store is not None:
            await self.store.close()
        if self.status is not None:
            self.status.close()

    async def run_until_signalled(self, on_ready: Callable[[Server], None]) -> None:
        """Start, call ``on_ready`` once every teacher was tried, serve until SIGTERM or SIGINT, drain, stop."""
        stopping, loop = asyncio.Event(), asyncio.get_running_loop()

        def stop_soon() -> None:
            stopping.set()
            # A second signal ends the process at once, whatever hangs.
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, stop_soon)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        starting = asyncio.create_task(self.start())
        signalled = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({starting, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                # What is there now stays: looking through it for garbage took a tenth of the event loop's time.
                gc.collect()
                gc.freeze()
                on_ready(self)
                await signalled
            # Teachers that were ready while others still loaded may have accepted crops, too.
            await self.drain()
        finally:
            signalled.cancel()
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self.stop()

    def _onnx_backend(self, teacher: ExportedTeacher, card: TeacherCard) -> Backend:
        providers = [name.strip() for name in self.settings.providers.split(",") if name.strip()]
        return OnnxBackend(
            card,
            teacher.model_file,
            threads=self.settings.threads or None,
            largest_batch=self.settings.max_batch or None,
            providers=providers or None,
        )

    def _converse(self, wire: str, send: Send) -> Conversation:
        return Conversation(self.gateway, self.metrics, wire=wire, send=send)

    def _missing(self) -> str | None:
        if self.gateway.draining:
            return "draining"
        missing = self.farm.missing()
        return f"not ready: {missing}" if missing else None


def _triton_pool(settings: ServerSettings) -> BackendPool:
    # Triton's client is loaded only where there is a Triton.
    from teacherfarm.teacher_server.backends.triton_pool import TritonPool

    return TritonPool(
        parse_addresses(settings.triton),
        largest_batch=settings.max_batch or None,
        deadline_s=settings.triton_deadline_s,
    )


def _data_sets(settings: ServerSettings) -> DataSets:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return DataSets(
        settings.datasets(),
        cache=Path(settings.dataset_cache or os.path.join(caches, "teacherfarm", "indexes")),
        threads=settings.cut_threads or len(os.sched_getaffinity(0)),
    )


def _label_store(settings: ServerSettings) -> LabelStore | None:
    kind, _, place = settings.store.partition(":")
    if kind == "off":
        return None
    memory, most_age_s = MemoryStore(settings.store_memory_mb << 20), settings.store_max_days * DAY_S
    if kind == "memory":
        return memory
    # Their libraries are loaded only where they are wanted: Redis's is an extra of its own.
    if kind == "lmdb":
        from teacherfarm.label_store.lmdb_store import LmdbStore

        return ReadThrough(memory, LmdbStore(place, most_bytes=int(settings.store_max_gb * 1e9), most_age_s=most_age_s))
    try:
        from teacherfarm.label_store.redis_store import RedisStore
    except ModuleNotFoundError as error:
        raise ValueError(f"--store {kind}:// {WITHOUT_REDIS}") from error
    return ReadThrough(memory, RedisStore(settings.store, most_age_s=most_age_s, timeout_s=settings.store_timeout_s))


def _tls(settings: ServerSettings) -> ServerTls | None:
    if not settings.tls_cert:
        return None
    return ServerTls(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)


def _curve(settings: ServerSettings) -> ServerCurve | None:
    return ServerCurve(key_file=settings.curve_key, clients=settings.curve_clients) if settings.curve_key else None
