"""``qplug cache``: what it lists, and what it removes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from qplug.cli import main
from qplug.cli.app import cache_of
from qplug.core.storage.cache import LIMIT_MB, Cache
from qplug.core.storage.hashing import content_key

Output = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    cache = Cache(tmp_path / "cache")
    for index, kind in enumerate(("statistics", "quantizer", "quantizer")):
        cache.store(kind, content_key(index=index), {"x": torch.zeros(100_000)}, {})
        path = next(entry.path for entry in cache.entries() if entry.key == content_key(index=index))
        os.utime(path, (1000 + index, 1000 + index))
    (cache.folder / "of-others.txt").write_text("x")
    return cache.folder


def call(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_list_and_size(folder: Path, capsys: Output) -> None:
    assert call("cache", "list", "--cache", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["statistics", "quantizer", "quantizer"]  # oldest use first
    assert lines[5] == f"3 results, 1.201 MB of at most 8192 MB, in {folder}"
    assert call("cache", "size", "--cache", folder) == 0
    assert "quantizer        2  0.800" in capsys.readouterr().out
    assert call("cache", "size", "--cache", folder, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["results"] == 3
    assert value["kinds"]["quantizer"]["results"] == 2
    assert call("cache", "list", "--cache", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["kind"] == "statistics"


def test_prune_and_clear(folder: Path, capsys: Output) -> None:
    assert call("cache", "prune", "--cache", folder, "--limit", 1) == 0
    assert "removed 1 of 3 results, 0.400 MB" in capsys.readouterr().out
    assert [entry.kind for entry in Cache(folder).entries()] == ["quantizer", "quantizer"]
    assert call("cache", "prune", "--cache", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 0  # below the limit of runs
    assert call("cache", "clear", "--cache", folder) == 0
    assert "removed 2 of 2 results" in capsys.readouterr().out
    assert Cache(folder).entries() == []
    assert (folder / "of-others.txt").is_file()


def test_a_cache_that_is_not_there_or_no_folder(tmp_path: Path, capsys: Output, folder: Path) -> None:
    assert call("cache", "list", "--cache", tmp_path / "nowhere") == 0
    assert "0 results, 0.000 MB" in capsys.readouterr().out
    (tmp_path / "file").write_text("x")
    assert call("cache", "clear", "--cache", tmp_path / "file") == 0
    assert (tmp_path / "file").is_file()
    assert call("cache", "prune", "--limit", "-1") == 2


def test_the_limit_is_the_option_or_the_configuration(folder: Path, tmp_path: Path, capsys: Output) -> None:
    def limit(option: int | None = None) -> int:
        cache = cache_of(folder, False, option)
        assert cache is not None
        return cache.limit_mb

    assert limit() == LIMIT_MB
    config = tmp_path / "config" / "qplug" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("cache_limit_mb = 50\ntrusted = ['a']")
    assert (limit(), limit(7)) == (50, 7)
    for text, said in (
        ("cache_limit = 1", "config.toml: cache_limit: Extra inputs are not permitted"),
        ("trusted = 'a'", "config.toml: trusted: "),
        ("trusted = [", "config.toml: is not TOML: "),
        ("cache_limit_mb = 0", "greater than or equal to 1"),
    ):
        config.write_text(text)
        assert call("cache", "size") == 2
        assert said in capsys.readouterr().err
