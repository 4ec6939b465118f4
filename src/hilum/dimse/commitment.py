"""Storage Commitment, push model: takes a list of instances; says later which of them are safe. Says so only
of what it has read back, each byte against the checksum of what came in.

PS3.4 J, Storage Commitment Service Class. A request is answered when it is written down, in a file of the
folder `commitment` in the store; the report goes to the requester on a new association, as the peer that its
AE title names. A report that fails is tried again, later each time, also by the process after this one. Who
is no peer gets the report on the association that asked, or never.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import orjson

from hilum.dicom.json import text_of
from hilum.dimse import command as commands
from hilum.dimse import identifier, peers
from hilum.dimse.command import Command, Field, Status
from hilum.dimse.options import DimseSettings
from hilum.dimse.services import OWN_SYNTAXES, Node, Service
from hilum.dimse.transport import Association, Context, Lost, Message
from hilum.engine import record
from hilum.errors import BadDicom, HilumError, NotFound

PUSH_MODEL = "1.2.840.10008.1.20.1"
_WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
_REQUEST = 1  # Action Type ID
_ALL_SAFE, _SOME_FAILED = 1, 2  # Event Type ID

_TRANSACTION, _REFERENCED, _FAILED, _RETRIEVE_AE = "00081195", "00081199", "00081198", "00080054"
_CLASS, _INSTANCE, _REASON = "00081150", "00081155", "00081197"

_FOLDER = "commitment"
_LOOK_SECONDS = 2.0  # between looks for what is due
_RETRY_SECONDS_MAX = 3600.0
_INSTANCES_MAX = 100_000  # of one request
_SOP_CLASS = record.NUMBER_OF[0x00080016]

_log = logging.getLogger("hilum.dimse")


def _has(sop_class: str, settings: DimseSettings) -> bool:
    return sop_class == PUSH_MODEL


# --- The request -----------------------------------------------------------------


def _action(node: Node, association: Association, message: Message) -> None:
    fields: Command = {
        commands.AFFECTED_SOP_INSTANCE: _WELL_KNOWN_INSTANCE,
        commands.ACTION_TYPE: message.number(commands.ACTION_TYPE),
    }
    if message.number(commands.ACTION_TYPE) != _REQUEST:
        association.respond(message, Status.NO_SUCH_ACTION, fields)
        return
    try:
        asked = identifier.read(message.data, message.context.transfer_syntax)
        transaction, wanted = _parse(asked)
    except BadDicom as failure:
        _log.warning("%s: storage commitment: %s", association.peer, failure)
        association.respond(
            message, Status.PROCESSING_FAILURE, {**fields, commands.ERROR_COMMENT: str(failure)}
        )
        return
    job = {
        "title": association.peer_title,
        "transaction": transaction,
        "wanted": wanted,
        "asked_at": time.time(),
        "tries": 0,
        "due": time.time(),
    }
    known = peers.find(node.settings, association.peer_title)
    jobs = Jobs(node.store.path)
    if known is not None:
        if not jobs.add(job):
            association.respond(message, Status.DUPLICATE_TRANSACTION, fields)
            return
        association.respond(message, Status.SUCCESS, fields)
        association.tally["commitments"] += 1
        node.wake_reporter()
        return
    association.respond(message, Status.SUCCESS, fields)
    association.tally["commitments"] += 1
    _log.info("%s is no peer: it gets its report on this association", association.peer)
    with suppress(Lost):
        _report(association, message.context, node, job)


def _parse(asked: identifier.Document) -> tuple[str, list[list[str]]]:
    transaction = text_of(asked.get(_TRANSACTION)).strip()
    if not transaction:
        raise BadDicom("a request without Transaction UID", tag=int(_TRANSACTION, 16))
    items = (asked.get(_REFERENCED) or {}).get("Value", ())
    if not items or len(items) > _INSTANCES_MAX:
        raise BadDicom(f"a request for {len(items)} instances", tag=int(_REFERENCED, 16))
    wanted = []
    for item in items:
        pair = [text_of((item or {}).get(name)).strip() for name in (_CLASS, _INSTANCE)]
        if not all(pair):
            raise BadDicom("a referenced instance without its UIDs", tag=int(_REFERENCED, 16))
        wanted.append(pair)
    return transaction, wanted


# --- What is true -----------------------------------------------------------------


def read_back(node: Node, sop_class: str, uid: str) -> int:
    """0 if an instance is safe, else the Failure Reason: PS3.3 C.14.1.1."""
    try:
        instance = node.store.locate(uid).instance
        stored = record.raw_of(instance.entries, _SOP_CLASS).strip(b" \0").decode("latin-1")
        if stored != sop_class:
            return Status.CLASS_CONFLICT
        for _ in node.store.chunks(uid):  # raises where a checksum does not fit
            pass
    except NotFound:
        return Status.NO_SUCH_INSTANCE
    except (HilumError, OSError) as failure:
        _log.error("%s is not safe: %s", uid, failure)
        return Status.PROCESSING_FAILURE
    return 0


def _report(association: Association, context: Context, node: Node, job: dict[str, Any]) -> None:
    """Read back what was asked for, and say what came of it: PS3.4 J.3.3, Notifications.

    Raises:
        Lost: the peer did not take the report.
    """
    safe, failed = [], []
    for sop_class, uid in job["wanted"]:
        item = {_CLASS: {"vr": "UI", "Value": [sop_class]}, _INSTANCE: {"vr": "UI", "Value": [uid]}}
        reason = read_back(node, sop_class, uid)
        if reason:
            failed.append({**item, _REASON: {"vr": "US", "Value": [reason]}})
        else:
            safe.append(item)
    document: identifier.Document = {
        _TRANSACTION: {"vr": "UI", "Value": [job["transaction"]]},
        _RETRIEVE_AE: {"vr": "AE", "Value": [node.settings.title]},
    }
    if safe:
        document[_REFERENCED] = {"vr": "SQ", "Value": safe}
    if failed:
        document[_FAILED] = {"vr": "SQ", "Value": failed}
    command: Command = {
        commands.COMMAND_FIELD: Field.EVENT_REPORT,
        commands.AFFECTED_SOP_CLASS: PUSH_MODEL,
        commands.AFFECTED_SOP_INSTANCE: _WELL_KNOWN_INSTANCE,
        commands.EVENT_TYPE: _SOME_FAILED if failed else _ALL_SAFE,
        commands.DATA_SET_TYPE: commands.HAS_DATA_SET,
    }
    data = identifier.write(document, context.transfer_syntax, "")
    answer = association.ask(context, command, [data], seconds=node.settings.answer_seconds)
    status = commands.number(answer, commands.STATUS)
    if status:
        raise Lost(f"it answers the report with 0x{status:04X}")
    _log.info(
        "%s: storage commitment %s: %d safe, %d not",
        association.peer,
        job["transaction"],
        len(safe),
        len(failed),
    )


# --- What is still to be reported ---------------------------------------------------


class Jobs:
    """Reports that are due, a file for each. Safe from several processes."""

    def __init__(self, store_path: str) -> None:
        self._folder = os.path.join(store_path, _FOLDER)

    def add(self, job: dict[str, Any]) -> bool:
        """Write a job down, durably. False: one of the same requester and transaction is there."""
        os.makedirs(self._folder, exist_ok=True)
        name = hashlib.sha256(f"{job['title']}\n{job['transaction']}".encode()).hexdigest()[:32]
        path = os.path.join(self._folder, f"{name}.json")
        if os.path.exists(path):
            return False
        self._write(path, job)
        return True

    def _write(self, path: str, job: dict[str, Any]) -> None:
        new = f"{path}.{os.getpid()}.{threading.get_ident()}.new"
        with open(new, "wb") as file:
            file.write(orjson.dumps(job))
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
        self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def paths(self) -> list[str]:
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        return [os.path.join(self._folder, name) for name in names if name.endswith(".json")]

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether this process is the one that reports now; the lock dies with it."""
        if not os.path.isdir(self._folder):
            yield False
            return
        lock = os.open(os.path.join(self._folder, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(lock)

    def read(self, path: str) -> dict[str, Any] | None:
        try:
            with open(path, "rb") as file:
                found = orjson.loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, orjson.JSONDecodeError) as failure:
            _log.error("%s can't be read: %s", path, failure)
            return None
        return found if isinstance(found, dict) else None

    def later(self, path: str, job: dict[str, Any]) -> None:
        self._write(path, job)

    def done(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)


class Reporter:
    """A thread that sends the reports that are due. Every process has one, and one of them works at a
    time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._jobs = Jobs(node.store.path)
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dimse-report", daemon=True)
        node.wake_reporter = self._woken.set

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    def join(self, seconds: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                if self._jobs.paths():
                    with self._jobs.locked() as is_ours:
                        if is_ours:
                            self._send_due()
            except OSError as failure:  # a full disk, say: the jobs that are written down stay
                _log.error("storage commitment: %s", failure)
            self._woken.wait(_LOOK_SECONDS)

    def _send_due(self) -> None:
        for path in self._jobs.paths():
            job = self._jobs.read(path)
            if self._stopping:
                return
            if job is None or job["due"] > time.time():
                continue
            try:
                self._send(job)
            except HilumError as failure:
                self._put_off(path, job, str(failure))
            else:
                self._jobs.done(path)

    def _put_off(self, path: str, job: dict[str, Any], words: str) -> None:
        settings = self._node.settings
        age = time.time() - job["asked_at"]
        if age > settings.report_hours * 3600:
            _log.error("%s: storage commitment %s is given up: %s", job["title"], job["transaction"], words)
            self._jobs.done(path)
            return
        pause = min(settings.report_retry_seconds * 2 ** job["tries"], _RETRY_SECONDS_MAX)
        job["tries"] = min(job["tries"] + 1, 32)
        job["due"] = time.time() + pause
        self._jobs.later(path, job)
        _log.warning(
            "%s: storage commitment %s is reported again in %.0f s: %s",
            job["title"], job["transaction"], pause, words,
        )  # fmt: skip

    def _send(self, job: dict[str, Any]) -> None:
        """Report on an association of its own, on which we are the SCP that notifies: PS3.4 J.3.3.

        Raises:
            Lost: it did not come to that.
        """
        peer = peers.find(self._node.settings, job["title"])
        if peer is None:
            raise Lost("it is no peer any more")
        role = peers.role(PUSH_MODEL, scu=False, scp=True)
        context = peers.context(PUSH_MODEL, OWN_SYNTAXES[:2])
        association = peers.connect(self._node.settings, self._node.entity, peer, [context], roles=[role])
        try:
            _report(association, next(iter(association.contexts.values())), self._node, job)
            association.release()
        finally:
            association.close()


SERVICE = Service(_has, {Field.ACTION: _action})
