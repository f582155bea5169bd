"""The cache returns an entry as it was stored or ``None``, despite damaged files, full disks and killed processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from qplug.core.storage.cache import MB, Cache
from qplug.core.storage.hashing import content_key

KEY = content_key(of="tests")
TENSORS = {
    "a/b": torch.arange(12.0).reshape(3, 4),
    "doubles": torch.tensor([1 / 3, float("inf"), float("nan"), -0.0], dtype=torch.float64),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
}
ABOUT = {"seconds": 1.25, "model": "vit ✓", "sqnr_db": float("inf"), "parts": {"rows": [1, 2, None]}}


def numbered(number: int) -> str:
    return content_key(number=number)


def file_of(cache: Cache, key: str = KEY, kind: str = "statistics") -> Path:
    return cache.folder / kind / key[:2] / f"{key}.safetensors"


def filled(folder: Path) -> Cache:
    cache = Cache(folder)
    cache.store("statistics", KEY, TENSORS, ABOUT)
    assert cache.warnings == []
    return cache


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_an_entry_round_trips_bit_for_bit_to_any_process(tmp_path: Path) -> None:
    filled(tmp_path)
    entry = Cache(tmp_path).load("statistics", KEY)
    assert entry is not None
    assert entry.about == ABOUT
    assert entry.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        got = entry.tensors[name]
        assert (got.dtype, got.shape, got.device.type) == (tensor.dtype, tensor.shape, "cpu")
        assert got.numpy().tobytes() == tensor.numpy().tobytes()


def test_views_and_tensors_that_share_storage_are_stored(tmp_path: Path) -> None:
    whole, cache = torch.arange(6.0).requires_grad_(True), Cache(tmp_path)
    cache.store("statistics", KEY, {"whole": whole, "part": whole[2:4], "turned": whole.reshape(2, 3).T}, {})
    entry = cache.load("statistics", KEY)
    assert entry is not None
    assert entry.tensors["part"].tolist() == [2.0, 3.0]
    assert torch.equal(entry.tensors["turned"], whole.detach().reshape(2, 3).T)


def test_a_missing_entry_is_a_miss_and_creates_no_folder(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "none")
    assert cache.load("statistics", KEY) is None
    assert (cache.entries(), cache.size_mb(), cache.warnings) == ([], 0.0, [])
    cache.clear()
    assert not cache.folder.exists()
    cache = filled(tmp_path)
    assert cache.load("statistics", numbered(1)) is None
    assert cache.load("ranges", KEY) is None


def test_a_later_entry_replaces_an_earlier_one(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    cache.store("statistics", KEY, {"x": torch.ones(2)}, {"seconds": 2})
    entry = cache.load("statistics", KEY)
    assert entry is not None
    assert (entry.tensors.keys(), entry.about) == ({"x"}, {"seconds": 2})
    assert len(cache.entries()) == 1


@pytest.mark.parametrize(("kind", "key"), [("../x", KEY), ("", KEY), ("a/b", KEY), ("a", "../" + KEY), ("a", "A" * 64)])
def test_names_stay_in_the_folder(tmp_path: Path, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match="a key of content_key, received"):
        Cache(tmp_path).load(kind, key)
    with pytest.raises(ValueError, match="a key of content_key, received"):
        Cache(tmp_path).store(kind, key, {}, {})


def test_every_flipped_bit_of_the_content_is_detected(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store("statistics", KEY, {"x": torch.arange(4.0), "y": torch.ones(2, dtype=torch.int64)}, {"seconds": 3})
    path = file_of(cache)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    text = whole[8:header].rstrip()
    for place in [*range(8 + len(text)), *range(header, len(whole))]:  # spaces may follow the header's text
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert cache.load("statistics", KEY) is None, place
        assert not path.exists()
    path.write_bytes(whole)
    assert cache.load("statistics", KEY) is not None


def test_a_truncated_file_is_a_miss_and_removed(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    path = file_of(cache)
    whole = path.read_bytes()
    for length in [0, 1, 8, 9, *range(10, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert cache.load("statistics", KEY) is None, length
        assert not path.exists()
    assert cache.warnings == []


def test_a_foreign_file_and_one_of_another_name_are_misses_and_removed(tmp_path: Path) -> None:
    from safetensors.torch import save

    cache = filled(tmp_path)
    path, other = file_of(cache), file_of(cache, KEY[:2] + numbered(1)[2:])
    whole = path.read_bytes()
    for content in (save({"x": torch.ones(2)}), save({}, {"about": "{}"}), b"{}", json.dumps(ABOUT).encode() * 9):
        path.write_bytes(content)
        assert cache.load("statistics", KEY) is None
        assert not path.exists()
    other.write_bytes(whole)
    assert cache.load("statistics", other.stem) is None
    assert not other.exists()


def test_the_least_recently_used_are_removed_first_beyond_the_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_mb=10)
    tensors = {"x": torch.zeros(2 * MB // 4)}
    for number in range(4):
        cache.store("statistics", numbered(number), tensors, {})
        os.utime(file_of(cache, numbered(number)), ns=(number, number))
    assert [file.key for file in cache.entries()] == [numbered(number) for number in range(4)]
    assert cache.load("statistics", numbered(0)) is not None  # used just now, so 1 is the least recently used
    cache.store("ranges", numbered(4), tensors, {})  # 10 MB and the headers
    assert [file.key for file in cache.entries()] == [numbered(number) for number in (2, 3, 0, 4)]
    assert 8 < cache.size_mb() < 9
    later = Cache(tmp_path, limit_mb=5)  # it has not listed the entries yet
    later.store("ranges", numbered(5), tensors, {})
    assert [file.key for file in later.entries()] == [numbered(number) for number in (4, 5)]
    assert later.warnings == []


def test_an_entry_larger_than_the_limit_is_not_stored_and_removes_no_other(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_mb=1)
    cache.store("statistics", numbered(0), {"x": torch.zeros(10)}, {})
    for number in (1, 2):
        cache.store("statistics", numbered(number), {"x": torch.zeros(MB)}, {})
    assert [file.key for file in cache.entries()] == [numbered(0)]
    assert cache.warnings == [f"the cache {tmp_path} is limited to 1 MB; larger results are not stored"]
    almost = MB - cache.entries()[0].size
    cache.store("statistics", numbered(3), {"x": torch.zeros(almost, dtype=torch.uint8)}, {})
    assert [file.key for file in cache.entries()] == [numbered(3)]


def test_entries_are_listed_and_cleared(tmp_path: Path) -> None:
    started = time.time_ns()
    cache = filled(tmp_path)
    cache.store("ranges", numbered(1), {"x": torch.zeros(1000)}, {})
    (tmp_path / "ranges/notes.safetensors").write_text("foreign")
    (tmp_path / "ranges" / numbered(1)[:2] / "foreign.safetensors").write_text("foreign")
    entries = cache.entries()
    assert [(file.kind, file.key) for file in entries] == [("statistics", KEY), ("ranges", numbered(1))]
    assert [file.size for file in entries] == [file.path.stat().st_size for file in entries]
    assert cache.size_mb() == sum(file.size for file in entries) / 1e6
    assert started - 1e9 <= entries[1].used <= time.time_ns()  # a file system may round by a second
    cache.clear()
    assert cache.entries() == []
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert cache.warnings == []


@contextmanager
def disk(folder: Path, options: str):
    """A small real disk; skips if the user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs a user who may mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_adds_one_warning_and_the_entries_stay(tmp_path: Path) -> None:
    with disk(tmp_path / "small", "size=1m"):
        cache = filled(tmp_path / "small")
        for number in range(2):
            cache.store("statistics", numbered(number), {"x": torch.zeros(MB)}, {})
        reason = "cannot be written to (No space left on device); new results are not stored"
        assert cache.warnings == [f"the cache {cache.folder} {reason}"]
        assert cache.load("statistics", KEY) is not None
        assert leftovers(cache.folder) == []
        assert len(cache.entries()) == 1


