# SPDX-License-Identifier: Apache-2.0
"""A site to be measured: an installed tree under Apache and mod_cgid, with our programs beside its own."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apache import Apache, apache
from bench import measure

FLOOR = "floor: Python -IS, a header, _exit"


@contextmanager
def laid_out(*programs: str) -> Iterator[Path]:
    """Make a site's directories, ``tree``, ``gather``, ``etc`` and ``programs``, with copies of our programs."""
    with tempfile.TemporaryDirectory() as top:
        site = Path(top)
        site.chmod(0o755)
        for name in ("tree", "gather", "etc", "programs"):
            (site / name).mkdir()
        for name in programs:
            shutil.copy(Path(__file__).resolve().parent / name, site / "programs" / name)
        yield site


@contextmanager
def serving(tree: Path, site: Path) -> Iterator[Apache]:
    """Serve a site; our programs are below ``/bench/``, and its settings, where it has some, are everybody's."""
    programs, conf = site / "programs", site / "etc/infocluster.toml"
    extra = f'ScriptAlias /bench/ "{programs}/"\n<Directory "{programs}">\nRequire all granted\n</Directory>\n'
    if conf.exists():
        extra += f'SetEnv INFOCLUSTER_CONF "{conf}"'
    with apache(tree, site / "tree", site / "gather", site / "run", extra) as server:
        yield server


def print_one_client(times: dict[str, list[float]], rounds: int) -> None:
    """Print what one client saw of each program, beside the first."""
    floor = next(iter(times.values()))
    print(f"one client, {rounds} rounds in turn, to the end of the message; ratio to the floor")
    print(measure.HEAD)
    for name, seconds in times.items():
        print(measure.row(name, seconds, floor))
