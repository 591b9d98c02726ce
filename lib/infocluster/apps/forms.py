# SPDX-License-Identifier: Apache-2.0
"""form.cgi: a declared form, a visitor's side: show it, take it, or show it again with what is wrong.

The life of an answer:

1. GET shows the form, with a token that is signed and new;
2. POST: where it comes from, its size, its token, the field that only machines fill and every field are looked at;
   files go to the disk as they come, under names of our own;
3. the files get their lasting names, the record is appended: durable, under the token's digest as its id;
4. 303 to the page of thanks. Anything that is not as it has to be is 422, the form again with what was typed.

Shape: a record of the application ``form-NAME``: ``{"id":"<32 hexadecimal digits>","time":1795384800.25,
    "email":"ann@example.org","topics":["Jobs"],"consent":true,"picture":[{"name":"me.png","type":"image/png",
    "bytes":2048,"sha256":"9f86d081...","file":"5f0c...-picture-0-9f86d081.png"}]}``; an answer by field, "" or []
    where there is none. With ``store = "entries"`` each record is a file of its own,
    ``$SERVER_GATHER/form-NAME/ID.json``; with ``store = "queue"`` it is an element of the directory queue
    ``$SERVER_GATHER/form-NAME``. Files are in ``$SERVER_GATHER/form-NAME.files``.

The night's side is `forms_night`: a hit has no time to load it.

Source: RFC 9110 15.4.4 (303), 15.5.21 (422).
"""

import posix
import time

from infocluster import files, secrets
from infocluster.apps import forms_check, forms_compiled, forms_token
from infocluster.errors import UnavailableError, reason
from infocluster.gather import drop
from infocluster.web import uploads
from infocluster.web.request import FORM_TYPE, Request, pairs
from infocluster.web.response import HTML, HttpError, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from infocluster.apps.forms_compiled import Form

THANKS = "thanks.html"
THANKS_QUERY = "thanks"
NEVER_KEPT = (("Cache-Control", "no-store"),)
_KB = 1024
_PARTS_SPARE = 20


def app_of(name: str) -> str:
    """Return the application whose records a form's answers are."""
    return f"form-{name}"


def answer(request: Request) -> Response:
    """Show a form, or take what was answered.

    Raises:
        HttpError: 403 from another site; 404 no such form; 405; 411, 413, 415; 429 too often.
        UnavailableError: the answers cannot be kept now.
        ConfigError: the form's declaration or the secret is not as it has to be.
    """
    request.allow("GET", "HEAD", "POST")
    name = request.variable("PATH_INFO").removeprefix("/")
    form = forms_compiled.load(name, request.settings)
    if form is None:
        raise HttpError(404, "There is no such form here.")
    if request.method == "POST":
        return _taken(request, form, time.time())
    if request.variable("QUERY_STRING") == THANKS_QUERY:
        return Response(form["thanks_page"], HTML, fields=(("Cache-Control", "no-cache"),))
    token = forms_token.issue(form["name"], time.time(), secrets.read(request.settings["forms"]["secret"]))
    before, after = form["page"]
    return Response(before + token.encode("ascii") + after, HTML, fields=NEVER_KEPT)


def _taken(request: Request, form: "Form", now: float) -> Response:
    """Keep what was answered, once; the answer to the visitor is what became of it."""
    request.check_origin()
    store = _Store(request, form)
    try:
        sent = _sent(request, form, store)
        faults: dict[str, str] = {}
        secret = secrets.read(request.settings["forms"]["secret"])
        token = _last(sent, forms_check.TRAP["token"])
        state, age_s = forms_token.look(token, form["name"], now, form["limits"]["open_hours"] * 3600, secret)
        if state != forms_token.NEW:
            token = forms_token.issue(form["name"], now, secret)
            faults[""] = "This page was open for too long, or was not from here. Please send it once more."
        elif age_s < form["limits"]["fill_s"]:
            faults[""] = "That was very fast. Please look at it once more and send it again."
        if _last(sent, forms_check.TRAP["name"]):
            faults[""] = "A field was filled that has to stay empty. Please send it once more."
        answers, wrong = forms_check.checked(form["fields"], sent)
        faults |= wrong
        record: dict[str, Any] = {"id": forms_token.record_id(token), "time": now, **answers}
        store.check(record, faults)
        if faults:
            return _again(request, form, token, sent, faults)
        if not forms_token.count(
            store.top + ".rate", request.variable("REMOTE_ADDR"), form["limits"]["per_hour"], now, secret
        ):
            raise HttpError(
                429,
                f"From here came {form['limits']['per_hour']} answers in this hour; more are taken in the next one.",
                (("Retry-After", str(3600 - int(now) % 3600)),),
            )
        store.keep(record)
    finally:
        store.clear()
    return Response(b"", HTML, 303, (("Location", _thanks(request, form)), *NEVER_KEPT))


