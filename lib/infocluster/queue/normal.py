# SPDX-License-Identifier: Apache-2.0
"""The normal directory queue: a directory an element, a file a field; what SSM2's receiver writes.

Shape: ``TOP/NNNNNNNN/SSSSSSSSMMMMMR/FIELD``, such as ``incoming/00000000/6b0365e03d090b/body``. ``NNNNNNNN`` is an
    intermediate directory: a number of 8 hexadecimal digits that begins at 0; the next one is begun when the last
    holds `elements_limit` elements, or none. The element's name is its time as in the simple queue. A directory
    ``locked`` in it is its lock; the time of the lock is the element's mtime. ``TOP/temporary`` holds elements that
    are being added, ``TOP/obsolete`` those that are being removed: all move by rename(2), so nobody sees a part.

    A field is ``binary`` (bytes), ``string`` (text in UTF-8) or ``table`` (names to texts), one a line as
    ``name TAB value LF`` in the order of the names, with ``\\\\``, ``\\t`` and ``\\n`` for a backslash, TAB and LF.

What holds for the simple queue (see `simple`) holds here: lost races are answers, real errors are raised at once and
leave nothing behind, `remove` and `unlock` act on the lock that this object took.

RACE, known and left: a consumer that is held up between `remove`'s look at its lock and the rename that follows,
until a purge breaks the lock for its age, takes an element that somebody else may have locked by then.

Source: Directory::Queue::Normal and python-dirq documentation; rename(2).
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping

from infocluster import files
from infocluster.errors import BadInputError, ConfigError, UnavailableError, reason
from infocluster.queue import simple

Value = bytes | str | dict[str, str]

TYPES = ("binary", "string", "table")
ELEMENTS_LIMIT = 16000
TEMPORARY = "temporary"
OBSOLETE = "obsolete"
LOCKED = "locked"
# What SSM2 writes: `incoming` has no error, `reject` has one.
SSM_SCHEMA = {"body": "string", "signer": "string?", "empaid": "string?", "error": "string?"}

# How often an element that is being removed may be locked by others, before that is a fault.
_ATTEMPTS = 100


class Normal(simple.Queue):
    """One queue. Nothing on the disk is touched before it is used; a queue that is not there yet is empty.

    Args:
        path: its top directory; made by the first addition where it is missing.
        schema: field to type; a ``?`` behind the type says that an element may lack it. None to move elements only.
        umask: the umask of what is made, such as 0o007; None for the process' own, which is never changed.
        elements_limit: elements of one intermediate directory.
        durable: whether an element is on the disk before `add` returns.
        digit: the last digit of names, 0 to 15; by default a random one.
        clock: what tells the time, in Unix seconds.

    Raises:
        ConfigError: the schema is none.
    """

    lock_suffix = f"/{LOCKED}"

    def __init__(
        self,
        path: str,
        schema: Mapping[str, str] | None = None,
        umask: int | None = None,
        elements_limit: int = ELEMENTS_LIMIT,
        durable: bool = False,
        digit: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, umask, durable, simple.Names(digit, clock))
        self.types: dict[str, str] = {}
        self.optional: set[str] = set()
        for field, declared in (schema or {}).items():
            kind = declared.rstrip("?*")
            if not _is_field(field) or kind not in TYPES:
                raise ConfigError(f"cannot use the field {field!r} of type {declared!r} in a queue")
            self.types[field] = kind
            if "?" in declared:
                self.optional.add(field)
        if self.types and not self.types.keys() - self.optional:
            raise ConfigError(f"cannot use the queue {path}: an element may lack every field")
        self._elements_limit = elements_limit

    def add(self, data: Mapping[str, Value]) -> str:
        """Add an element and return its name, such as ``00000000/6b0365e03d090b``.

        Args:
            data: field to value, as the schema has them.

        Raises:
            BadInputError: a field is missing, unknown or of another type.
            UnavailableError: it could not be added, and nothing of it is left.
        """
        contents = self._encoded(data)
        return self._retried("", lambda: self._added(contents))

    def lock(self, name: str) -> bool:
        """Lock an element; False where somebody else has it, where it is gone, or where it is no directory.

        Raises:
            UnavailableError: the file system refuses.
        """
        element = f"{self.path}/{name}"
        try:
            os.mkdir(f"{element}/{LOCKED}")
            # RACE: its holder renamed it between our mkdir and this look: our lock went with it.
            self._held[name] = os.lstat(element).st_mtime_ns
            return True
        except (FileExistsError, FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise UnavailableError(f"cannot lock {element}: {reason(error)}") from error

    def get(self, name: str) -> dict[str, Value] | None:
        """Return the fields of an element that we locked; None where our lock on it has ended.

        Raises:
            BadInputError: a field is missing or not what the schema says.
            UnavailableError: it cannot be read.
        """
        try:
            if not self._is_ours(name):
                return None
        except OSError as error:
            raise UnavailableError(f"cannot look at {self.path}/{name}: {reason(error)}") from error
        found: dict[str, Value] = {}
        for field, kind in self.types.items():
            path = f"{self.path}/{name}/{field}"
            try:
                content = _read(path)
            except FileNotFoundError:
                if field not in self.optional:
                    raise BadInputError(f"cannot read {path}: the element lacks this field") from None
                continue
            except OSError as error:
                raise UnavailableError(f"cannot read {path}: {reason(error)}") from error
            try:
                found[field] = _decoded(content, kind)
            except ValueError as error:
                raise BadInputError(f"cannot read {path}: {error}") from error
        return found

    def remove(self, name: str) -> bool:
        """Remove an element that we locked, for good.

        Returns:
            False where it is not locked, or its lock is not the one that we took: the element stays then.

        Raises:
            UnavailableError: the file system refuses.
        """
        try:
            if not self._is_ours(name):
                return False
            while True:
                obsolete = f"{self.path}/{OBSOLETE}/{self._names.next()[1]}"
                try:
                    os.rename(f"{self.path}/{name}", obsolete)
                    break
                except OSError as error:
                    if not os.path.lexists(obsolete):
                        if not isinstance(error, FileNotFoundError) or not os.path.lexists(f"{self.path}/{name}"):
                            raise
                        simple.make_directory(f"{self.path}/{OBSOLETE}", self.umask)
            _clear(obsolete)
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UnavailableError(f"cannot remove {self.path}/{name}: {reason(error)}") from error
        finally:
            self._held.pop(name, None)

    def location(self, name: str) -> str:
        """Return the path of an element: a directory of its fields."""
        return f"{self.path}/{name}"

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the elements in their order, locked ones too.

        Raises:
            UnavailableError: a directory cannot be read.
        """
        for directory in self._directories():
            for element in sorted(self._elements(directory)):
                yield f"{directory}/{element}"

    def locked(self, refused: Callable[[str], None] | None = None) -> Iterator[str]:
        """Yield elements that were just locked for the caller, who removes or unlocks each before the next.

        Args:
            refused: told of each element that this user may not lock, and the walk goes on; None for an error.

        Raises:
            UnavailableError: a directory cannot be read, or the file system refuses a lock.
        """
        return (name for name in self if self._is_taken(name, refused))

    def count(self) -> int:
        """Return how many elements there are, locked ones too.

        Raises:
            UnavailableError: a directory cannot be read.
        """
        return sum(len(self._elements(directory)) for directory in self._directories())

    def purge(
        self, temporary_age_s: float = simple.TEMPORARY_AGE_S, lock_age_s: float = simple.LOCK_AGE_S
    ) -> tuple[int, int, int]:
        """Remove what died: elements never finished or half removed, locks whose holders are gone, empty directories.

        Args:
            temporary_age_s: seconds after which an unfinished element goes; 0 for never.
            lock_age_s: seconds after which a lock goes; 0 for never.

        Returns:
            How many unfinished elements and directories, locks, and empty directories were removed.

        Raises:
            UnavailableError: something may not be read or removed.
        """
        temporaries = locks = emptied = 0
        now = time.time()
        try:
            directories = self._directories()
            for directory in directories[:-1]:
                try:
                    os.rmdir(f"{self.path}/{directory}")
                    emptied += 1
                except OSError:  # it holds something, or went by another's hand; what may not be removed may stay
                    continue
            if temporary_age_s:
                temporaries += simple.purge_unfinished(self.path, now - temporary_age_s)
                for below in (TEMPORARY, OBSOLETE):
                    for element in self._elements(below):
                        path = f"{self.path}/{below}/{element}"
                        if _is_older(path, now - temporary_age_s):
                            _clear(path)
                            temporaries += 1
            if lock_age_s:
                for name in self:
                    path = f"{self.path}/{name}"
                    if os.path.lexists(path + self.lock_suffix) and _is_older(path, now - lock_age_s):
                        locks += self._end_lock(path)
        except OSError as error:
            raise UnavailableError(f"cannot purge the queue {self.path}: {reason(error)}") from error
        return temporaries, locks, emptied

    def _added(self, contents: dict[str, bytes]) -> str:
        """Add an element and return its name; "" where a directory vanished meanwhile."""
        try:
            temporary = self._made_temporary()
            try:
                for field, content in contents.items():
                    self._write(f"{temporary}/{field}", content)
                if self.durable:
                    files.sync_directory(temporary)
                return self._placed(temporary)
            except BaseException:
                _clear(temporary)
                raise
        except FileNotFoundError:
            # RACE: another library's purge takes a directory that has no field in it yet, however new it is.
            os.stat(self.path)
            return ""

    def _encoded(self, data: Mapping[str, Value]) -> dict[str, bytes]:
        if not self.types:
            raise BadInputError(f"cannot add to the queue {self.path}: it was opened without a schema")
        for field in self.types.keys() - self.optional - data.keys():
            raise BadInputError(f"cannot add to the queue {self.path}: the field {field} is missing")
        encoded = {}
        for field, value in data.items():
            kind = self.types.get(field)
            if kind == "binary" and isinstance(value, bytes):
                encoded[field] = value
            elif kind == "string" and isinstance(value, str):
                encoded[field] = value.encode("utf-8")
            elif kind == "table" and isinstance(value, dict):
                encoded[field] = table(value)
            else:
                raise BadInputError(
                    f"cannot add to the queue {self.path}: the field {field!r} is {kind or 'not in the schema'}, "
                    f"and the value is of type {type(value).__name__}"
                )
        return encoded

    def _made_temporary(self) -> str:
        temporary = f"{self.path}/{TEMPORARY}/{self._names.next()[1]}"
        while True:
            try:
                os.mkdir(temporary)
                if self.umask is not None:
                    os.chmod(temporary, os.stat(temporary).st_mode & 0o7000 | 0o777 & ~self.umask)
                return temporary
            except FileExistsError:
                temporary = f"{self.path}/{TEMPORARY}/{self._names.next()[1]}"
            except FileNotFoundError:
                if not os.path.lexists(self.path):
                    simple.make_top(self.path, self.umask, self.durable)
                for below in (TEMPORARY, OBSOLETE):
                    simple.make_directory(f"{self.path}/{below}", self.umask)
                os.stat(os.path.dirname(temporary))

    def _write(self, path: str, content: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            files.write_all(fd, content)
            if self.umask is not None:
                os.fchmod(fd, 0o666 & ~self.umask)
            if self.durable:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _placed(self, temporary: str) -> str:
        """Move a whole element to where it is seen, and return its name."""
        own = os.path.basename(temporary)
        while True:
            directory = self._insertion_directory()
            name = f"{directory}/{own}"
            try:
                os.rename(temporary, f"{self.path}/{name}")
                break
            except OSError:
                # RACE: a purge took the directory, or another adder the name: both are there to be seen.
                if os.path.isdir(f"{self.path}/{directory}") and not os.path.lexists(f"{self.path}/{name}"):
                    raise
                os.stat(temporary)
                own = self._names.next()[1]
        if self.durable:
            try:
                files.sync_directory(f"{self.path}/{directory}")
                files.sync_directory(self.path)
            except FileNotFoundError:
                pass  # the consumer was as fast as that, and a purge took the directory
        return name

    def _insertion_directory(self) -> str:
        """Return the last intermediate directory, or the next one where that is full, empty or none."""
        directories = self._directories()
        number = 0
        if directories:
            try:
                held = os.stat(f"{self.path}/{directories[-1]}").st_nlink - 2
            except FileNotFoundError:
                held = 0
            # Some file systems do not count directories in the number of links.
            if held < 0:
                held = len(self._elements(directories[-1]))
            if 0 < held < self._elements_limit:
                return directories[-1]
            number = int(directories[-1], 16) + 1
        simple.make_directory(f"{self.path}/{number:08x}", self.umask)
        return f"{number:08x}"

    def _is_ours(self, name: str) -> bool:
        element = f"{self.path}/{name}"
        try:
            return name in self._held and (
                os.lstat(element).st_mtime_ns == self._held[name]
                and stat.S_ISDIR(os.lstat(element + self.lock_suffix).st_mode)
            )
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _set_time(self, name: str) -> int:
        os.utime(f"{self.path}/{name}")
        return os.lstat(f"{self.path}/{name}").st_mtime_ns

    def _end_lock(self, element: str) -> bool:
        return _is_gone(element + self.lock_suffix)

    def _directories(self) -> list[str]:
        return sorted(self._named(self.path, 8))

    def _elements(self, directory: str) -> list[str]:
        return self._named(f"{self.path}/{directory}", 14)

    def _named(self, path: str, digits: int) -> list[str]:
        """Return the names of so many digits that directories in a directory have; nothing where it is gone."""
        try:
            with os.scandir(path) as entries:
                return [
                    entry.name
                    for entry in entries
                    if simple.is_number(entry.name, digits) and entry.is_dir(follow_symlinks=False)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UnavailableError(f"cannot read the queue {path}: {reason(error)}") from error


def table(values: Mapping[str, str]) -> bytes:
    """Return a table as it is stored.

    Raises:
        BadInputError: a name or value is no text.
    """
    lines = []
    for name in sorted(values):
        if not isinstance(name, str) or not isinstance(values[name], str):
            raise BadInputError(f"cannot store {name!r} in a table: its value is no text")
        lines.append(f"{_escaped(name)}\t{_escaped(values[name])}\n")
    return "".join(lines).encode("utf-8")


def parse_table(text: str) -> dict[str, str]:
    """Return a stored table; of a name that stands in it twice, the last value.

    Raises:
        ValueError: a line is none of a table.
    """
    values = {}
    for line in text.strip("\n").split("\n") if text else []:
        name, tab, value = line.partition("\t")
        if not tab or "\t" in value:
            raise ValueError(f"no line of a table: {line!r}")
        values[_unescaped(name)] = _unescaped(value)
    return values


def is_normal(path: str) -> bool:
    """Tell whether a directory is a normal queue: it has the two directories that a simple one has not."""
    return all(os.path.isdir(f"{path}/{below}") for below in (TEMPORARY, OBSOLETE))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _unescaped(text: str) -> str:
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\t", "\t").replace("\\n", "\n") for part in parts)


def _decoded(content: bytes, kind: str) -> Value:
    if kind == "binary":
        return content
    text = content.decode("utf-8")
    return parse_table(text) if kind == "table" else text


def _is_field(text: str) -> bool:
    return text.isascii() and text.isalnum()


def _read(path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read()


def _is_older(path: str, when: float) -> bool:
    try:
        return os.lstat(path).st_mtime < when
    except FileNotFoundError:
        return False


def _is_gone(path: str) -> bool:
    """Remove a lock; False where there is none, or something else of its name."""
    try:
        os.rmdir(path)
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def _clear(path: str, attempts: int = _ATTEMPTS) -> None:
    """Remove an element's directory with what is in it; what another process removes meanwhile is no fault."""
    try:
        with os.scandir(path) as entries:
            for entry in list(entries):
                try:
                    if entry.is_dir(follow_symlinks=False):
                        os.rmdir(entry.path)
                    else:
                        os.unlink(entry.path)
                except FileNotFoundError:
                    continue
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        # RACE: who was about to lock it when we renamed it has made his lock here; he finds that it is gone.
        if error.errno != errno.ENOTEMPTY or not attempts:
            raise
        _clear(path, attempts - 1)
