"""What is free: the least of what Linux, and the control groups of the process, leave."""

from __future__ import annotations

import pytest

from deltasmith.analysis.free_memory import free_on_device, free_on_machine, require_room
from deltasmith.errors import ResourceError

MIB = 1 << 20


def write(root, **files):
    for path, text in files.items():
        place = root / path.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, proc__meminfo="MemTotal: 9000 kB\nMemAvailable:    4096 kB\n")
    return tmp_path


def test_what_linux_calls_available(root):
    assert free_on_machine(root) == 4 * MIB


def test_nobody_can_tell(tmp_path):
    assert free_on_machine(tmp_path) is None


def test_control_groups_of_version_2_bound_it_at_every_level(root):
    write(root, proc__self__cgroup="0::/outer/inner\n")
    group = root / "sys/fs/cgroup/outer"
    (group / "inner").mkdir(parents=True)
    (group / "inner/memory.max").write_text("max\n")
    (group / "inner/memory.current").write_text("5\n")
    assert free_on_machine(root) == 4 * MIB
    (group / "memory.max").write_text(f"{3 * MIB}\n")
    (group / "memory.current").write_text(f"{2 * MIB}\n")
    assert free_on_machine(root) == MIB
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {MIB // 2}\nactive_file 7\n")
    assert free_on_machine(root) == MIB + MIB // 2
    (group / "memory.current").write_text(f"{9 * MIB}\n")
    assert free_on_machine(root) == 0


def test_control_groups_of_version_1_bound_it(root):
    write(root, proc__self__cgroup="5:cpu,cpuacct:/x\n4:memory:/x\n")
    group = root / "sys/fs/cgroup/memory/x"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # no limit
    (group / "memory.usage_in_bytes").write_text(f"{MIB}\n")
    assert free_on_machine(root) == 4 * MIB
    (group / "memory.limit_in_bytes").write_text(f"{2 * MIB}\n")
    assert free_on_machine(root) == MIB


def test_this_machine_tells_something_sensible():
    free = free_on_device("cpu")
    assert free is None or 0 < free < 1 << 60


def test_what_does_not_fit_is_refused_with_both_numbers():
    told = {"where": "model", "what": "the network", "fix": "use less"}
    require_room(5 * MIB, 5 * MIB, **told)
    require_room(5 * MIB, None, **told)
    with pytest.raises(ResourceError) as caught:
        require_room((3 << 30) + 1, 5 * MIB, **told)
    assert str(caught.value) == "the network needs 3.0 GiB, and 5 MiB are free in model; use less"
    assert caught.value.exit_code == 4
