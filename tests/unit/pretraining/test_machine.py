"""Free memory as the files of Linux tell it, in and outside of containers."""

from pathlib import Path

import pytest

from esvit_hf.pretraining.machine import free_memory, look_at_machine

GIGABYTE = 10**9


def tell(proc: Path, groups: str, available: int = 8 * GIGABYTE) -> None:
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        f"MemTotal: 999 kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n"
    )
    (proc / "self" / "cgroup").write_text(groups)


def limit(folder: Path, names: tuple[str, str, str], limit: str, used: int, caches: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {caches}\nother 7\n")


NEW = ("memory.max", "memory.current", "inactive_file")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_the_machine_alone(tmp_path: Path) -> None:
    tell(tmp_path / "proc", "0::/\n")
    free = free_memory(tmp_path / "proc", tmp_path / "groups")
    assert free == pytest.approx(8 * GIGABYTE, rel=1e-6)


@pytest.mark.parametrize(("limited", "free"), [("a", 1), ("a/b", 1), ("", 1), (None, 8)])
def test_the_tightest_group_around_the_process_counts(
    limited: str | None, free: int, tmp_path: Path
) -> None:
    tell(tmp_path / "proc", "1:name=systemd:/x\n0::/a/b\n")
    groups = tmp_path / "groups"
    for place in ("", "a", "a/b"):
        limit(groups / place, NEW, "max", 1, 0)
    if limited is not None:
        limit(groups / limited, NEW, str(3 * GIGABYTE), 4 * GIGABYTE, 2 * GIGABYTE)
    found = free_memory(tmp_path / "proc", groups)
    assert found == pytest.approx(free * GIGABYTE, rel=1e-6)


def test_the_first_version_of_groups(tmp_path: Path) -> None:
    tell(tmp_path / "proc", "4:memory:/box\n3:cpuset:/\n0::/\n")
    limit(tmp_path / "groups" / "memory" / "box", OLD, str(2 * GIGABYTE), GIGABYTE, 0)
    assert free_memory(tmp_path / "proc", tmp_path / "groups") == GIGABYTE


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    tell(tmp_path / "proc", "0::/docker/1234\n")
    limit(tmp_path / "groups", NEW, str(GIGABYTE), 2 * GIGABYTE, 0)
    assert free_memory(tmp_path / "proc", tmp_path / "groups") == 0


def test_processes_share_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    alone = look_at_machine()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    shared = look_at_machine()
    assert (alone.device, alone.processes, shared.processes) == ("cpu", 1, 4)
    assert shared.cores == max(1, alone.cores // 2)
    assert shared.memory < 0.75 * alone.memory and shared.device_memory == shared.memory
