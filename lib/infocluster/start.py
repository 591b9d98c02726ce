# SPDX-License-Identifier: Apache-2.0
"""One read in place of twenty: the modules that a hit loads at its start, out of one file.

Each ordinary import of one of our small modules costs a hit about as much as running it: a look at the
directory, an open, two reads. ``make install`` therefore writes a file for each program of cgi-bin/, such as
``PREFIX/lib/compiled/survey_cgi.py``: the text of this module, a table, and a call of `serve`. The installed program
imports that module first; from then on our own modules come from the table, each only while its source is what the
table was made from. An edited module takes effect at once, at the price of its ordinary import.

`begin` also runs the modules that the program needs in any case, each after those it imports: that spares the import
system's own work, which for twenty small modules is half of theirs.

Shape: ``TABLE = {"infocluster.files": ("/opt/infocluster/lib/infocluster/files.py", 3881, 1795384800000000000, False,
    b"\\xe3\\x00...")}``: a module's source file, its size in bytes and mtime in ns, whether it is a package, its
    marshalled code, without docstrings.
    ``begin(SERVED, ("infocluster", "infocluster.errors", ...))``: what the program needs, in order.

The table holds code of one version of Python: another one leaves it alone. Nothing is imported here but what every
interpreter has loaded or built in.

Source: The import system, Python language reference; marshal, Python library reference.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    Table = dict[str, tuple[str, int, int, bool, bytes]]


class Served:
    """Finder and loader of the modules in a table.

    Attributes:
        table: see Shape above.
    """

    __slots__ = ("table",)

    def __init__(self, table: "Table") -> None:
        self.table = table

    def find_spec(
        self, name: str, _path: "Sequence[str] | None" = None, _target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        """Return where a module comes from, or None where the ordinary import has to find it."""
        entry = self.table.get(name)
        if entry is None:
            return None
        file, size, mtime_ns, is_package, _ = entry
        try:
            status = posix.stat(file)
        except OSError:
            return None
        if status.st_size != size or status.st_mtime_ns != mtime_ns:
            return None
        spec = ModuleSpec(name, self, origin=file, is_package=is_package)  # type: ignore[arg-type] # by protocol
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(file.rpartition("/")[0])
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave the making of the module object to the interpreter."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run a module's code."""
        exec(marshal.loads(self.table[module.__name__][4]), module.__dict__)  # noqa: S102, S302 (our own code)

    def run(self, name: str) -> bool:
        """Import a module whose own imports were run before; return False where the ordinary import has to."""
        spec = self.find_spec(name)
        if spec is None:
            return False
        module = type(sys)(name)
        variables = module.__dict__
        variables["__spec__"] = spec
        variables["__loader__"] = self
        variables["__file__"] = spec.origin
        variables["__package__"] = spec.parent
        if spec.submodule_search_locations is not None:
            variables["__path__"] = spec.submodule_search_locations
        sys.modules[name] = module
        self.exec_module(module)
        parent, _, own_name = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own_name, module)
        return True


def serve(table: "Table", tag: str) -> "Served | None":
    """Serve modules from a table, before any other finder, if its code is this interpreter's.

    Args:
        table: see Shape above.
        tag: the interpreter that the code was made for, as `sys.implementation.cache_tag`.
    """
    if tag != sys.implementation.cache_tag:
        return None
    served = Served(table)
    sys.meta_path.insert(0, served)
    return served


def begin(served: "Served | None", modules: "tuple[str, ...]") -> None:
    """Run what a program needs in any case, up to the first module that was edited.

    Args:
        served: what `serve` returned.
        modules: their names, each behind those it imports.
    """
    if served is not None:
        for name in modules:
            if not served.run(name):
                return
