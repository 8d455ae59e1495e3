"""The probe on recorded file systems: processors, core counts, control groups, accelerators; never torch."""

from __future__ import annotations

import dataclasses
import os
import sys

import pytest

from penstock.cli.check import accelerator_text
from penstock.errors import ConfigError, NoBackendError
from penstock.platforms import cgroups, nvml, probe, processor, rates, recorded
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


class StandInLibrary:
    """The management library of a driver with one device. Functions answer 0 and write through their last argument."""

    def __init__(self, **numbers):
        self._numbers = numbers

    def __getattr__(self, name):
        if name in self._numbers:
            return lambda *arguments: self._write(arguments[-1], self._numbers[name])
        if name in ("nvmlInit_v2", "nvmlShutdown"):
            return lambda: 0
        raise AttributeError(name)

    def _write(self, target, number):
        target._obj.value = number
        return 0

    def nvmlDeviceGetCount_v2(self, target):
        return self._write(target, 1)

    def nvmlDeviceGetHandleByIndex_v2(self, index, target):
        return self._write(target, 1)

    def nvmlDeviceGetMemoryInfo(self, handle, target):
        target._obj.total, target._obj.free = 143771 << 20, 143000 << 20
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):
        return self._write(major, 9) or self._write(minor, 0)

    def nvmlDeviceGetName(self, handle, buffer, size):
        buffer.value = b"NVIDIA H200"
        return 0

    def nvmlDeviceGetUUID(self, handle, buffer, size):
        buffer.value = b"GPU-aaaa"
        return 0

    def nvmlSystemGetDriverVersion(self, buffer, size):
        buffer.value = b"580.95.05"
        return 0


def test_a_device_is_read_with_its_rates(monkeypatch):
    numbers = {
        "nvmlDeviceGetNumGpuCores": 16896,
        "nvmlDeviceGetMaxClockInfo": 3201,
        "nvmlDeviceGetMemoryBusWidth": 6144,
    }
    monkeypatch.setattr(nvml, "_load", lambda: StandInLibrary(**numbers))
    (found,) = nvml.read_accelerators({})
    assert (found.name, found.kind, found.capability, found.driver) == ("NVIDIA H200", "cuda", "9.0", "580.95.05")
    assert found.uuid == "GPU-aaaa"
    assert (found.memory_bytes, found.memory_free_bytes) == (143771 << 20, 143000 << 20)
    assert (found.num_sms, found.l2_bytes) == (132, 60 << 20)
    assert found.memory_bytes_per_s == pytest.approx(4.917e12, rel=1e-3)
    assert nvml.read_accelerators({"CUDA_VISIBLE_DEVICES": ""}) == ()


