"""What goes wrong: one fault after the other, chosen at random, until it is told to stop."""

import collections
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from soak.chaos_proxy import FAIR, Weather
from soak.nursery import Children
from soak.world import WRITERS, World

_COMMANDS = ("find", "update", "insert", "delete", "findAndModify", "aggregate", "getMore", "createIndexes")
_WRITES = _COMMANDS[1:5]
# What a server that shuts down, steps down or loses another one answers, and some that no driver sends again.
_RETRYABLE = (6, 7, 89, 91, 189, 10107, 11600, 11602, 13436)
_FINAL = (1, 50, 112)
_CONCERNS = (64, 91, 189, 11602)


class Faults:
    """Makes faults in a thread of its own.

    Attributes:
        did: how often which.
        problems: why a fault could not be made: a fault of this program.
    """

    def __init__(self, world: World, children: Children, rng: random.Random) -> None:
        self.did: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self._world = world
        self._children = children
        self._rng = rng
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Make no more; what is broken is mended by `World.heal`."""
        self._over.set()
        self._thread.join(120)
        if self._thread.is_alive():
            self.problems.append("the thread that makes the faults did not end")

    def _pause(self, shortest: float, longest: float) -> None:
        self._over.wait(self._rng.uniform(shortest, longest))

    def _run(self) -> None:
        faults: list[tuple[Callable[[], None], int]] = [
            (self._weather, 10),
            (self._failpoint, 8),
            (self._outage, 1),
            (self._freeze_node, 2),
            (self._kill_node, 2),
            (self._kill_child, 6),
            (self._freeze_child, 3),
            (self._fair, 2),
        ]
        if self._world.kind == "replica_set":
            faults.append((self._step_down, 3))
        names, weights = zip(*faults, strict=True)
        while not self._over.is_set():
            fault = self._rng.choices(names, weights)[0]
            try:
                fault()
            except Exception as error:
                if not self._over.is_set():
                    self.problems.append(f"{fault.__name__}: {error!r}")
            self.did[fault.__name__[1:]] += 1
            self._children.fill_up()
            self._pause(0.2, 1.5)

    def _set_weather(self, weather: Weather) -> None:
        for proxy in self._world.proxies:
            proxy.weather = weather

    def _weather(self) -> None:
        worst = self._rng.choice((0.02, 0.06, 0.15))
        chances = {name: self._rng.uniform(0, worst) for name in ("cut_before", "cut_after", "late", "delay")}
        self._set_weather(Weather(**chances, late_seconds=self._rng.choice((0.2, 1.0, 4.0))))

    def _fair(self) -> None:
        self._set_weather(FAIR)
        self._pause(0.5, 2)

    def _outage(self) -> None:
        self._set_weather(Weather(closed=True))
        for proxy in self._world.proxies:
            proxy.cut_all()
        self._pause(0.2, 2)
        self._set_weather(FAIR)

    def _failpoint(self) -> None:
        rng = self._rng
        some = rng.sample(_COMMANDS, rng.randint(1, 4))
        data: dict[str, Any] = {"failCommands": some, "appName": WRITERS}
        kind = rng.choice(("error", "final error", "write concern", "close", "block"))
        if kind == "error":
            data["errorCode"] = rng.choice(_RETRYABLE)
            if rng.random() < 0.5:
                data["errorLabels"] = rng.choice(([], ["RetryableWriteError"]))
        elif kind == "final error":
            data["errorCode"] = rng.choice(_FINAL)
        elif kind == "write concern":
            data["failCommands"] = rng.sample(_WRITES, rng.randint(1, 3))
            data["writeConcernError"] = {"code": rng.choice(_CONCERNS), "errmsg": "made by the failpoint"}
            if rng.random() < 0.3:
                data["writeConcernError"]["errorLabels"] = ["RetryableWriteError"]
        elif kind == "close":
            data["closeConnection"] = True
        if kind == "block" or rng.random() < 0.1:
            data.update(blockConnection=True, blockTimeMS=rng.randint(50, 1500))
        mode: Any = rng.choice(({"times": rng.randint(1, 5)}, {"activationProbability": rng.uniform(0.05, 0.5)}))
        node = self._world.primary()
        self._world.command(node, "configureFailPoint", "failCommand", mode=mode, data=data)
        self.did[f"failpoint: {kind}"] += 1
        self._pause(0.3, 2)
        self._world.command(node, "configureFailPoint", "failCommand", mode="off")

    def _freeze_node(self) -> None:
        node = self._rng.choice(self._world.nodes) if self._rng.random() < 0.3 else self._world.primary()
        self._world.freeze(node)
        try:
            self._pause(0.1, self._rng.choice((0.5, 2.0, 5.0)))
        finally:
            self._world.let_go_on(node)

    def _kill_node(self) -> None:
        node = self._rng.choice(self._world.nodes) if self._rng.random() < 0.3 else self._world.primary()
        node.kill()
        try:
            self._pause(0.1, 2)
        finally:
            node.start()

    def _step_down(self) -> None:
        self._world.command(self._world.primary(), "replSetStepDown", 5, force=self._rng.random() < 0.7)

    def _kill_child(self) -> None:
        self._children.kill_one(self._rng)

    def _freeze_child(self) -> None:
        pid = self._children.freeze_one(self._rng)
        if pid is not None:
            began = time.monotonic()
            self._pause(0.1, 3)
            self._children.let_go_on(pid)
            self.did["seconds of frozen writers"] += round(time.monotonic() - began)
