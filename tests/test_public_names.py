"""Every public name can be imported, and the old ones warn."""

import subprocess
import sys

import pytest

import qplug


@pytest.mark.parametrize("name", qplug.__all__)
def test_every_public_name_is_there(name):
    assert getattr(qplug, name) is not None


@pytest.mark.parametrize(("old", "new"), sorted(qplug._RENAMED.items()))
def test_old_names_warn_and_work(old, new):
    with pytest.warns(DeprecationWarning, match=f"qplug.{old} is named qplug.{new} now"):
        assert getattr(qplug, old) is getattr(qplug, new)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Nonsense"):
        qplug.Nonsense  # noqa: B018


def test_importing_qplug_is_light():
    code = (
        "import sys, qplug; print([name for name in ('torch', 'numpy', 'pydantic', 'pluggy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
