"""The probe on recorded file systems: processors, core counts, control groups, accelerators; never torch."""

from __future__ import annotations

import dataclasses
import os
import sys

import pytest

from penstock.errors import ConfigError
from penstock.platforms import cgroups, nvml, probe, processor, recorded
from penstock.types.facts import AcceleratorFacts, PlatformFacts

GIB = 1 << 30


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine():
    facts = probe.probe_platform()
    assert facts.num_cores >= 1
    assert 0 < facts.memory_available_bytes <= facts.memory_bytes
    assert facts.libraries["msgspec"]
    assert "torch" not in sys.modules


def test_x86_flags_are_the_common_ones_of_all_processors():
    text = "model name : A\nflags : fpu avx2 fma avx512f amx_tile\n\nmodel name : A\nflags : fpu avx2 fma\n"
    assert processor.parse_cpuinfo(text) == ("A", ("fma", "avx2"))


def test_arm_features():
    text = "processor : 0\nFeatures : fp asimd asimdhp asimddp i8mm bf16 sve\n"
    assert processor.parse_cpuinfo(text) == ("", ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve"))


def test_no_cpuinfo(tmp_path):
    assert processor.read_cpu("x86_64", tmp_path) == ("", ())


def test_hyperthreads_of_one_core_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    assert processor.count_cores(write(tmp_path, {topology.format(n): s for n, s in siblings.items()})) == 2


def test_the_last_level_cache_is_the_largest(tmp_path):
    cache = "sys/devices/system/cpu/cpu0/cache/index{}/size"
    sizes = {0: "48K", 2: "1024K", 3: "32M"}
    assert processor.last_level_cache(write(tmp_path, {cache.format(n): s for n, s in sizes.items()})) == 32 << 20
    assert processor.last_level_cache(tmp_path / "nothing") == 0


def test_affinity_without_topology(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert processor.count_cores(tmp_path) == 2


def test_cgroup_v2_takes_the_tightest_ancestor(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB}\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
        },
    )
    assert cgroups.read_limits(tmp_path) == cgroups.CgroupLimits(1.5, 8 * GIB, 2 * GIB)


def test_cgroup_v1(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpuacct,cpu:/job\n1:name=systemd:/\n0::/\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cgroups.read_limits(tmp_path) == cgroups.CgroupLimits(4.0, 4 * GIB, GIB)


def test_a_container_sees_its_group_at_the_mount_point(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/host/only/path\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"})
    assert cgroups.read_limits(tmp_path) == cgroups.CgroupLimits(2.0, None, None)


def test_no_cgroups(tmp_path):
    assert cgroups.read_limits(tmp_path) == cgroups.CgroupLimits()


def test_limits_shrink_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable: {32 << 20} kB\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/memory.max": f"{10 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{4 * GIB}\n",
        },
    )
    facts = probe.probe_platform(tmp_path)
    assert (facts.num_cores, facts.memory_bytes, facts.memory_available_bytes) == (2, 10 * GIB, 6 * GIB)


def test_a_quota_below_one_core_leaves_one(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert probe.probe_platform(tmp_path).num_cores == 1


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("", []), ("1", [1]), ("1,0", [1, 0]), ("0,7,1", [0]), ("0,0", []), ("-1", []), ("GPU-b", [1]), ("GPU-", [])],
)
def test_visible_devices(visible, indices):
    assert nvml.select_visible(visible, ["GPU-aaaa", "GPU-bbbb"]) == indices


def test_an_accelerator_is_a_fact_even_where_nothing_runs_on_it():
    device = AcceleratorFacts(name="x", kind="cuda", capability="9.0", memory_bytes=GIB)
    assert probe.platform_name((device,), {"torch": "2.13.0+cpu"}) == "cpu"
    assert probe.platform_name((), {"torch": "2.13.0"}) == "cpu"
    assert probe.platform_name((device,), {}) == "cpu"
    expected = "cuda" if "cuda" in probe.DATA_PLANES else "cpu"
    assert probe.platform_name((device,), {"torch": "2.13.0"}) == expected


def test_the_platform_is_decided_with_every_reason():
    device = AcceleratorFacts(name="x", kind="cuda", capability="9.0", memory_bytes=GIB)

    def decide(name, accelerators, torch):
        libraries = {"torch": torch} if torch else {}
        facts = PlatformFacts(name=name, machine="x86_64", accelerators=accelerators, libraries=libraries)
        return probe.platform_decision(facts)

    alone = decide("cpu", (), "2.13.0+cpu")
    assert (alone.chosen, alone.rejected) == ("cpu", ())
    (beside,) = (here := decide("cpu", (device,), "2.13.0+cpu")).rejected
    assert here.chosen == "cpu"
    assert beside.name == "cuda"
    assert "2.13.0+cpu is built for CPUs alone" in beside.reasons[-1]
    assert "not installed" in decide("cpu", (device,), None).rejected[0].reasons[-1]


@pytest.mark.parametrize("name", recorded.RECORDED)
def test_recorded_platforms_say_whether_they_can_be_computed_on(name):
    facts = recorded.RECORDED[name]
    decision = probe.platform_decision(facts)
    if facts.name in probe.DATA_PLANES:
        assert decision.chosen == facts.name
    else:
        assert decision.chosen is None
        assert f"no data plane for {facts.name}" in decision.why
        assert all(rejection.reasons for rejection in decision.rejected)


@pytest.mark.parametrize("name", recorded.RECORDED)
def test_recorded_platforms_use_the_words_of_the_probe(name):
    facts = recorded.recorded_platform(name)
    known = {*processor.X86_INSTRUCTION_SETS.values(), *processor.ARM_INSTRUCTION_SETS.values()}
    assert set(facts.instruction_sets) <= known
    assert set(facts.libraries) <= set(probe.LIBRARIES)
    assert 0 < facts.memory_available_bytes < facts.memory_bytes
    assert facts.name == ("cuda" if facts.accelerators else "cpu")
    assert dataclasses.replace(facts) == facts


def test_unknown_recorded_platform():
    with pytest.raises(ConfigError, match="Did you mean h200"):
        recorded.recorded_platform("h20")
