# SPDX-License-Identifier: Apache-2.0
"""A whole site in a temporary directory: three servers, production and development trees, settings."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_ROOT = "needs root"


@dataclass
class Reply:
    """What a CGI program answered."""

    status: int
    fields: dict[str, str]
    body: bytes
    errors: str
    exit_status: int


@dataclass
class Site:
    """A site; every program runs as a real process with only this site's environment."""

    root: Path
    servers: tuple[str, ...] = ("web1", "web2", "web3")

    @property
    def conf_file(self) -> Path:
        return self.root / "etc/infocluster.toml"

    @property
    def production(self) -> Path:
        return self.root / "var/www"

    @property
    def state(self) -> Path:
        return self.root / "var/state"

    def gather(self, server: str = "web1") -> Path:
        return self.root / "var/gather" / server / "www"

    def delivered(self, server: str) -> Path:
        return self.root / "var/servers" / server / "www"

    def build(self) -> "Site":
        for directory in ("etc", "var/www/world", "var/wwwdev/world/survey", "var/wwwudev", "var/state"):
            (self.root / directory).mkdir(parents=True)
        for server in self.servers:
            self.gather(server).mkdir(parents=True)
            self.delivered(server).mkdir(parents=True)
        self.protect("world/survey", "*.html\n*.json\n*.csv\n")
        self.configure()
        return self

    def protect(self, directory: str, rules: str) -> None:
        (self.root / "var/wwwdev" / directory / ".wwwinstrc").write_text(rules)

    def configure(self, text: str = "") -> None:
        """Write the settings: this text, and the three servers behind it."""
        servers = "".join(
            f'[[servers]]\nname = "{name}"\ndestination = "{self.delivered(name)}"\n' for name in self.servers
        )
        self.conf_file.write_text(text + "\n" + servers)

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "INFOCLUSTER_CONF": str(self.conf_file),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }

    def batch(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of batch/ to its end."""
        return subprocess.run(
            [sys.executable, str(ROOT / "batch" / program), *arguments],
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )

    def cgi(
        self,
        program: str,
        method: str = "GET",
        body: bytes = b"",
        server: str = "web1",
        under: tuple[str, ...] = (),
        **variables: str,
    ) -> Reply:
        """Run a program of cgi-bin/ with an exact RFC 3875 environment, `under` another command if one is given."""
        environment = self.environment(
            **{
                "GATEWAY_INTERFACE": "CGI/1.1",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "SERVER_NAME": "localhost",
                "SERVER_PORT": "80",
                "REQUEST_METHOD": method,
                "SCRIPT_NAME": f"/cgi-bin/{program}",
                "REMOTE_ADDR": "127.0.0.1",
                "DOCUMENT_ROOT": str(self.delivered(server) / "world"),
                "SERVER_GATHER": str(self.gather(server)),
                **variables,
            }
        )
        done = subprocess.run(
            [*under, sys.executable, "-IS", str(ROOT / "cgi-bin" / program)],
            env=environment,
            input=body,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return parse_reply(done.stdout, done.stderr.decode("utf-8", "replace"), done.returncode)


def parse_reply(output: bytes, errors: str = "", exit_status: int = 0) -> Reply:
    """Read what a CGI program wrote, strictly: CRLF lines, each field once, the body as long as it says."""
    head, found, body = output.partition(b"\r\n\r\n")
    assert found, f"no end of head in {output!r}, errors: {errors}"
    lines = head.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines)
    return Reply(int(fields["Status"].split()[0]), fields, body, errors, exit_status)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site").build()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason=NOT_ROOT))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    not_run = _not_run(terminalreporter)
    if not_run:
        terminalreporter.section("not run", red=True)
        terminalreporter.line(f"{len(not_run)} tests need root and were not run; run this as root")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was not run did not pass: the command must not end as if it had."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and session.exitstatus == 0 and _not_run(reporter):
        session.exitstatus = 1


def _not_run(reporter: pytest.TerminalReporter) -> list[object]:
    return [report for report in reporter.stats.get("skipped", []) if NOT_ROOT in str(report.longrepr)]


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users can reach; pytest's own are closed to them."""
    path = Path(tempfile.mkdtemp(prefix="infocluster-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
