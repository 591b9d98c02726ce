# SPDX-License-Identifier: Apache-2.0
"""What a server's tree lacks of a listing, found out by one question: the server lists itself, once.

1. All of a listing is written as items, one for each file, link and directory, once for all servers.
2. The server is asked with `script`, which find(1) answers in the same items. It hashes them in their order first:
   where nothing differs, all that it sends back is one word.
3. Otherwise it sends its items, and `difference` is what only one of the two has: what is to be put and removed.

Shape: items end in a null byte; the paths in them are relative to the tree and begin with ``./``::

    f644 8211 1763838251.2500000000 ./world/sample/a page.html     file: mode, bytes, mtime
    l./world/old.html//https://www.example.edu/new.html            link: no path has two slashes
    d755 ./world/sample                                            directory
    o./world/pipe                                                  anything else
    p./world                                                       a directory above a named path, or ``p./.``

Source: find(1) of GNU findutils, sort(1), sha256sum(1).
"""

import os
import shlex
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from infocluster.errors import UnavailableError
from infocluster.push.servers import Server
from infocluster.trees import ABSENT, WHOLE_SECOND_NS, Action, Directory, Listing

SAME = b"same"
NO_DESTINATION = 97
# The item of the destination itself; where find cannot print it, it can print no other.
_IS_GNU = b"p./."
END = b"end"

_ABOVE = r"-maxdepth 0 -type d -printf 'p%p\0'"
_FILES = r"-type f -printf 'f%m %s %T@ %p\0' -o -type l -printf 'l%p//%l\0' -o -printf 'o%p\0'"

_BUILDING = threading.Lock()


class Items:
    """A listing as items, and what was worked out of them once for all servers that need it.

    Attributes:
        all: the items.
        digest: of all of them in their order, as sha256sum tells it.
        installs: the actions that put them where they are missing.
        archives: see `archives`.
        compared: an answer, and what it was found to lack; ``comparing`` is held meanwhile.
    """

    __slots__ = ("all", "archives", "compared", "comparing", "digest", "installs")

    def __init__(self, every: frozenset[bytes]) -> None:
        self.all = every
        self.digest: str | None = None
        self.installs: dict[bytes, Action] | None = None
        self.compared: tuple[bytes, Difference | None] | None = None
        self.comparing = threading.Lock()
        self.archives: dict[tuple[str, ...], bytes | None] = {}


class Difference(NamedTuple):
    """What is to be done on a server.

    Attributes:
        put: each file, link and directory to put in place.
        removals: each thing to remove, what is in a directory before it.
        outermost: the tree paths of these that no other of them, and nothing that is put, has below itself.
        kept: each thing that stays though it is not in the listing, see `Listing.leave`.
    """

    put: list[Action]
    removals: list[Action]
    outermost: list[str]
    kept: list[Action]

    def actions(self) -> Iterator[Action]:
        """Yield all that is to be done, and what stays."""
        yield from self.put
        yield from self.removals
        yield from self.kept


def items(listing: Listing) -> Items:
    """Return a listing as items; they are built once, whoever asks first."""
    with _BUILDING:
        if not isinstance(listing.worked_out, Items):
            listing.worked_out = _items(listing)
        return listing.worked_out


def preamble(destination: str) -> list[str]:
    """Return how a question to a POSIX shell begins: what exits with NO_DESTINATION where that is not there."""
    return ["LC_ALL=C", "export LC_ALL", f"cd {shlex.quote(destination)}/ 2>/dev/null || exit {NO_DESTINATION}"]


def told(listing: Listing, paths: list[str]) -> list[str]:
    """Return the commands that tell what a server has: above the paths of a listing, then at them.

    Where no directory is among these, one command tells both, and does not look into one that is there.
    """
    above = [".", *_partial(listing.top, "./")]
    if not any(item.startswith(b"d") for item in items(listing).all):
        return [_find([*above, *paths], _ABOVE, _FILES)]
    return [_find(above, _ABOVE), _find(paths, r"-type d -printf 'd%m %p\0'", _FILES)]


def script(listing: Listing, paths: list[str], destination: str) -> bytes:
    """Return what a POSIX shell on the server reads to compare a destination with a listing.

    It exits with NO_DESTINATION where that is not there. The listing has a directory that is pushed as a whole.
    """
    start = "\n".join(preamble(destination))
    above, there = told(listing, paths)
    text = f"""
{start}
above() {{
    {above}
}}
items() {{
    {there}
    printf {END.decode()}
}}
kept=$(mktemp 2>/dev/null) || {{ above; items; exit 0; }}
trap 'rm -f "$kept"' 0 1 2 13 15
items >"$kept"
case $(sort -z "$kept" 2>/dev/null | sha256sum 2>/dev/null) in
    {_digest(items(listing))}*) printf same ;;
    *) above; cat "$kept" ;;
esac
"""
    return text.encode("utf-8", "surrogateescape")


def no_destination(server: Server) -> UnavailableError:
    """Return the error for a server that ended with NO_DESTINATION."""
    return UnavailableError(f"cannot open {server.destination}: no such directory on {server.name}")


