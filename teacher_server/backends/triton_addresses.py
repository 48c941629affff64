"""Which Triton endpoints there are, and when a lost one is tried again. Pure: names are resolved elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DNS = "dns://"
MISSED_ANSWERS = 2
"""An endpoint is given up once so many answers in a row lack it: some name servers give only part of a long list."""
FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 2.0


@dataclass(frozen=True)
class DnsName:
    """A name that stands for as many endpoints as it has addresses at the moment."""

    name: str
    port: int


def parse_addresses(text: str) -> tuple[str | DnsName, ...]:
    """The endpoints of ``HOST:PORT,...`` and ``dns://NAME:PORT``, each once. Raises ValueError naming what is wrong."""
    found: list[str | DnsName] = []
    for item in (part.strip() for part in text.split(",")):
        host, _, port = item.removeprefix(DNS).rpartition(":")
        if not host or "/" in host or not (port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(
                f"a Triton endpoint is HOST:PORT (its gRPC port, by default 8001) or dns://NAME:PORT, got {item!r}"
            )
        found.append(DnsName(host, int(port)) if item.startswith(DNS) else f"{host}:{port}")
    return tuple(dict.fromkeys(found))


def back_off_s(failures: int) -> float:
    """How long to leave an endpoint alone after so many failures in a row."""
    return float(min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2.0 ** min(failures - 1, 16)))


class AddressBook:
    """The endpoints that are wanted, from what each name answered. A name that cannot be resolved changes nothing."""

    def __init__(self, sources: Iterable[str | DnsName]) -> None:
        self._listed = tuple(source for source in sources if isinstance(source, str))
        self._missed: dict[DnsName, dict[str, int]] = {s: {} for s in sources if isinstance(s, DnsName)}

    @property
    def names(self) -> tuple[DnsName, ...]:
        """What must be resolved again and again."""
        return tuple(self._missed)

    @property
    def wanted(self) -> frozenset[str]:
        """Every endpoint, as HOST:PORT."""
        return frozenset(self._listed).union(*self._missed.values())

    def answered(self, name: DnsName, addresses: Iterable[str]) -> None:
        """A name resolved to these addresses."""
        port = name.port
        now = {f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses}
        missed = self._missed[name]
        for endpoint in now:
            missed[endpoint] = 0
        for endpoint in missed.keys() - now:
            missed[endpoint] += 1
            if missed[endpoint] >= MISSED_ANSWERS:
                del missed[endpoint]
