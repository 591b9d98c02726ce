# SPDX-License-Identifier: Apache-2.0
"""check-site reaches every server and push host as the push would, and says which it does not."""

import json
import sys
from pathlib import Path

import pytest

import sshd
from conftest import ROOT, Site

# One rsync daemon is three servers, each of a kind of its own.
DAEMON = """[[servers]]
name = "localhost"
kind = "{kind}"
transport = "daemon"
port = {port}
destination = "/{destination}"
"""


@pytest.mark.root
def test_hosts_that_are_not_reached_or_cannot_do_it_are_told(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    (root / "module/there").mkdir(parents=True)
    program = tmp_path / "wwwpush"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/batch/wwwpush "$@"\n')
    program.chmod(0o755)
    modules = "".join(
        f"[{name}]\npath = {root}/module\nread only = {read_only}\n"
        for name, read_only in (("open", "no"), ("closed", "yes"))
    )
    with (
        sshd.cluster(root, "web1", "web2", "web3", "push1", "push2") as cluster,
        sshd.rsync_daemon(root, modules) as port,
    ):
        cluster.tree("web2").rmdir()
        cluster.tree("push2").rmdir()
        tree = f"{root}/servers/%h/www"
        site.conf_file.write_text(
            f'[push]\nssh_config = "{cluster.config_file}"\nconnect_timeout_s = 5\npush_host_command = "{program}"\n'
            f'[[push_hosts]]\nname = "push[1-2]"\ndirectory = "{tree}"\n'
            f'[[servers]]\nname = "web[1-2]"\ntransport = "ssh"\ndestination = "{tree}"\n'
            f'[[servers]]\nname = "web3"\ntransport = "rdist"\ndestination = "{tree}"\n'
            '[[servers]]\nname = "nowhere.invalid"\ntransport = "ssh"\ndestination = "/srv"\n'
            + DAEMON.format(kind="ftp", port=port, destination="open/there")
            + DAEMON.format(kind="gone", port=port, destination="open/nowhere")
            + DAEMON.format(kind="read", port=port, destination="closed/there")
        )

        def unreached() -> dict[str, list[str]]:
            report = json.loads(site.batch("check-site", "-batch", "-json").stdout)
            found: dict[str, list[str]] = {}
            for fault in report["faults"]:
                if fault["check"] == "reach":
                    host, _, why = fault["fault"].partition(": ")
                    found.setdefault(host, []).append(why)
            return found

        found = unreached()
        assert list(found) == ["web2", "web3", "nowhere.invalid", "localhost", "push2"]
        assert found["web2"] == [f"{cluster.tree('web2')} is missing or not to be written there, or rsync is missing"]
        assert found["web3"][0].endswith("or rdistd is missing")
        gone, closed = found["localhost"]
        assert "No such file or directory" in gone and closed == "ERROR: module is read only"
        assert found["push2"][0].endswith("or rsync, or wwwpush, is missing")

        program.write_text('#!/bin/sh\necho \'{"format": "infocluster relay 1", "version": "0.0.1"}\'\n')
        assert "of version 0.0.1" in unreached()["push1"][0]
        program.unlink()
        assert str(program) in unreached()["push1"][0]
