"""What very long sessions cost: one append and one resume at 100 to 100,000 messages, beside other stores.

Messages have 500 bytes; the conversation manager is Strands' default with its window of 40. Our sessions are grown by
real turns, so that archiving has really run; those of the others as in `turn_cost.py`. One append is the user's message
of a turn, from right before the store's own callbacks to right after them. Counts come from PyMongo's command events
and are exact. Times are taken in interleaved rounds in one process.

    python benchmarks/long_sessions.py [--quick] [--rounds N] [--plot docs/long-sessions.svg]

The exit code tells whether the exact targets were met; times depend on the machine and never decide it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import bson
import support
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from strands.hooks import HookRegistry, MessageAddedEvent
from strands.hooks.registry import HookOrder
from support import AGENT_ID, Samples, Store, Target, Traffic, percentile

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.local import LocalMongoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from strands import Agent
    from strands.session.session_manager import SessionManager
    from strands.types.content import ContentBlock

T = TypeVar("T")

CHECKPOINTS = (100, 1_000, 10_000, 100_000)
COUNTED_APPENDS = 10_000
TEXT = (support.TEXT * 2)[:500]
RUN_TURNS = 50
"""Turns of a run: 100 messages, as many as a segment has, so that every run of ours goes through one archiving."""
RESUMES = 5
"""Resumes of a round."""
AGENT_TURNS = 500
"""Turns that one `Agent` takes while a session grows: an `Agent` keeps records of its own of every turn."""

MOST_DOCUMENT_BYTES = 1_000_000
MOST_GROWTH = 1.2
MOST_COMMANDS_ADDED = 0.05
MOST_LATENCY_ADDED = 1.05
"""Two series of equal turns differ by as much."""

PHOTOS, PHOTO_BYTES = 12, 3_700_000
PAPER_BYTES = 20_000_000

_DOCUMENT_LIMIT = 16 * 1024 * 1024
_NEVER = 1_000_000_000
_RAW = CodecOptions(document_class=RawBSONDocument)


NO_ARCHIVING: dict[str, Any] = {
    "archive_after_messages": _NEVER,
    "archive_after_bytes": _NEVER,
    "archive_block": _NEVER,
}
NO_BLOBS: dict[str, Any] = {"blob_threshold_bytes": _NEVER}


# --- stores ---------------------------------------------------------------------------------------------------------


class OurStore(support.OurStore):
    """This library, with sessions grown by real turns."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, "message", "ours")
        self.name = "mongodb-session-manager"
        self.history = self.client[self.database_name]["sessions_history"]
        self._managers: list[MongoDBSessionManager] = []

    def manager(self, session_id: str, *, counted: bool = False) -> MongoDBSessionManager:
        """Open a session; `settle` waits for what is archived from it."""
        manager = super().manager(session_id, counted=counted)
        assert isinstance(manager, MongoDBSessionManager)
        self._managers.append(manager)
        return manager

    def build(self, history: int) -> None:
        """Make the session with this many messages, by real turns."""
        session_id = self.session_id(history)
        self.grow(partial(self.manager, session_id), history)
        document = self.collection.with_options(_RAW).find_one({"_id": session_id})
        assert isinstance(document, RawBSONDocument)
        self.documents[history] = document

    def grow(self, open_session: Callable[[], MongoDBSessionManager], messages: int) -> None:
        """Take as many turns as make this many messages, and wait until nothing is being archived any more."""
        for begun in range(0, messages // 2, AGENT_TURNS):
            manager = open_session()
            agent = support.make_agent(support.text_model(self.text), session_manager=manager)
            for _ in range(min(AGENT_TURNS, messages // 2 - begun)):
                agent(self.text)
            manager.flush()

    def settle(self) -> None:
        """Wait until nothing is being archived any more."""
        while self._managers:
            self._managers.pop().flush()

    def reset(self, history: int) -> None:
        """Take that session back to what `build` made, segments included."""
        self.settle()
        document = self.documents[history]
        first = {
            "session": self.session_id(history),
            "incarnation": document["incarnation"],
            "agent": AGENT_ID,
            "first": document["agents"][AGENT_ID].get("archived_count", 0),
        }
        self.history.delete_many({"_id": {"$gte": first, "$lt": {**first, "first": _NEVER}}})
        super().reset(history)

    def sizes(self, history: int) -> Sizes:
        """Return how large the session is, and how its messages are spread."""
        document = self.documents[history]
        record = document["agents"][AGENT_ID]
        segments = list(self.history.find({"_id.session": self.session_id(history)}, {"count": 1}))
        embedded = len(record["messages"])
        stored = embedded + sum(segment["count"] for segment in segments)
        return Sizes(len(document.raw), embedded, len(segments), stored)


@dataclass
class Sizes:
    """What a session of ours consists of.

    Attributes:
        document: Bytes of the session document.
        embedded: Messages in it.
        segments: Segments of its history.
        stored: Messages in all.
    """

    document: int
    embedded: int
    segments: int
    stored: int


class OneDocumentStore(support.OurStore):
    """This library with thresholds at which it never archives: the whole conversation in one document."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, "message", "one_document", **NO_ARCHIVING, **NO_BLOBS)
        self.name = "one document, no archiving"
        self.embedded = _NEVER

    def manager(self, session_id: str, *, counted: bool = False) -> SessionManager:
        """Open a session that not even a lack of room makes archive."""
        manager = super().manager(session_id, counted=counted)
        assert isinstance(manager, MongoDBSessionManager)
        archiver: Any = manager.session_repository._store.archiver
        archiver.make_room = lambda *_: None
        return manager


class Stores:
    """All that is compared."""

    def __init__(self, uri: str, directory: str) -> None:
        self.ours = OurStore(uri)
        self.one_document = OneDocumentStore(uri)
        self.all: list[Store] = [
            self.ours,
            self.one_document,
            support.RivalStore(uri),
            support.SnapshotStore(uri, "message"),
            support.FileStore(directory),
        ]
        for store in self.all:
            store.text = TEXT


# --- one append, one resume -----------------------------------------------------------------------------------------


class _Spans(Generic[T]):
    """Reads a gauge right before and right after the store's callbacks for each message of the user."""

    def __init__(self, gauge: Callable[[], T]) -> None:
        self.readings: list[tuple[T, T]] = []
        self._gauge = gauge
        self._before: T

    def register_hooks(self, registry: HookRegistry, **_: Any) -> None:
        registry.add_callback(MessageAddedEvent, self._begin, order=HookOrder.SDK_FIRST)
        registry.add_callback(MessageAddedEvent, self._end, order=HookOrder.SDK_LAST)

    def _begin(self, event: MessageAddedEvent) -> None:
        self._before = self._gauge()

    def _end(self, event: MessageAddedEvent) -> None:
        if event.message["role"] == "user":
            self.readings.append((self._before, self._gauge()))


def appends(store: Store, history: int, gauge: Callable[[], T], *, counted: bool = False) -> list[tuple[T, T]]:
    """Take a run of turns at this length; return what the gauge said before and after each message of the user."""
    agent = store.agent(history, counted=counted)
    spans = _Spans(gauge)
    agent.hooks.add_hook(spans)
    for _ in range(RUN_TURNS):
        agent(store.text)
    return spans.readings


@dataclass
class Figures:
    """What was measured, by store and length.

    Attributes:
        append: The traffic of one append: of each figure the median over a run.
        resume: The traffic of one resume.
        append_times: Milliseconds of the appends.
        resume_times: Milliseconds of the resumes.
    """

    append: dict[tuple[Store, int], Traffic] = field(default_factory=dict)
    resume: dict[tuple[Store, int], Traffic] = field(default_factory=dict)
    append_times: dict[tuple[Store, int], Samples] = field(default_factory=dict)
    resume_times: dict[tuple[Store, int], Samples] = field(default_factory=dict)


def count(figures: Figures, store: Store, history: int) -> None:
    """Count what a store sends at this length."""
    store.reset(history)
    figures.resume[store, history] = store.traffic(partial(store.agent, history, counted=True))
    store.reset(history)
    spans = [after.since(before) for before, after in appends(store, history, store.tally, counted=True)]
    store.reset(history)
    median = statistics.median_low
    figures.append[store, history] = Traffic(
        median(span.commands for span in spans),
        median(span.sent for span in spans),
        median(span.written for span in spans),
        median(span.received for span in spans),
    )


def measure(figures: Figures, pairs: Sequence[tuple[Store, int]], rounds: int) -> None:
    """Time appends and resumes of every store at every length, in another order each round."""
    for pair in pairs:
        figures.append_times[pair], figures.resume_times[pair] = Samples(), Samples()
    with _garbage_kept():
        for _ in range(rounds):
            for store, history in random.sample(pairs, len(pairs)):
                store.reset(history)
                resumed = figures.resume_times[store, history].milliseconds
                resumed.extend(_timed(partial(store.agent, history)) for _ in range(RESUMES))
                gc.collect(1)
                for began, ended in appends(store, history, time.perf_counter):
                    figures.append_times[store, history].milliseconds.append((ended - began) * 1000)
                store.reset(history)


@contextlib.contextmanager
def _garbage_kept() -> Any:
    """Let no collection fall into what is timed."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _timed(act: Callable[[], object]) -> float:
    gc.collect(1)
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


# --- what archiving costs -------------------------------------------------------------------------------------------


def count_archiving(store: OurStore, messages: int) -> tuple[Traffic, Traffic]:
    """Return what a session of so many messages sends from its first to its last, with archiving and without."""

    def grow(session_id: str, **options: Any) -> None:
        store.grow(partial(store.counted_factory.create_session_manager, session_id, **options), messages)

    return store.traffic(partial(grow, "with")), store.traffic(partial(grow, "without", **NO_ARCHIVING))


def time_archiving(store: OurStore, history: int, rounds: int) -> tuple[Samples, Samples]:
    """Time turns with archiving and without, in interleaved runs that begin with the same session document."""
    document = bson.decode(store.documents[history].raw)
    document["_id"] = document["session_id"] = "without"
    taken = Samples(), Samples()
    with _garbage_kept():
        for number in range(rounds):
            store.reset(history)
            store.collection.replace_one({"_id": "without"}, document, upsert=True)
            managers = (
                store.factory.create_session_manager(store.session_id(history)),
                store.factory.create_session_manager("without", **NO_ARCHIVING),
            )
            runs = list(zip(taken, managers, strict=True))
            for samples, manager in runs if number % 2 else reversed(runs):
                agent = support.make_agent(support.text_model(store.text), session_manager=manager)
                gc.collect(1)
                samples.milliseconds.extend(_timed(partial(agent, store.text)) for _ in range(RUN_TURNS))
                manager.flush()
    store.reset(history)
    return taken


# --- what is refused ------------------------------------------------------------------------------------------------


@dataclass
class Refusal:
    """Where a store gave up.

    Attributes:
        stored: What it had stored before.
        error: Why it stored no more.
    """

    stored: int
    error: str


def messages_that_fit(store: OneDocumentStore, history: int) -> int:
    """Return a length at which the document is a little more than two runs below 16 MB."""
    size = len(store.documents[history].raw)
    return (_DOCUMENT_LIMIT * history // size - 5 * RUN_TURNS) // 100 * 100


def fill(store: OneDocumentStore, history: int) -> Refusal | None:
    """Append to a session of this length until it is refused, at most four runs."""
    store.reset(history)
    agent = store.agent(history)
    refusal = _refused(agent, [[{"text": store.text}]] * (4 * RUN_TURNS))
    if refusal is not None:
        found = store.collection.find_one({"_id": store.session_id(history)}, {f"agents.{AGENT_ID}.message_count": 1})
        assert found is not None
        refusal.stored = found["agents"][AGENT_ID]["message_count"]
    store.reset(history)
    return refusal


@dataclass
class Attachments:
    """What became of photos and of a large document.

    Attributes:
        photos: The first photo that was refused, if one was.
        paper: The refusal of the document, if it was.
        equal: Whether the resumed session has exactly what was sent; None if not all of it was stored.
    """

    photos: Refusal | None
    paper: Refusal | None
    equal: bool | None


def attach(store: Store) -> Attachments:
    """Send the photos and the document in one session and resume it; after a refused photo, the document in another."""
    photos: list[list[ContentBlock]] = [
        [{"image": {"format": "jpeg", "source": {"bytes": _bytes(number, PHOTO_BYTES)}}}, {"text": store.text}]
        for number in range(PHOTOS)
    ]
    name: Any = "paper"
    paper: list[ContentBlock] = [
        {"document": {"format": "pdf", "name": name, "source": {"bytes": _bytes(PHOTOS, PAPER_BYTES)}}},
        {"text": store.text},
    ]
    agent = _open(store, "attachments")
    refused_photos = _refused(agent, photos)
    refused_paper = _refused(agent if refused_photos is None else _open(store, "paper"), [paper])
    equal = None
    if refused_photos is None and refused_paper is None:
        if isinstance(store, OurStore):
            store.settle()
        answer = [{"text": store.text}]
        sent = [content for turn in [*photos, paper] for content in (turn, answer)]
        equal = [message["content"] for message in _open(store, "attachments").messages] == sent
    return Attachments(refused_photos, refused_paper, equal)


def _open(store: Store, session_id: str) -> Agent:
    return support.make_agent(support.text_model(store.text), session_manager=store.manager(session_id))


def _bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def _refused(agent: Agent, turns: Sequence[list[ContentBlock]]) -> Refusal | None:
    for number, content in enumerate(turns):
        try:
            agent(list(content))
        except Exception as error:
            manager = agent._session_manager
            if isinstance(manager, MongoDBSessionManager):
                manager.reload(agent)  # It would try again what was refused.
            return Refusal(number, _described(error))
    return None


def _described(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = f"{type(cause).__name__}: {cause}".partition(", full error")[0]
    return text if cause is error else f"{type(error).__name__}, from {text}"


# --- the report -----------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """Everything, to be printed and drawn.

    Attributes:
        stores: What was compared.
        checkpoints: The lengths.
        points: The lengths at which a store was measured: for one document, the last that fits in place of the last.
        figures: What was measured there.
        refusal: Where the one document was full; None if that was not tried.
        sizes: Of our sessions, by length.
        commands: Of ours, with archiving and without.
        turns: Of ours, with archiving and without.
        attachments: By store.
    """

    stores: Stores
    checkpoints: Sequence[int]
    points: dict[Store, list[int]]
    figures: Figures
    refusal: Refusal | None
    sizes: dict[int, Sizes]
    commands: tuple[Traffic, Traffic]
    turns: tuple[Samples, Samples]
    attachments: dict[Store, Attachments]

    def print(self) -> None:
        """Print the tables."""
        figures = self.figures
        for what, times, traffic in (
            ("Append of one message of the user", figures.append_times, figures.append),
            ("Resume (open the session and build its agent)", figures.resume_times, figures.resume),
        ):
            self._print_by_length(
                f"{what}: median milliseconds, 20th percentile in brackets",
                {pair: f"{samples.median:.2f} ({samples.p20:.2f})" for pair, samples in times.items()},
            )
            self._print_by_length(
                f"{what}: commands (or files), bytes sent / received",
                {pair: f"{sent.commands}, {sent.sent:,} / {sent.received:,}" for pair, sent in traffic.items()},
            )
        support.print_table(
            "Session document of ours",
            ["messages", "bytes", "messages in it", "segments", "messages in all"],
            [
                [f"{history:,}", f"{sizes.document:,}", sizes.embedded, f"{sizes.segments:,}", f"{sizes.stored:,}"]
                for history, sizes in self.sizes.items()
            ],
        )
        self._print_refusals()
        with_archiving, without = self.commands
        support.print_table(
            "Commands of ours from the first message to the last",
            ["archiving", "commands", "bytes sent", "received", *sorted(set(with_archiving.names))],
            [
                [
                    name,
                    f"{traffic.commands:,}",
                    f"{traffic.sent:,}",
                    f"{traffic.received:,}",
                    *(f"{traffic.names.count(command):,}" for command in sorted(set(with_archiving.names))),
                ]
                for name, traffic in (("on", with_archiving), ("off", without))
            ],
        )
        support.print_table(
            f"Turns of ours at {self.checkpoints[1]:,} messages, ms",
            ["archiving", "p20", "median", "mean", "p95", "longest"],
            [
                [name, *(f"{value:.2f}" for value in _spread(samples))]
                for name, samples in zip(("on", "off"), self.turns, strict=True)
            ],
        )

    def _print_by_length(self, title: str, cells: dict[tuple[Store, int], str]) -> None:
        rows = []
        for store in self.stores.all:
            row = [store.name]
            for checkpoint, point in zip(self.checkpoints, self.points[store], strict=True):
                row.append(cells[store, point] + (f" at {point:,}" if point != checkpoint else ""))
            rows.append(row)
        support.print_table(title, ["store", *(f"{checkpoint:,}" for checkpoint in self.checkpoints)], rows)

    def _print_refusals(self) -> None:
        rows: list[list[Any]] = []
        errors: list[list[str]] = []
        for store in self.stores.all:
            attached = self.attachments[store]
            full = self.refusal if store is self.stores.one_document else None
            for what, refusal in (("messages", full), ("photos", attached.photos), ("document", attached.paper)):
                if refusal is not None:
                    errors.append([store.name, what, refusal.error])
            rows.append(
                [
                    store.name,
                    f"{self.points[store][-1]:,}, no end" if full is None else f"refused after {full.stored:,}",
                    PHOTOS if attached.photos is None else f"refused after {attached.photos.stored}",
                    "stored" if attached.paper is None else "refused",
                    {True: "yes", False: "NO", None: ""}[attached.equal],
                ]
            )
        support.print_table(
            f"What is stored: messages of {len(TEXT)} bytes; {PHOTOS} photos of {PHOTO_BYTES / 1e6:.1f} MB and a"
            f" document of {PAPER_BYTES / 1e6:.0f} MB",
            ["store", "messages", "photos", "document", "resumed equal"],
            rows,
        )
        support.print_table("The errors", ["store", "what was refused", "error"], errors)

    def targets(self) -> list[Target]:
        """Return what was promised, and whether it is kept."""
        ours, figures = self.stores.ours, self.figures
        short, long = (ours, self.checkpoints[0]), (ours, self.checkpoints[-1])
        found = []
        for what, traffic, times in (
            ("an append", figures.append, figures.append_times),
            ("a resume", figures.resume, figures.resume_times),
        ):
            text = f"{what} at {long[1]:,} messages: at most {MOST_GROWTH} times that at {short[1]}, in"
            for unit in ("commands", "sent", "received"):
                before, after = getattr(traffic[short], unit), getattr(traffic[long], unit)
                found.append(
                    Target(
                        f"{text} {'commands' if unit == 'commands' else f'bytes {unit}'}",
                        after <= MOST_GROWTH * before,
                        f"{after / before:.2f} ({before:,} → {after:,})",
                        exact=True,
                    )
                )
            growth = times[long].median / times[short].median
            figure = f"{growth:.2f} ({times[short].median:.2f} → {times[long].median:.2f} ms)"
            found.append(Target(f"{text} median time", growth <= MOST_GROWTH, figure, exact=False))
        sizes = self.sizes[long[1]]
        found.append(
            Target(
                f"the session document of {long[1]:,} messages is below {MOST_DOCUMENT_BYTES:,} bytes",
                sizes.document < MOST_DOCUMENT_BYTES,
                f"{sizes.document:,}, {sizes.segments:,} segments",
                exact=True,
            )
        )
        found.append(
            Target(
                "every message is stored, in the document or in a segment",
                all(sizes.stored == history for history, sizes in self.sizes.items()),
                ", ".join(f"{sizes.stored:,}" for sizes in self.sizes.values()),
                exact=True,
            )
        )
        attached = self.attachments[ours]
        refusals = [refusal.error for refusal in (attached.photos, attached.paper) if refusal is not None]
        found.append(
            Target(
                f"{PHOTOS} photos of {PHOTO_BYTES:,} bytes and a document of {PAPER_BYTES:,} in one session come back"
                " equal",
                attached.equal is True,
                "; ".join(refusals) or ("equal" if attached.equal else "not equal"),
                exact=True,
            )
        )
        with_archiving, without = (traffic.commands for traffic in self.commands)
        added = with_archiving / without - 1
        found.append(
            Target(
                f"archiving adds less than {MOST_COMMANDS_ADDED:.0%} to the number of commands",
                added < MOST_COMMANDS_ADDED,
                f"{added:.2%} ({without:,} → {with_archiving:,})",
                exact=True,
            )
        )
        on, off = self.turns
        ratios = on.p20 / off.p20, on.median / off.median
        found.append(
            Target(
                f"archiving adds nothing to a turn: at most {MOST_LATENCY_ADDED} times one without",
                max(ratios) <= MOST_LATENCY_ADDED,
                f"p20 {ratios[0]:.2f}, median {ratios[1]:.2f}",
                exact=False,
            )
        )
        return found


def _spread(samples: Samples) -> tuple[float, ...]:
    taken = samples.milliseconds
    return samples.p20, samples.median, statistics.fmean(taken), percentile(taken, 95), max(taken)


# --- the plot -------------------------------------------------------------------------------------------------------

# Each stands out from white and from black, and from its neighbours for colour-blind readers; so do the markers.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#B0609A", "D"), ("#808080", "v"))
_INK = "#767676"


def draw(report: Report, path: Path) -> None:
    """Draw the medians against the length; the format is the one that the path ends with."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figures = report.figures
    mpl.rcParams.update(
        dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    )
    # Without a salt and with a date, every run would write another file for the same figures.
    mpl.rcParams.update({"font.size": 10, "svg.hashsalt": "long-sessions"})
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.8), sharex=True)
    for panel, title, times in zip(
        panels,
        ("Append one message", "Resume: open the session, build its agent"),
        (figures.append_times, figures.resume_times),
        strict=True,
    ):
        for store, (colour, marker) in zip(report.stores.all, _LOOKS, strict=True):
            points = report.points[store]
            ours = store is report.stores.ours
            medians = [times[store, point].median for point in points]
            panel.plot(
                points,
                medians,
                color=colour,
                marker=marker,
                markersize=6,
                linewidth=3 if ours else 1.6,
                zorder=3 if ours else 2,
                label=store.name,
            )
            if store is report.stores.one_document and report.refusal is not None:
                full = (report.refusal.stored, medians[-1])
                panel.plot(
                    *full,
                    color=colour,
                    marker="x",
                    markersize=11,
                    markeredgewidth=3,
                    linestyle="none",
                    zorder=4,
                    label=f"full after {full[0]:,} messages (16 MB)",
                )
        panel.set(xscale="log", yscale="log", title=title, xlabel="messages in the session")
        panel.margins(y=0.2)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.grid(color=_INK, alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("milliseconds, median")
    figure.suptitle(f"Long sessions, messages of {len(TEXT)} bytes: lower and flatter is better", fontsize=12)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)


# --- the run --------------------------------------------------------------------------------------------------------


def run(stores: Stores, checkpoints: Sequence[int], rounds: int, counted_appends: int) -> Report:
    """Build all sessions, count and time."""
    one = stores.one_document
    points: dict[Store, list[int]] = {store: list(checkpoints) for store in stores.all}
    if checkpoints is CHECKPOINTS:
        one.build(checkpoints[-2])
        points[one][-1] = messages_that_fit(one, checkpoints[-2])
    pairs = [(store, point) for store in stores.all for point in points[store]]
    for store, point in pairs:
        with _told(f"{store.name}: {point:,} messages built"):
            store.build(point)
    figures = Figures()
    with _told("counted"):
        sizes = {point: stores.ours.sizes(point) for point in checkpoints}
        for store, point in pairs:
            count(figures, store, point)
    with _told("filled"):
        refusal = fill(one, points[one][-1]) if checkpoints is CHECKPOINTS else None
    with _told("photos sent"):
        attachments = {store: attach(store) for store in stores.all}
    with _told(f"{counted_appends:,} appends with archiving and without"):
        commands = count_archiving(stores.ours, counted_appends)
    with _told("appends and resumes timed"):
        measure(figures, pairs, rounds)
    with _told("turns timed"):
        turns = time_archiving(stores.ours, checkpoints[1], 2 * rounds)
    return Report(stores, checkpoints, points, figures, refusal, sizes, commands, turns, attachments)


@contextlib.contextmanager
def _told(what: str) -> Any:
    began = time.perf_counter()
    yield
    print(f"{what} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="interleaved rounds to time (default 10; with --quick 2)")
    parser.add_argument("--quick", action="store_true", help="up to 10,000 messages only, few rounds")
    parser.add_argument("--plot", type=Path, help="draw the times into this file, such as docs/long-sessions.svg")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 10)
    checkpoints = CHECKPOINTS[:-1] if arguments.quick else CHECKPOINTS
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(LocalMongoDB())
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        stores = Stores(server.uri, directory)
        print(f"{support.versions(stores.ours.client)}; {rounds} rounds", flush=True)
        report = run(stores, checkpoints, rounds, COUNTED_APPENDS // (5 if arguments.quick else 1))
        report.print()
        if arguments.plot is not None:
            draw(report, arguments.plot)
        return support.print_targets(report.targets())


if __name__ == "__main__":
    sys.exit(main())
