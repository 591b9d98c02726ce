# SPDX-License-Identifier: Apache-2.0
"""Forms, the night's side: read every server's answers, keep them, write what comes of them, publish, mail.

The life of an answer, for each form:

1. look at ``<gather_dir>/*/<host>/form-NAME`` for what is new, in segments, entries and a queue;
2. commit answers and positions in one transaction: an answer counts once, by its id, however often it was sent; then
   what people decided of answers by the links of letters, the newest word on each;
3. copy the files that came with answers, held against their digest; one that is not there yet is tried again;
4. forget what is older than the form's retention;
5. write the results of each day that changed, and the summary;
6. publish what may be shown, the page of thanks, and the read marks;
7. queue one letter with what was not mailed yet, and deliver it.

Steps 3 to 7 start from what the database says is still to be done: a night that was killed is finished by the next.
"""

import glob
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from infocluster import files, letters, names, secrets
from infocluster.apps import (
    forms,
    forms_book,
    forms_compiled,
    forms_declared,
    forms_moderation,
    forms_results,
    forms_templates,
)
from infocluster.apps.forms_book import Answer, Book
from infocluster.apps.forms_moderation import HIDDEN, SHOWN
from infocluster.config import Settings
from infocluster.cron.command import Run
from infocluster.errors import ConfigError, InfoclusterError, UnavailableError, UsageError, reason
from infocluster.gather import collect, marks
from infocluster.gather.collect import Part
from infocluster.gather.cursor import Position
from infocluster.publish import place
from infocluster.push import servers

DAY_S = 86400.0
SPARE_DAYS = 2
SUMMARY = "summary.html"
TAKEN_PARTS = 500
TAKEN_BYTES = 8 << 20
_decoder = msgspec.json.Decoder(dict[str, Any])

Form = dict[str, Any]


def work(run: Run) -> str:
    """Do what the arguments ask for, and return the summary.

    Raises:
        UsageError: two things are asked for at once, or an answer or a form that is not there.
    """
    asked = run.arguments
    chosen = [name for name in ("soon", "render", "waiting", "publish", "hide", "erase") if asked[name]]
    if len(chosen) > 1:
        raise UsageError(f"cannot do -{' and -'.join(chosen)} at once")
    declared = _declared(run, asked["form"])
    if asked["render"]:
        return _render(run, [form for form in declared if not form["is_gone"]])
    if asked["waiting"]:
        return _waiting(run, declared)
    if asked["publish"] or asked["hide"]:
        return _decide(run, declared, str(asked["publish"] or asked["hide"]), SHOWN if asked["publish"] else HIDDEN)
    if asked["erase"]:
        return _erase(run, declared, str(asked["erase"]))
    if asked["soon"]:
        declared = [form for form in declared if form["answers"]["mail"] == "soon"]
    return _night(run, declared)


def _declared(run: Run, wanted: Any) -> list[Form]:
    """Return the forms that are asked for, by default all; one that is declared wrong is reported and left out.

    One whose declaration was removed goes on as that said last, while there are answers of it: they are still to be
    forgotten in time, and to be erased. What is to be erased is looked for in one that is declared wrong, too.

    Shape: beside what a form has (`forms_declared`): ``text``, of its declaration, and ``is_gone``.
    """
    known, kept = forms_compiled.all_names(run.settings), forms_book.all_names(run.settings)
    there = list(dict.fromkeys([*known, *kept]))
    for name in wanted:
        if name not in there:
            raise UsageError(f"cannot find the form {names.shown(name)}: there is {', '.join(there) or 'none'}")
    result = []
    for name in wanted or there:
        ways = [False] if name in known else [True]
        if name in known and name in kept and run.arguments["erase"]:
            ways.append(True)
        for is_gone in ways:
            try:
                result.append(_form(run, name, is_gone))
                break
            except InfoclusterError as error:
                run.fault(str(error))
    return result