def _sent(request: Request, form: "Form", store: "_Store") -> "dict[str, list[str]]":
    """Return what was typed, by field, while files go to the disk."""
    kind = request.variable("CONTENT_TYPE").partition(";")[0].strip().lower()
    text_bytes = form["limits"]["body_kb"] * _KB
    parts = _PARTS_SPARE + 2 * sum(field["repeats"] for field in form["fields"])
    if kind == FORM_TYPE:
        content = request.body(text_bytes)
        if content.count(b"&") > parts:
            raise HttpError(413, "The form has too many parts.")
        listed = pairs(content)
    elif kind == "multipart/form-data":
        from infocluster.web import multipart

        limit_bytes = text_bytes + form["limits"]["upload_kb"] * _KB * form["has_files"]
        listed = multipart.read(request, limit_bytes, text_bytes, parts, store.begin)
    else:
        raise HttpError(415, f"A form has to be sent as {FORM_TYPE} or multipart/form-data.")
    sent: dict[str, list[str]] = {}
    for name, value in listed:
        sent.setdefault(name, []).append(value)
    return sent


def _last(sent: "dict[str, list[str]]", name: str) -> str:
    return sent.get(name, [""])[-1]


def _again(
    request: Request, form: "Form", token: str, sent: "dict[str, list[str]]", faults: "dict[str, str]"
) -> Response:
    from infocluster.apps import forms_declared

    page = forms_declared.page(form, request.settings, token, sent, faults)
    return Response(page.encode("utf-8", "replace"), HTML, 422, NEVER_KEPT)


def _thanks(request: Request, form: "Form") -> str:
    """Return where the thanks are: the page that was pushed, or, before the first push, one of ours."""
    tree, _, below = request.settings["forms"]["directory"].partition("/")
    root = request.variable("DOCUMENT_ROOT") or request.settings["site"]["production_dir"] + "/" + tree
    address = f"/{below}/{form['name']}/{THANKS}" if below else f"/{form['name']}/{THANKS}"
    try:
        posix.stat(root + address)
    except OSError:
        return f"{request.variable('SCRIPT_NAME')}/{form['name']}?{THANKS_QUERY}"
    return address


class _Upload:
    """One file on its way to the disk."""

    __slots__ = (
        "_digest",
        "_fd",
        "_is_text",
        "fault",
        "field",
        "file",
        "first",
        "kept_name",
        "name",
        "size",
        "store",
    )

    def __init__(self, store: "_Store", field: "dict[str, Any] | None", name: str) -> None:
        self.store = store
        self.field = field
        # The last part of what old browsers send as a path, as text: it names nothing here.
        self.name = name.replace("\\", "/").rpartition("/")[2][:200]
        self.size = 0
        self.first = b""
        self.fault = ""
        self.kept_name = ""
        self.file = f"{store.files_dir}/{files.temporary_name('upload')}"
        self._is_text = True
        self._digest: Any = None
        self._fd = -1
        if field is None:
            self.fault = "no field"
            return
        from hashlib import sha256

        self._digest = sha256()
        self._fd = store.open(self.file)

    def write(self, chunk: bytes) -> None:
        """Take the next bytes; of a file that is refused already nothing is kept."""
        self.size += len(chunk)
        if self.fault:
            return
        if len(self.first) < uploads.FIRST_BYTES:
            self.first += chunk[: uploads.FIRST_BYTES - len(self.first)]
        if self.size > self.store.form["limits"]["upload_kb"] * _KB:
            self.fault = f"This file is too large: {self.store.form['limits']['upload_kb']} kB are taken."
            return
        self._is_text = self._is_text and not uploads.is_binary(chunk)
        self._digest.update(chunk)
        try:
            files.write_all(self._fd, chunk)
        except OSError as error:
            raise UnavailableError(f"cannot write {self.file}: {reason(error)}") from error

    def close(self) -> None:
        """Look at the whole file."""
        if self.fault or self.field is None:
            return
        media_type = self.media_type
        if self.size == 0:
            self.fault = "This file is empty."
        elif media_type not in self.field["types"] or (media_type == "text/plain" and not self._is_text):
            self.fault = f"This is no file of a type that is taken: {', '.join(self.field['types'])}."
        elif self.store.durable:
            try:
                posix.fsync(self._fd)
            except OSError as error:
                raise UnavailableError(f"cannot write {self.file}: {reason(error)}") from error

    @property
    def media_type(self) -> str:
        """What its first bytes say it is."""
        return uploads.type_of(self.first)

    def told(self, record_id: str, field_name: str, place: int) -> "dict[str, Any]":
        """Return what the record says of it, with the name that it will have."""
        digest = str(self._digest.hexdigest())
        # The id is the token's: a form sent twice makes the same names, unless it is another file.
        self.kept_name = f"{record_id}-{field_name}-{place}-{digest[:8]}{uploads.TYPES[self.media_type]}"
        return {
            "name": self.name,
            "type": self.media_type,
            "bytes": self.size,
            "sha256": digest,
            "file": self.kept_name,
        }

    def end(self) -> None:
        """Close it; what has no lasting name by now goes."""
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1
            try:
                posix.unlink(self.file)
            except FileNotFoundError:
                return


