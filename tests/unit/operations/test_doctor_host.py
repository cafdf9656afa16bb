"""What the doctor says of a machine, from what a machine would tell it."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest

from gateway.operations import doctor_host
from gateway.operations.findings import Finding, Verdict
from gateway.settings import Settings

MOUNTS = """
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:26 / /dev/shm rw,nosuid - tmpfs tmpfs rw
31 21 0:27 / /srv/a\\040share rw - nfs4 nas:/export rw
32 21 0:28 / /mnt/layer rw - overlay overlay rw
33 21 0:29 / /mnt/keys rw master:2 - fuse.sshfs keys: rw
34 21 8:2 / /srv rw - ext4 /dev/sdb1 rw
35 21 0:30 / /srv rw - tmpfs over rw
""".strip().replace("\\\\", "\\")


def told(found: list[Finding], verdict: Verdict) -> list[str]:
    return [finding.text for finding in found if finding.verdict is verdict]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc", "ext4"),
        ("/dev/shm/x", "tmpfs"),
        ("/srv/a share/data", "nfs4"),
        ("/srv/b", "tmpfs"),
        ("/srvs", "ext4"),
        ("/mnt/keys/not/yet/there", "fuse.sshfs"),
    ],
)
def test_file_system_of_a_path_is_the_nearest_and_the_last_mounted(path: str, kind: str) -> None:
    assert doctor_host.mount_of(Path(path), MOUNTS).kind == kind


def file_systems(data: str, secrets: str = "/etc/keys", url: str | None = None) -> list[Finding]:
    settings = Settings(data_dir=Path(data), secrets_dir=Path(secrets), database_url=url)
    return list(doctor_host.file_systems(settings, MOUNTS))


def test_sqlite_on_a_network_file_system_is_a_problem_and_with_a_server_only_a_warning() -> None:
    assert "is on nfs4" in told(file_systems("/srv/a share/data"), Verdict.PROBLEM)[0]
    found = file_systems("/srv/a share/data", url="postgresql://h/d")
    assert told(found, Verdict.PROBLEM) == []
    assert "is on nfs4" in told(found, Verdict.WARNING)[0]


def test_data_in_memory_or_in_a_containers_layer_is_a_warning() -> None:
    assert "gone after a restart" in told(file_systems("/dev/shm/data"), Verdict.WARNING)[0]
    assert "mount a volume" in told(file_systems("/mnt/layer/data"), Verdict.WARNING)[0]
    assert "fuse.sshfs" in told(file_systems("/var/data", "/mnt/keys/gateway"), Verdict.WARNING)[0]


def test_a_disk_of_this_host_is_fine() -> None:
    assert {finding.verdict for finding in file_systems("/var/data")} == {Verdict.OK}


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, Verdict.OK), (0o640, Verdict.WARNING), (0o644, Verdict.WARNING)])
def test_local_settings_that_others_can_read_are_a_warning(tmp_path: Path, mode: int, verdict: Verdict) -> None:
    (tmp_path / ".env.local").write_text("OPENAI_API_KEY=sk-x\n")
    (tmp_path / ".env.local").chmod(mode)
    (finding,) = doctor_host.settings_files(tmp_path)
    assert finding.verdict is verdict
    assert ("chmod 600" in finding.text) == (verdict is Verdict.WARNING)


def test_secrets_in_the_file_that_goes_into_git_are_a_warning_each_and_not_shown(tmp_path: Path) -> None:
    lines = [
        "OPENAI_API_KEY=sk-canary",
        " export GATEWAY_PEPPER = canary",
        "GATEWAY_MASTER_KEY=",
        "# GATEWAY_METRICS_TOKEN=canary",
        "DATABASE_URL=postgresql://u:canary@h/d",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    found = list(doctor_host.settings_files(tmp_path))
    assert [finding.text.split()[0] for finding in found] == ["OPENAI_API_KEY", "GATEWAY_PEPPER", "DATABASE_URL"]
    assert not any("canary" in finding.text for finding in found)


def test_shipped_settings_file_holds_no_secret() -> None:
    assert list(doctor_host.settings_files(Path(__file__).parents[3])) == []


def test_clock_is_what_the_kernel_says() -> None:
    assert doctor_host.judged_clock(5).verdict is Verdict.WARNING
    assert [doctor_host.judged_clock(state).verdict for state in (0, 1, -1)] == [Verdict.OK] * 3
    assert doctor_host.clock().subject == "clock"


@pytest.mark.parametrize(("workers", "usable", "verdict"), [(1, 0.5, "ok"), (2, 2, "ok"), (2, 1.5, "ok"), (3, 2, "warning"), (2, 1, "warning")])
def test_more_workers_than_cores_are_a_warning(workers: int, usable: float, verdict: str) -> None:
    assert str(doctor_host.cores(workers, usable).verdict) == verdict


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000\n", 0.5), ("max 100000\n", None), ("", None), ("99900000 100000", None)])
def test_cores_are_those_of_the_container(tmp_path: Path, quota: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert doctor_host.usable_cores(tmp_path / "cpu.max") == (cores if cores is not None else len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("text", "seconds"), [("1min 30s", 90), ("45s", 45), ("500ms", 0.5), ("2h 1min", 7260), ("infinity", math.inf), ("", None), ("soon", None)]
)
def test_systemds_times_are_read(text: str, seconds: float | None) -> None:
    assert doctor_host.timespan_s(text) == seconds


def test_a_drain_that_systemd_cuts_short_is_a_problem() -> None:
    finding = doctor_host.judged_stop_timeout("gateway.service", 30, 30)
    assert (finding.verdict, "TimeoutStopSec=40" in finding.text) == (Verdict.PROBLEM, True)
    assert doctor_host.judged_stop_timeout("gateway.service", 90, 30).verdict is Verdict.OK


def test_server_that_is_not_there_is_not_taken_for_one(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path)
    (tmp_path / f"metrics-{os.getpid()}").mkdir()  # alive, but no server
    (tmp_path / "metrics-999999999").mkdir()
    (tmp_path / "metrics-x").mkdir()
    assert doctor_host.running_server(settings) is None


def test_limits_of_a_process_are_read() -> None:
    assert doctor_host.limit(os.getpid(), "Max open files")
    assert doctor_host.limit(os.getpid(), "No such limit") is None
    assert doctor_host.limit(999_999_999, "Max open files") is None


def test_every_finding_of_this_machine_is_one_line(tmp_path: Path) -> None:
    settings = dataclasses.replace(Settings(data_dir=tmp_path), workers=2)
    found = list(doctor_host.look_at_host(settings, tmp_path))
    assert {"open files", "file system", "disk", "clock", "workers"} <= {finding.subject for finding in found}
    assert not any("\n" in finding.text for finding in found)