def difference(listing: Listing, answer: bytes) -> Difference | None:
    """Return what a server's answer lacks of a listing and has beyond it; None where the answer is not whole."""
    if answer == SAME:
        return Difference([], [], [], [])
    wanted = items(listing)
    with wanted.comparing:
        # Most servers have the same.
        if wanted.compared is None or wanted.compared[0] != answer:
            wanted.compared = answer, _difference(listing, wanted, answer)
        return wanted.compared[1]


def _difference(listing: Listing, wanted: Items, answer: bytes) -> Difference | None:
    result = Difference([], [], [], [])
    *lines, end = answer.split(b"\0")
    theirs = frozenset(lines)
    above = [os.fsencode(path) for path in _partial(listing.top, "./")]
    asked = {b"p" + path for path in above} | {_IS_GNU}
    if end != END or _IS_GNU not in theirs or any(item[:1] == b"p" and item not in asked for item in theirs):
        return None
    only_theirs = theirs - wanted.all
    there = {_path(item): item for item in only_theirs}
    replaced = set()
    put_paths = set()
    installs = _installs(wanted)
    for item in wanted.all - theirs:
        action = installs[item]
        if there:
            path = _path(item)
            put_paths.add(path)
            old = there.get(path)
            if old is not None:
                if _is_same(old, item):
                    continue
                action = action._replace(verb="update")
                if old[:1] == b"d" != item[:1]:
                    replaced.add(path)
        result.put.append(action)
    if result.put:
        result.put.extend(Action("install", _text(path), True) for path in above if b"p" + path not in theirs)
        result.put.sort(key=lambda action: action.path)
    gone = {path: item for path, item in there.items() if item[:1] != b"p" and path not in put_paths}
    _take_away(listing, result, gone, replaced)
    return result


def _take_away(listing: Listing, result: Difference, gone: dict[bytes, bytes], replaced: set[bytes]) -> None:
    """Add to a difference what becomes of that which only the server has, items by path."""
    left = {os.fsencode("./" + path) for path, _ in listing.left}
    stays = set()
    for path in gone:
        if left and not left.isdisjoint(_with_above(path)):
            stays.add(path)
        elif listing.leave and (why := listing.stays(_text(path))):
            result.kept.append(Action("keep", _text(path), reason=why))
            stays.update(_with_above(path))
    going = gone.keys() - stays
    for path in sorted(going):
        if not any(above in going or above in replaced for above in _above(path)):
            result.outermost.append(_text(path))
    for path in sorted(going, reverse=True):
        result.removals.append(Action("remove", _text(path), gone[path][:1] == b"d"))


def _items(listing: Listing) -> Items:
    return Items(frozenset(text.encode("utf-8", "surrogateescape") for text in _texts(listing.top, "./")))


def _digest(wanted: Items) -> str:
    import hashlib

    with _BUILDING:
        if wanted.digest is None:
            wanted.digest = hashlib.sha256(b"".join(item + b"\0" for item in sorted([*wanted.all, END]))).hexdigest()
        return wanted.digest


def _installs(wanted: Items) -> dict[bytes, Action]:
    with _BUILDING:
        if wanted.installs is None:
            wanted.installs = {item: _install(item) for item in wanted.all}
        return wanted.installs


def _install(item: bytes) -> Action:
    size = int(item.split(b" ", 2)[1]) if item[:1] == b"f" else 0
    return Action("install", _text(_path(item)), item[:1] == b"d", size)


def _texts(node: Directory, prefix: str) -> Iterator[str]:
    for name, (mode, size, mtime_ns, text) in node.entries.items():
        if text:
            yield f"l{prefix}{name}//{text}"
        else:
            seconds, rest = divmod(mtime_ns, WHOLE_SECOND_NS)
            yield f"f{mode & 0o777:o} {size} {seconds}.{rest:09d}0 {prefix}{name}"
    for name, below in node.directories.items():
        path = prefix + name
        if below.whole:
            yield f"d{below.mode & 0o777 | 0o700:o} {path}"
        yield from _texts(below, path + "/")


def _partial(node: Directory, prefix: str) -> Iterator[str]:
    for name, below in node.directories.items():
        if not below.whole and below.mode != ABSENT:
            yield prefix + name
            yield from _partial(below, prefix + name + "/")


def _find(paths: Iterable[str], *tests: str) -> str:
    words = " ".join(shlex.quote(path if path.startswith("./") else "./" + path) for path in paths)
    return f"find {words} {' -o '.join(tests)} </dev/null 2>/dev/null"


def _path(item: bytes) -> bytes:
    kind = item[:1]
    if kind == b"f":
        return item.split(b" ", 3)[3]
    if kind == b"d":
        return item.split(b" ", 1)[1]
    return item[1:].partition(b"//")[0]


def _is_same(old: bytes, new: bytes) -> bool:
    """Tell whether a server that keeps whole seconds has all of a file that it can have."""
    if not old[:1] == new[:1] == b"f":
        return False
    mode, size, mtime, _ = old.split(b" ", 3)
    new_mode, new_size, new_mtime, _ = new.split(b" ", 3)
    seconds, _, rest = mtime.partition(b".")
    is_whole = not rest.strip(b"0")
    return is_whole and (mode, size, seconds) == (new_mode, new_size, new_mtime.partition(b".")[0])


def _above(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def _with_above(path: bytes) -> Iterator[bytes]:
    yield path
    yield from _above(path)


def _text(path: bytes) -> str:
    return os.fsdecode(path[2:])