class _Store:
    """Where one visitor's answers go, in the gather directory of this server."""

    def __init__(self, request: Request, form: "Form") -> None:
        self.form = form
        self.gather = request.settings["gather"]
        self.durable: bool = self.gather["durable"]
        self.directory = request.variable("SERVER_GATHER")
        if not self.directory.startswith("/"):
            raise UnavailableError("cannot gather: SERVER_GATHER names no directory (the web server has to set it)")
        self.top = f"{self.directory}/{app_of(form['name'])}"
        self.files_dir = self.top + ".files"
        self._uploads: list[_Upload] = []

    def begin(self, name: str, filename: str) -> _Upload:
        """Begin to take a file."""
        field = next(
            (field for field in self.form["fields"] if field["name"] == name and field["kind"] == "file"), None
        )
        upload = _Upload(self, field, filename)
        self._uploads.append(upload)
        return upload

    def open(self, file: str) -> int:
        """Open a new file for an upload.

        Raises:
            UnavailableError: it cannot be made.
        """
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
        try:
            try:
                return posix.open(file, flags, 0o644)
            except FileNotFoundError:
                files.make_directories(self.files_dir)
                return posix.open(file, flags, 0o644)
        except OSError as error:
            raise UnavailableError(f"cannot write {file}: {reason(error)}") from error

    def check(self, record: "dict[str, Any]", faults: "dict[str, str]") -> None:
        """Add to a record what it tells of its files, and to the faults what is wrong with them or with its length;
        where anything is, say that they have to be chosen again.
        """
        for field in self.form["fields"]:
            if field["kind"] != "file":
                continue
            mine = [upload for upload in self._uploads if upload.field is field]
            wrong = [upload.fault for upload in mine if upload.fault]
            if field["required"] and not mine:
                faults[field["name"]] = "Please choose a file."
            elif len(mine) > field["repeats"]:
                faults[field["name"]] = f"At most {field['repeats']} file{'s' * (field['repeats'] > 1)} here."
            elif wrong:
                faults[field["name"]] = wrong[0]
            if not faults:
                record[field["name"]] = [
                    upload.told(record["id"], field["name"], place) for place, upload in enumerate(mine)
                ]
        if not faults and len(drop.line(record)) > self.gather["limit_bytes"]:
            faults[""] = "This is too long, all texts together. Please write less."
        if faults:
            for upload in self._uploads:
                if upload.field is not None:
                    faults.setdefault(upload.field["name"], "Please choose the file again: it was not kept.")

    def keep(self, record: "dict[str, Any]") -> None:
        """Keep a record and its files; they are on the disk, whole, when this returns.

        Where the record cannot be appended its files stay, for gather-sweep: it may be there all the same, if
        nothing but the wait for the disk failed, or by the same form sent twice.

        Raises:
            UnavailableError: they cannot be kept now.
        """
        try:
            for upload in self._uploads:
                if upload.kept_name:
                    posix.rename(upload.file, f"{self.files_dir}/{upload.kept_name}")
            if self.durable and any(upload.kept_name for upload in self._uploads):
                files.sync_directory(self.files_dir)
        except OSError as error:
            raise UnavailableError(f"cannot keep a file in {self.files_dir}: {reason(error)}") from error
        store = self.form["answers"]["store"]
        if store == "entries":
            self._enter(record)
        else:
            kept_in = drop.QUEUE if store == "queue" else drop.SEGMENTS
            drop.append(app_of(self.form["name"]), record, self.gather, self.directory, kept_in)

    def _enter(self, record: "dict[str, Any]") -> None:
        """Write a record as a file of its own; one that is there already is the same one, sent twice."""
        content = drop.line(record)
        file = f"{self.top}/{record['id']}.json"
        try:
            files.make_directories(self.top)
            try:
                posix.stat(file)
            except FileNotFoundError:
                files.replace(file, content, durable=self.durable)
        except OSError as error:
            raise UnavailableError(f"cannot write {file}: {reason(error)}") from error

    def clear(self) -> None:
        """Let go of everything that was not kept."""
        for upload in self._uploads:
            upload.end()
