# SPDX-License-Identifier: Apache-2.0
"""check-site reaches every server as the push would, and says which it does not."""

import json
from pathlib import Path

import sshd
from conftest import Site


def test_servers_that_are_not_reached_or_not_to_be_written_are_told(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    root.mkdir()
    with sshd.cluster(root, "web1", "web2") as cluster:
        cluster.tree("web2").rmdir()
        site.conf_file.write_text(
            f'[push]\nssh_config = "{cluster.config_file}"\nconnect_timeout_s = 5\n[[servers]]\nname = "web[1-2]"\n'
            f'transport = "ssh"\ndestination = "{root}/servers/%h/www"\n[[servers]]\nname = "nowhere.invalid"\n'
            'transport = "ssh"\ndestination = "/srv"\n'
        )
        report = json.loads(site.batch("check-site", "-batch", "-json").stdout)
    text = json.dumps(report)
    assert "web2: " in text
    assert "nowhere.invalid: " in text
    assert '"web1: ' not in text
