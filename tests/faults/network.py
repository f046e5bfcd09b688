"""The networks a group of members may live on, and how they are cut: one interface, made of what is permitted here.

`Namespaces`: each member in a network namespace of its own, all joined by a router that eats what it is told to eat;
needs root. `Proxies`: all on loopback, with a proxy on each member's way to each other; needs nothing, and can also
delay and slow down. `Plain`: loopback as it is. What must not live here: members, scenarios.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable

from faults.proxy import Link, Proxy
from processes.harness import free_addresses

#: Sender and receiver.
Way = tuple[str, str]


class Network:
    """What all have in common: a set of ways that are cut."""

    kind = "plain"

    def __init__(self, names: str) -> None:
        self.names = names
        self.ways: list[Way] = list(itertools.permutations(names, 2))
        self.addresses: dict[str, str] = dict(zip(names, free_addresses(), strict=False))
        self._cut: set[Way] = set()

    # -- For members

    def bind(self, name: str) -> str:
        """Where `name` listens."""
        return self.addresses[name]

    def peers(self, name: str) -> dict[str, str]:
        """All members' addresses, as `name` has to dial them."""
        return self.addresses

    def prefix(self, name: str) -> list[str]:
        """What `name`'s process has to be started with."""
        return []

    # -- For scenarios

    def cut(self, ways: Iterable[Way]) -> None:
        """From now on exactly these ways are cut."""
        wanted = set(ways)
        self._change(sorted(wanted - self._cut), sorted(self._cut - wanted))
        self._cut = wanted

    def mend(self) -> None:
        self.cut(())

    def isolate(self, *names: str) -> None:
        """Nobody reaches these, nor do they reach anybody, each other included."""
        self.cut(way for way in self.ways if set(way) & set(names))

    def deafen(self, name: str) -> None:
        """`name` hears nobody."""
        self.cut(way for way in self.ways if way[1] == name)

    def mute(self, name: str) -> None:
        """Nobody hears `name`."""
        self.cut(way for way in self.ways if way[0] == name)

    def keep(self, *pairs: str) -> None:
        """Only these pairs, as "ab", reach each other."""
        kept = {frozenset(pair) for pair in pairs}
        self.cut(way for way in self.ways if frozenset(way) not in kept)

    def split(self, *sides: Iterable[str]) -> None:
        """Only members of one side reach each other."""
        self.keep(*("".join(pair) for side in sides for pair in itertools.combinations(side, 2)))

    def close(self) -> None:
        """Idempotent."""

    def _change(self, to_cut: list[Way], to_mend: list[Way]) -> None:
        raise NotImplementedError("a plain network cannot be cut")


class Plain(Network):
    """Loopback as it is."""

    def mend(self) -> None:
        """Never cut."""


class Proxies(Network):
    """Loopback, with a proxy on each way."""

    kind = "proxies"

    def __init__(self, names: str) -> None:
        super().__init__(names)
        self._links = {way: Link(_host_and_port(self.addresses[way[1]])) for way in self.ways}
        self._proxy: Proxy | None = Proxy(list(self._links.values()))

    def peers(self, name: str) -> dict[str, str]:
        return {
            other: self.addresses[other] if other == name else self._links[name, other].address for other in self.names
        }

    def weather(self, delay: tuple[float, float] = (0.0, 0.0), rate: float = 0.0) -> None:
        """Seconds each piece takes, and bytes in a second, on every way from now on."""
        for link in self._links.values():
            link.conditions.delay, link.conditions.rate = delay, rate
        self._changed()

    def reset(self, *ways: Way) -> None:
        """End all connections on these ways."""
        for way in ways:
            self._links[way].conditions.reset = True
        self._changed()

    def mend(self) -> None:
        super().mend()
        self.weather()

    def close(self) -> None:
        if self._proxy is not None:
            proxy, self._proxy = self._proxy, None
            proxy.close()

    def _change(self, to_cut: list[Way], to_mend: list[Way]) -> None:
        for way in to_cut:
            self._links[way].conditions.cut = True
        for way in to_mend:
            self._links[way].conditions.cut = False
        self._changed()

    def _changed(self) -> None:
        if self._proxy is not None:
            self._proxy.changed()


class Namespaces(Network):
    """Each member in a network namespace of its own, wired to a router in another one.

    A namespace lives as long as the process that holds it, and that ends with its input: nothing outlives the test.
    What is cut the router drops without a word, each way for itself.
    """

    kind = "namespaces"

    def __init__(self, names: str) -> None:
        super().__init__(names)
        self.addresses = {name: f"tcp://{self._host(name)}:7400" for name in names}
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for holder in ("router", *names):
                self._hold(holder)
            self._wire()
        except BaseException:
            self.close()
            raise

    def prefix(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._holders[name].pid}/ns/net"]

    def slow_down(self, rate: str) -> None:
        """As many bits in a second and no more on each member's wire; what does not fit is lost."""
        for name in self.names:
            discipline = f"qdisc replace dev to-{name} root tbf rate {rate} burst 16kb latency 100ms"
            self._run("router", ["tc", *discipline.split()])

    def mend(self) -> None:
        super().mend()
        for name in self.names:
            # There may be none.
            self._run("router", ["tc", "qdisc", "del", "dev", f"to-{name}", "root"], check=False)

    def close(self) -> None:
        holders, self._holders = self._holders, {}
        for holder in holders.values():
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.close()
            holder.stdout.close()
            holder.wait()

    def _host(self, name: str, side: int = 2) -> str:
        return f"10.77.{self.names.index(name) + 1}.{side}"

    def _hold(self, name: str) -> None:
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo up && exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._holders[name] = holder
        assert holder.stdout is not None
        if holder.stdout.readline() != b"up\n":
            raise PermissionError("network namespaces are not allowed here")

    def _wire(self) -> None:
        router = []
        for name in self.names:
            there = self._holders[name].pid
            router.append(f"link add to-{name} type veth peer name wire netns {there}")
            router.append(f"address add {self._host(name, 1)}/24 dev to-{name}")
            router.append(f"link set dev to-{name} up")
        self._batch("router", router)
        self._run("router", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        for name in self.names:
            up = [f"address add {self._host(name)}/24 dev wire", "link set dev wire up", "link set dev lo up"]
            self._batch(name, [*up, f"route add default via {self._host(name, 1)}"])

    def _change(self, to_cut: list[Way], to_mend: list[Way]) -> None:
        self._batch(
            "router",
            [f"rule add {self._rule(way)}" for way in to_cut] + [f"rule del {self._rule(way)}" for way in to_mend],
        )

    def _rule(self, way: Way) -> str:
        sender, receiver = way
        return f"pref {100 + self.ways.index(way)} iif to-{sender} to {self._host(receiver)} blackhole"

    def _batch(self, where: str, lines: list[str]) -> None:
        if lines:
            self._run(where, ["ip", "-batch", "-"], "\n".join(lines) + "\n")

    def _run(self, where: str, command: list[str], text: str = "", check: bool = True) -> None:
        entered = ["nsenter", f"--net=/proc/{self._holders[where].pid}/ns/net", *command]
        done = subprocess.run(entered, input=text, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise PermissionError(f"{' '.join(command)} in {where}: {done.stderr.strip()}")


def namespaces_allowed() -> bool:
    """Whether they can be made, wired and cut here."""
    if os.environ.get("COORD_FAULTS_NETWORK") == "proxies":
        return False
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter")):
        return False
    try:
        network = Namespaces("ab")
    except (OSError, PermissionError):
        return False
    try:
        network.isolate("a")
        network.cut(())
    except PermissionError:
        return False
    finally:
        network.close()
    return True


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)