def test_a_read_only_disk_is_read(tmp_path: Path) -> None:
    with disk(tmp_path / "fixed", "size=1m"):
        cache = filled(tmp_path / "fixed")
        damaged = file_of(cache, numbered(1))
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_bytes(b"damaged")
        subprocess.run(["mount", "-o", "remount,ro", str(cache.folder)], check=True)
        assert cache.load("statistics", KEY) is not None
        assert cache.load("statistics", numbered(1)) is None
        cache.store("statistics", numbered(2), TENSORS, ABOUT)
        cache.clear()
        assert len(cache.warnings) == 2
        assert all("Read-only file system" in warning for warning in cache.warnings)
        assert cache.load("statistics", KEY) is not None


@pytest.mark.parametrize("place", ["open", "mkdir", "replace", "iterdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_failed_writes_are_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    cache = filled(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os if place == "replace" else Path, place, refuse)
        for _ in range(2):
            cache.store("statistics", numbered(1), TENSORS, ABOUT)
    reason = f"cannot be written to ({os.strerror(number)}); new results are not stored"
    assert cache.warnings == [f"the cache {tmp_path} {reason}"]
    assert leftovers(tmp_path) == []
    assert [file.key for file in cache.entries()] == [KEY]
    cache.store("statistics", numbered(1), TENSORS, ABOUT)
    assert cache.load("statistics", numbered(1)) is not None


def test_a_disk_that_cannot_be_read_is_one_warning_and_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    cache = filled(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert cache.load("statistics", KEY) is None
    assert cache.load("statistics", KEY) is None
    assert cache.warnings == [
        f"the cache {tmp_path} cannot be read (Input/output error); its results are computed again"
    ]
    monkeypatch.undo()
    assert cache.load("statistics", KEY) is not None


def test_a_file_at_the_path_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("foreign")
    cache = Cache(tmp_path / "file")
    assert cache.load("statistics", KEY) is None
    cache.store("statistics", KEY, TENSORS, ABOUT)
    cache.clear()
    assert cache.entries() == []
    reason = "cannot be written to (File exists); new results are not stored"
    assert cache.warnings == [f"the cache {cache.folder} {reason}"]
    assert (tmp_path / "file").read_text() == "foreign"


@pytest.mark.skipif(os.name == "nt", reason="umask is POSIX")
def test_others_may_read_an_entry_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        assert file_of(filled(tmp_path)).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


HALF = """
import sys, time
from pathlib import Path
import torch
from qplug.core.storage import cache
write = Path.open
class Slow:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        print("half", flush=True)
        time.sleep(600)
Path.open = lambda path, mode: Slow(write(path, mode))
cache.Cache(Path(sys.argv[1])).store("statistics", sys.argv[2], {"x": torch.zeros(100000)}, {})
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_kill_in_the_middle_leaves_nothing_that_is_loaded(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", HALF, str(tmp_path), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as work:
        assert work.stdout is not None
        assert work.stdout.readline() == "half\n"
        Cache(tmp_path).store("statistics", numbered(1), {}, {})
        assert len(leftovers(tmp_path)) == 1  # the partial file of a running process stays
        work.send_signal(getattr(signal, name))
        assert work.wait(timeout=300) != 0
    assert len(leftovers(tmp_path)) == (name == "SIGKILL")
    cache = Cache(tmp_path)
    assert cache.load("statistics", KEY) is None
    assert [file.key for file in cache.entries()] == [numbered(1)]
    cache.store("statistics", numbered(2), {}, {})
    assert leftovers(tmp_path) == []


MANY = """
import sys, time
from pathlib import Path
import torch
from qplug.core.storage.cache import Cache
from qplug.core.storage.hashing import content_key
cache, value, count = Cache(Path(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(count):
    key = content_key(shared=turn % 3)
    cache.store("shared", key, {"x": torch.full((100000,), value)}, {"by": value})
    entry = cache.load("shared", key)
    assert entry is not None and bool((entry.tensors["x"] == entry.about["by"]).all()), turn
    cache.store("own", content_key(by=value, turn=turn), {"x": torch.full((10,), value)}, {})
print(cache.warnings)
"""


def start(folder: Path, value: int, turns: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MANY, str(folder), str(value), str(turns)]
    work = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert work.stdout is not None
    assert work.stdout.readline() == "ready\n"
    return work


@pytest.mark.slow
def test_processes_at_once_on_one_key_and_on_others_all_succeed(tmp_path: Path) -> None:
    works = [start(tmp_path, value, 40) for value in (1, 2)]
    for work in works:
        assert work.stdin is not None
        work.stdin.write("\n")
        work.stdin.flush()
    for work in works:
        out, errors = work.communicate(timeout=300)
        assert (work.returncode, out, errors) == (0, "[]\n", "")
    cache = Cache(tmp_path)
    kinds = [file.kind for file in cache.entries()]
    assert (kinds.count("shared"), kinds.count("own")) == (3, 80)
    assert all(cache.load(file.kind, file.key) is not None for file in cache.entries())
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_kills_at_any_moment_leave_complete_entries_only(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for turn in range(4):
        before = len(cache.entries())
        with start(tmp_path, turn, 10**6) as work:
            assert work.stdin is not None
            work.stdin.write("\n")
            work.stdin.flush()
            while len(cache.entries()) < before + 2:
                time.sleep(0.001)
            time.sleep(0.003 * turn)
            work.kill()
    entries = cache.entries()
    for file in entries:
        entry = cache.load(file.kind, file.key)
        assert entry is not None
        assert file.kind == "own" or bool((entry.tensors["x"] == entry.about["by"]).all())
    cache.store("own", KEY, {}, {})
    assert leftovers(tmp_path) == []


def test_the_import_imports_no_torch() -> None:
    heavy = ("torch", "timm", "numpy", "sklearn", "brevitas", "safetensors", "psutil")
    modules = "qplug.core.storage.cache, qplug.core.storage.hashing"
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