def _form(run: Run, name: str, is_gone: bool) -> Form:
    """Return a form as it is declared, or, where that is gone, as it was when its answers were last looked at.

    Raises:
        ConfigError: the declaration is not as it has to be.
        UnavailableError: the form's database cannot be opened.
    """
    file = forms_compiled.file_of(name, run.settings)
    if is_gone:
        with forms_book.opened(name, run.settings) as book:
            text = book.declared()
    else:
        text = forms_declared.text_of(file)
    form = forms_declared.parsed(text, file, run.settings, is_gone)
    forms_templates.check(form, run.settings)
    return {**form, "text": text, "is_gone": is_gone}


def _each(run: Run, declared: list[Form], do: Callable[[Form, Book], int]) -> int:
    """Do something for each form and return the sum of what came of it; one that fails never stops the others."""
    total = 0
    for form in declared:
        try:
            with forms_book.opened(form["name"], run.settings) as book:
                book.declare(form["text"])
                total += do(form, book)
        except InfoclusterError as error:
            run.fault(f"form {form['name']}: {error}")
        except Exception as error:  # whatever is wrong with one form, the others are done
            run.fault(f"form {form['name']}: {type(error).__name__}: {error}")
    return total


def _night(run: Run, declared: list[Form]) -> str:
    def one(form: Form, book: Book) -> int:
        new = _take_in(run, form, book)
        _take_decisions(run, form, book)
        _copy_files(run, form, book)
        _forget_old(run, form, book)
        _write(run, form, book)
        _mail(run, form, book)
        return new

    new = _each(run, declared, one)
    _deliver(run)
    count = len(declared)
    return f"{new} new answer{'s' * (new != 1)} to {count} form{'s' * (count != 1)}"


def _render(run: Run, declared: list[Form]) -> str:
    """Compile declarations where that is ours to do, and publish the pages of thanks and of what may be shown."""
    left: list[str] = []

    def one(form: Form, book: Book) -> int:
        _write(run, form, book, also_if_same=True)
        try:
            forms_compiled.compile_form(form["name"], run.settings)
        except UnavailableError:
            # Where settings are root's, as they should be. A hit reads the declaration itself, if more slowly.
            if not forms_compiled.is_compiled(form["name"], run.settings):
                left.append(form["name"])
        return 1

    count, where = _each(run, declared, one), run.settings["forms"]["directory"]
    if left:
        run.say(f"hits are slow until who may write there runs check-site -compile: {', '.join(left)}")
    return f"{count} form{'s' * (count != 1)} rendered; to be pushed: {where}"


def _take_in(run: Run, form: Form, book: Book) -> int:
    """Read what is new on all servers and commit it with how far it was read; return how many answers are new."""
    settings, app = run.settings, forms.app_of(form["name"])
    gather = settings["gather"]
    expected = tuple(server.name for server in servers.of_kind(settings, "web")) if settings["servers"] else ()
    positions = book.cursor.positions(app, gather["host"])
    sources = _sources(settings, app, expected)
    queue = sources[-1]
    looks = [(source, collect.look(source, positions)) for source in sources]
    for fault in dict.fromkeys(fault for _, found in looks for fault in found.faults):
        run.fault(f"form {form['name']}: {fault}")
    new = sum(
        _take_parts(run, form, book, source, parts) for source, found in looks for parts in _together(found.parts)
    )
    reached = book.cursor.positions(app, gather["host"])
    queued = looks[-1][1]
    removed = collect.consume(
        queue, queued.seen & reached.keys(), lambda fault: run.fault(f"form {form['name']}: {fault}")
    )
    with book.cursor.transaction():
        book.cursor.forget(app, gather["host"], collect.gone(queued, reached))
    seen = {key for _, found in looks for key in found.seen} - removed
    _tell_servers(run, app, [reached[key] for key in sorted(seen) if key in reached])
    return new