@pytest.mark.parametrize(("order", "wanted"), [(None, "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
def test_cuda_counts_devices_as_the_facts_do_unless_the_user_wants_another_order(monkeypatch, order, wanted):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", order or "")
    if order is None:
        monkeypatch.delenv("CUDA_DEVICE_ORDER")
    monkeypatch.setattr(nvml, "_load", StandInLibrary)
    probe.probe_platform()
    assert os.environ["CUDA_DEVICE_ORDER"] == wanted


@pytest.mark.parametrize(
    ("text", "version"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx942", ()), ("gfx90a", ()), ("", ())]
)
def test_a_compute_capability_is_of_cuda(text, version):
    device = dataclasses.replace(recorded.RECORDED["h200"].accelerators[0], capability=text)
    assert device.compute_capability == version


@pytest.mark.parametrize("name", ["h200", "h100", "a100", "rtx4090", "mi300x", "mi355x", "gfx1100", "cpu-avx2"])
def test_well_known_machines_are_recorded(name):
    assert recorded.recorded_platform(name).name in ("cuda", "rocm", "cpu")


def test_a_measured_rate_is_kept_for_the_device_and_driver_that_it_was_measured_with(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rates, "_in_this_process", {})
    monkeypatch.setattr(nvml, "_load", StandInLibrary)
    (unknown,) = probe.probe_platform().accelerators
    assert unknown.copied_bytes_per_s == 0
    rates.keep_rate(unknown, 4_300_000_000_000)
    rates.keep_rate(dataclasses.replace(unknown, uuid="GPU-bbbb"), 5)
    monkeypatch.setattr(rates, "_in_this_process", {})  # as another process has it
    (known,) = probe.probe_platform().accelerators
    assert known == dataclasses.replace(unknown, copied_bytes_per_s=4_300_000_000_000)
    assert "4,300 GB/s copied" in accelerator_text(known)
    assert "copied" not in accelerator_text(unknown)
    (updated,) = rates.with_known_rates([dataclasses.replace(unknown, driver="590.1")])
    assert updated.copied_bytes_per_s == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["device-rates.json"]


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"GPU-aaaa, driver 580.95.05": "fast"}', '{"GPU-aaaa, driver 580.95.05": -1}']
)
def test_a_file_of_rates_that_is_none_is_measured_again(monkeypatch, tmp_path, text):
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    monkeypatch.setattr(rates, "_in_this_process", {})
    monkeypatch.setattr(nvml, "_load", StandInLibrary)
    (tmp_path / "device-rates.json").write_text(text)
    (found,) = probe.probe_platform().accelerators
    assert found.copied_bytes_per_s == 0
    rates.keep_rate(found, 7)
    monkeypatch.setattr(rates, "_in_this_process", {})
    assert probe.probe_platform().accelerators[0].copied_bytes_per_s == 7


def test_a_rate_that_cannot_be_written_is_known_to_this_process(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "file"))  # no directory
    monkeypatch.setattr(rates, "_in_this_process", {})
    device = recorded.RECORDED["h100"].accelerators[0]
    rates.keep_rate(device, 7)
    assert rates.with_known_rates([device])[0].copied_bytes_per_s == 7


def test_recorded_devices_keep_what_is_recorded_of_them(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    copied = {
        name: facts.accelerators[0].copied_bytes_per_s
        for name, facts in recorded.RECORDED.items()
        if facts.accelerators
    }
    assert {name for name, rate in copied.items() if rate} == {"h200"}
    assert rates.with_known_rates(recorded.RECORDED["h200"].accelerators)[0].copied_bytes_per_s == 4_300_000_000_000


def test_an_old_driver_leaves_rates_unknown(monkeypatch):
    monkeypatch.setattr(nvml, "_load", StandInLibrary)
    (found,) = nvml.read_accelerators({})
    assert (found.memory_bytes_per_s, found.num_sms) == (0, 0)


@pytest.mark.parametrize(
    ("capability", "cores"), [("8.0", 64), ("8.9", 128), ("9.0", 128), ("10.3", 128), ("7.5", 64), ("13.0", 128)]
)
def test_cores_of_a_multiprocessor(capability, cores):
    assert nvml.cores_per_sm(capability) == cores


@pytest.mark.parametrize(
    ("name", "mib"),
    [("NVIDIA A100-SXM4-80GB", 40), ("NVIDIA A10G", 6), ("NVIDIA L40S", 96), ("NVIDIA L4", 48), ("x", 0)],
)
def test_second_level_caches_by_name(name, mib):
    assert nvml.l2_bytes(name) == mib << 20


@pytest.mark.parametrize("name", [name for name, facts in recorded.RECORDED.items() if facts.name == "cuda"])
def test_recorded_devices_are_what_a_probe_would_find(name):
    (device,) = recorded.RECORDED[name].accelerators
    assert nvml.l2_bytes(device.name) == device.l2_bytes


DEVICE = AcceleratorFacts(name="x", kind="cuda", capability="9.0", memory_bytes=GIB)
GPU_LIBRARIES = {"torch": "2.13.0", "triton": "3.7.1"}


@pytest.mark.parametrize(
    ("capability", "libraries", "expected"),
    [
        ("9.0", GPU_LIBRARIES, "cuda"),
        ("8.0", GPU_LIBRARIES | {"torch": "2.11.0+cu130"}, "cuda"),
        ("10.0", GPU_LIBRARIES, "cuda"),
        ("7.5", GPU_LIBRARIES, "cpu"),
        ("9.0", {"torch": "2.13.0"}, "cpu"),
        ("9.0", GPU_LIBRARIES | {"torch": "2.13.0+cpu"}, "cpu"),
        ("9.0", GPU_LIBRARIES | {"torch": "2.13.0+rocm7.2"}, "cpu"),
        ("9.0", {}, "cpu"),
    ],
)
def test_an_accelerator_is_a_fact_even_where_nothing_runs_on_it(capability, libraries, expected):
    device = dataclasses.replace(DEVICE, capability=capability)
    assert probe.platform_name((device,), libraries) == expected
    assert probe.platform_name((), libraries) == "cpu"
    assert probe.platform_name((dataclasses.replace(device, kind="rocm", capability="gfx942"),), libraries) == "cpu"


def machine(name="cpu", accelerators=(DEVICE,), libraries=GPU_LIBRARIES):
    return PlatformFacts(name=name, machine="x86_64", accelerators=accelerators, libraries=libraries)


def test_the_platform_is_decided_with_every_reason():
    alone = probe.platform_decision(machine(accelerators=()))
    assert (alone.chosen, alone.rejected) == ("cpu", ())
    old = dataclasses.replace(DEVICE, capability="7.5")
    (refused,) = (
        here := probe.platform_decision(machine(accelerators=(old,), libraries={"torch": "2.13.0+cpu"}))
    ).rejected
    assert (here.chosen, refused.name) == ("cpu", "cuda")
    assert refused.reasons == (
        "needs compute capability 8.0, found 7.5",
        "the installed torch 2.13.0+cpu is built for CPUs alone",
        "needs triton, which is not installed",
    )
    assert "torch is not installed" in probe.platform_decision(machine(libraries={})).rejected[0].reasons
    assert probe.platform_decision(machine("cuda")).chosen == "cuda"


def test_a_named_platform_runs_or_is_an_error():
    facts, decision = probe.choose_platform(machine("cuda"), "cpu")
    assert (facts.name, decision.chosen, decision.why) == ("cpu", "cpu", "named by --platform")
    assert facts.accelerators == (DEVICE,)
    assert probe.choose_platform(machine("cuda"), "cuda")[0].name == "cuda"
    assert probe.choose_platform(machine("cuda"))[0].name == "cuda"
    with pytest.raises(NoBackendError, match="no cuda device was found; needs triton") as caught:
        probe.choose_platform(machine(accelerators=(), libraries={"torch": "2.13.0"}), "cuda")
    assert caught.value.decision.chosen is None
    assert caught.value.decision.rejected[0].name == "cuda"


def test_memory_is_that_of_what_is_computed_on():
    device = dataclasses.replace(DEVICE, memory_bytes=8 * GIB, memory_free_bytes=7 * GIB)
    facts = dataclasses.replace(machine("cuda", (device,)), memory_bytes=4 * GIB, memory_available_bytes=3 * GIB)
    assert (facts.compute_memory_bytes, facts.compute_memory_free_bytes) == (8 * GIB, 7 * GIB)
    on_cpu = dataclasses.replace(facts, name="cpu")
    assert (on_cpu.compute_memory_bytes, on_cpu.compute_memory_free_bytes) == (4 * GIB, 3 * GIB)
    assert machine("cuda").compute_memory_free_bytes == GIB


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
    assert facts.name == (facts.accelerators[0].kind if facts.accelerators else "cpu")
    for device in facts.accelerators:
        assert 0 < device.memory_free_bytes < device.memory_bytes
        assert min(device.memory_bytes_per_s, device.num_sms, device.l2_bytes) > 0
    assert dataclasses.replace(facts) == facts


def test_unknown_recorded_platform():
    with pytest.raises(ConfigError, match="Did you mean h200"):
        recorded.recorded_platform("h20")