def _sources(settings: Settings, app: str, expected: tuple[str, ...] = ()) -> list[collect.Source]:
    """Return every store, a queue last, whichever the declaration names now: a change to another loses nothing."""
    gather = settings["gather"]
    where, host, is_copy = gather["gather_dir"], gather["host"], bool(gather["pull_from"])
    return [
        collect.Source(where, app, host, expected),
        collect.Source(where, app, host, (), "entries", ending=".json"),
        collect.Source(where, app, host, (), "queue", is_copy=is_copy),
    ]


def _tell_servers(run: Run, app: str, reached: list[Position]) -> None:
    """Publish how far an application was read, for gather-sweep on the servers."""
    content = marks.document(app, reached, time.time())
    place.publish(run.settings["gather"]["marks"], {f"{app}.json": content}, run.settings, say=run.say)


def _take_decisions(run: Run, form: Form, book: Book) -> None:
    """Take what people said of answers by the links of their letters; of several words the newest counts."""
    gather, app = run.settings["gather"], forms_moderation.app_of(form["name"])
    source = collect.Source(gather["gather_dir"], app, gather["host"])
    found = collect.look(source, book.cursor.positions(app, gather["host"]))
    for fault in found.faults:
        run.fault(f"form {form['name']}: {fault}")
    for part in found.parts:
        try:
            lines, reached = [line for line, _ in collect.records(collect.content(part), source)], part.position()
        except OSError as error:
            run.fault(f"form {form['name']}: cannot read {part.path}: {reason(error)}")
            continue
        decisions = [_decision(line) for line in lines]
        with book.cursor.transaction() as db:
            for decision in filter(None, decisions):
                book.decide(db, *decision)
            book.cursor.advance(reached)
        if bad := decisions.count(None):
            run.fault(f"form {form['name']}: cannot use {bad} line{'s' * (bad > 1)} of {part.path}: no decision")
    positions = book.cursor.positions(app, gather["host"])
    if found.seen:
        _tell_servers(run, app, [positions[key] for key in sorted(found.seen) if key in positions])


def _decision(line: bytes) -> tuple[str, str, float] | None:
    """Return id, state and time of a decision; None for a line that is none."""
    record = _record(line, id_digits=24)
    if record is None or record.get("state") not in (SHOWN, HIDDEN) or not _is_id(record.get("answer"), 32):
        return None
    # A clock that is ahead must not outlive every later word.
    return record["answer"], record["state"], min(float(record["time"]), time.time())


def _together(parts: list[Part]) -> Iterator[list[Part]]:
    """Yield parts that are read and committed together: a transaction an answer would be a wait for the disk each."""
    some: list[Part] = []
    left = TAKEN_BYTES
    for part in parts:
        if some and (left < part.end - part.start or len(some) == TAKEN_PARTS):
            yield some
            some, left = [], TAKEN_BYTES
        some.append(part)
        left -= part.end - part.start
    if some:
        yield some


def _take_parts(run: Run, form: Form, book: Book, source: collect.Source, parts: list[Part]) -> int:
    """Read parts, commit them with how far they go, and return how many answers are new."""
    read = []
    for part in parts:
        try:
            read.append((part, _records(run, form, source, part), part.position()))
        except OSError as error:
            run.fault(f"form {form['name']}: cannot read {part.path}: {reason(error)}")
    new = 0
    with book.cursor.transaction() as db:
        for part, records, reached in read:
            new += book.take(db, part.server, part.segment, records)
            book.cursor.advance(reached)
    return new


def _records(run: Run, form: Form, source: collect.Source, part: Part) -> list[dict[str, Any]]:
    """Return the records of a part."""
    records, bad = [], 0
    for line, _ in collect.records(collect.content(part), source):
        record = _record(line)
        if record is None or not forms_book.is_whole(record):
            bad += 1
            continue
        records.append(record)
    if bad:
        run.fault(f"form {form['name']}: cannot use {bad} line{'s' * (bad > 1)} of {part.path}: no record of ours")
    return records


def _record(line: bytes, id_digits: int = 32) -> dict[str, Any] | None:
    try:
        record = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    when, name = record.get("time"), record.get("id")
    # Years that a calendar has: 1970 to 9999.
    is_time = isinstance(when, int | float) and 0 <= when < 253402300800
    return record if _is_id(name, id_digits) and is_time else None


def _is_id(value: Any, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and set(value) <= set(forms_book.ID_DIGITS)


def _copy_files(run: Run, form: Form, book: Book) -> None:
    """Copy the files of answers that have them still to come, for as long as the server may have them."""
    given_up = time.time() - (run.settings["gather"]["keep_days"] + SPARE_DAYS) * DAY_S
    done = []
    for answer in book.uncopied():
        told = forms_book.sent_files(answer.record)
        faults = [fault for one in told if (fault := _copied(run.settings, form, book, answer.server, one))]
        is_last = answer.time < given_up
        for fault in faults:
            run.fault(f"form {form['name']}: {fault}{'; it is not tried again' if is_last else ''}")
        if not faults or is_last:
            done.append(answer)
    book.copied(done)


def _copied(settings: Settings, form: Form, book: Book, server: str, told: dict[str, Any]) -> str:
    """Copy a file of an answer, if it is the one that the record tells of; return what is wrong, or ""."""
    name = told["file"]
    target = f"{book.files_dir}/{name}"
    if os.path.exists(target):
        return ""
    gather = settings["gather"]
    path = f"{gather['gather_dir']}/{server}/{gather['host']}/{forms.app_of(form['name'])}.files/{name}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not book.put(name, file, told["bytes"], told["sha256"]):
                return f"cannot take {path}: it is not what was sent"
    except OSError as error:
        return f"cannot copy {path}: {reason(error)}"
    return ""


def _forget_old(run: Run, form: Form, book: Book) -> None:
    days = form["answers"]["retention_days"]
    old = book.answers("time < ?", (time.time() - days * DAY_S,))
    if old:
        # Not for good: segments that old were swept long ago, and ids of everybody are not kept for ever.
        book.remove(old, for_good=False)
        run.say(f"form {form['name']}: {len(old)} answer{'s' * (len(old) != 1)} older than {days} days removed")


def _write(run: Run, form: Form, book: Book, also_if_same: bool = False) -> None:
    """Write the results of the days that changed, and publish; the days are forgotten when all of it is done."""
    days = book.days()
    for day in days:
        answers = book.answers("day = ?", (day,))
        for ending, made in (("csv", forms_results.table), ("json", forms_results.document)):
            file = f"{book.top}/{day}.{ending}"
            if answers:
                _put(file, made(form, answers))
            else:
                forms_book.remove_file(file)
    is_first = not os.path.exists(f"{book.top}/{SUMMARY}")
    if days or is_first:
        _put(f"{book.top}/{SUMMARY}", forms_results.summary(form, book.answers(), run.settings))
    if days or is_first or also_if_same:
        _publish(run, form, book)
        with book.cursor.transaction() as db:
            db.executemany("DELETE FROM dirty WHERE day = ?", [(day,) for day in days])


def _put(file: str, content: bytes) -> None:
    try:
        files.replace(file, content, forms_book.FILE_MODE)
    except OSError as error:
        raise UnavailableError(f"cannot write {file}: {reason(error)}") from error


def _publish(run: Run, form: Form, book: Book) -> None:
    """Publish the thanks and what may be shown; what was published and may not be shown any more is removed."""
    where = "state = 'shown'" if form["answers"]["moderate"] else "state != 'hidden'"
    answers = book.answers(where) if form["answers"]["publish"] else []
    contents = forms_results.published(form, answers, run.settings, book.files_dir)
    before = {name for (name,) in book.db.execute("SELECT name FROM placed")}
    with book.cursor.transaction() as db:
        # Before it is done: a name that is remembered and not there is no harm, one that is forgotten stays for ever.
        db.executemany("INSERT OR IGNORE INTO placed VALUES (?)", [(name,) for name in contents])
    gone = sorted(before - set(contents))
    place.publish(f"{run.settings['forms']['directory']}/{form['name']}", contents, run.settings, run.say, gone)
    with book.cursor.transaction() as db:
        db.executemany("DELETE FROM placed WHERE name = ?", [(name,) for name in gone])


def _mail(run: Run, form: Form, book: Book) -> None:
    if form["answers"]["mail"] == "never":
        return
    for key, answers in book.unmailed():
        letter = forms_results.letter(form, key, answers, run.settings, book.files_dir, _links(run, form, answers))
        letters.queue(run.settings["site"]["state_dir"], letter)
        book.mailed(key)


def _links(run: Run, form: Form, answers: list[Answer]) -> dict[str, str]:
    """Return by an answer's id where a person decides of it; none where nobody has to, or nothing can be signed."""
    if not forms_moderation.is_moderated(form):
        return {}
    try:
        secret = secrets.read(run.settings["forms"]["secret"])
    except ConfigError as error:
        run.fault(f"form {form['name']}: the letter has no links to decide by: {error}")
        return {}
    return {one.id: forms_moderation.link(form["name"], one.id, one.time, run.settings, secret) for one in answers}


def _deliver(run: Run) -> None:
    try:
        done = letters.deliver(run.settings["site"]["state_dir"], run.settings["mail"])
    except InfoclusterError as error:
        run.fault(str(error))
        return
    for line in done.sent:
        run.say(line)
    for fault in (*done.waiting, *done.refused, *done.partly):
        run.fault(fault)


def _waiting(run: Run, declared: list[Form]) -> str:
    """Show what waits for a person's word."""

    def one(form: Form, book: Book) -> int:
        if not forms_moderation.is_moderated(form):
            return 0
        answers = book.answers("state = 'new'")
        for answer in answers:
            shown = [
                forms_results.text_of(answer.record.get(f["name"], "")) for f in form["fields"] if f["published"]
            ]
            said = " | ".join(text.replace("\n", " / ") for text in shown if text)
            run.say(f"{answer.id} {form['name']} {forms_results.moment(answer.time)} {said}")
        return len(answers)

    count = _each(run, declared, one)
    return f"{count} answer{'s' * (count != 1)} waiting; forms-nightly -publish ID, or -hide ID"


def _decide(run: Run, declared: list[Form], start: str, state: str) -> str:
    """Mark one answer, and publish what follows from it."""
    least = forms_book.ID_LEAST
    if len(start) < least or not set(start) <= set(forms_book.ID_DIGITS):
        raise UsageError(
            f"cannot look for {names.shown(start)}: expected {least} or more characters of an answer's id"
        )
    done: list[str] = []

    def one(form: Form, book: Book) -> int:
        answer = book.found(start)
        if answer is None:
            return 0
        if not form["answers"]["publish"]:
            raise UsageError(f"cannot publish {answer.id}: the form {form['name']} publishes nothing")
        with book.cursor.transaction() as db:
            book.decide(db, answer.id, state, time.time())
        _write(run, form, book)
        done.append(f"{answer.id} of {form['name']}: {state}")
        return 1

    _each(run, declared, one)
    if not done and not run.faults:
        raise UsageError(f"cannot find the answer {names.shown(start)}: there is none whose id begins so")
    return f"{'; '.join(done)}; to be pushed: {run.settings['forms']['directory']}" if done else ""


def _erase(run: Run, declared: list[Form], asked: str) -> str:
    """Remove every answer that has a value in a field, everywhere it is derived, and say what remains where."""
    field_name, equals, value = asked.partition("=")
    if not (equals and field_name and value.strip()):
        raise UsageError(f"cannot erase {names.shown(asked)}: expected FIELD=VALUE")
    wanted = value.strip().casefold()
    fields = {field["name"] for form in declared for field in form["fields"]}
    if run.settings["gather"]["pull_from"]:
        run.say("only what gather-pull has fetched is looked at: run it before this, for all servers")

    def one(form: Form, book: Book) -> int:
        # First what nobody has read yet: it would come back tonight.
        _take_in(run, form, book)
        answers = book.answers()
        # By what was answered, not by what is declared now: answers outlive a field and a form.
        fields.update(*(answer.record for answer in answers))
        gone = [answer for answer in answers if _has(answer, field_name, wanted)]
        _take_back_letters(run, book, {answer.letter for answer in gone} - {""})
        book.remove(gone, for_good=True)
        _write(run, form, book)
        for line in _remaining(run, form, gone):
            run.say(line)
        return len(gone)

    count = _each(run, declared, one)
    if field_name not in fields and not run.faults:
        raise UsageError(f"cannot erase {names.shown(asked)}: no form has, and no answer had, such a field")
    return (
        f"{count} answer{'s' * (count != 1)} erased on this host; to be pushed: {run.settings['forms']['directory']}"
        if count or run.faults
        else "no answer has that value"
    )


def _has(answer: Answer, field_name: str, wanted: str) -> bool:
    value = answer.record.get(field_name)
    if isinstance(value, list):
        return any(isinstance(item, str) and item.casefold() == wanted for item in value)
    return forms_results.text_of(value or "").casefold() == wanted


def _take_back_letters(run: Run, book: Book, keys: set[str]) -> None:
    """Take back letters that wait still; what else was in them will be in another one. Say which have gone."""
    top = run.settings["site"]["state_dir"] + "/letters"
    domain = run.settings["mail"]["from"].rpartition("@")[2].rstrip("> ")
    for key in sorted(keys):
        digest = hashlib.sha256(f"<{key}@{domain or 'localhost'}>".encode()).hexdigest()[:16]
        waiting = [*glob.glob(f"{top}/*-{digest}.eml"), *glob.glob(f"{top}/refused/*-{digest}.eml")]
        for file in waiting:
            forms_book.remove_file(file)
        if waiting:
            with book.cursor.transaction() as db:
                db.execute("UPDATE answers SET letter = '' WHERE letter = ?", (key,))
                db.execute("DELETE FROM letters WHERE key = ?", (key,))
        else:
            run.say(f"a letter with it was sent: its Message-ID begins with <{key}@; nothing can take that back")


def _remaining(run: Run, form: Form, gone: list[Answer]) -> list[str]:
    """Return a line for each file on a server that still holds what was erased, which several may: a double click."""
    settings, app = run.settings, forms.app_of(form["name"])
    gather = settings["gather"]
    copy = "; the copy here goes a day later" if gather["pull_from"] else ""
    ids = {answer.id for answer in gone}
    held, sent = set(), set()
    for source in _sources(settings, app) if ids else ():
        for part in collect.look(source, {}).parts:
            try:
                content = collect.content(part)
            except FileNotFoundError:  # swept, or consumed, meanwhile
                continue
            except OSError as error:
                run.fault(f"cannot tell whether {part.path} holds it: {reason(error)}")
                continue
            if any(one.encode() in content for one in ids):
                held.add((part.server, part.segment))
    for file in glob.glob(f"*/{gather['host']}/{app}.files/*", root_dir=gather["gather_dir"]) if ids else ():
        server, name = file.partition("/")[0], os.path.basename(file)
        if name.partition("-")[0] in ids:
            sent.add((server, name))
    when = f"until gather-sweep drops it, {gather['keep_days']} days after its day{copy}"
    return [
        *(f"{server}: {app}/{segment} holds it {when}" for server, segment in sorted(held)),
        *(f"{server}: {app}.files/{name} stays until gather-sweep drops it{copy}" for server, name in sorted(sent)),
    ]
