"""The user's configuration, ``config.toml`` in the platform's folder. Only the command line reads it."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qplug.core.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class UserConfig(BaseModel):
    """What the user set for every command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trusted: tuple[str, ...] = Field((), description="modules whose code recipes may run, as with --allow-code")
    cache_limit_mb: int | None = Field(None, ge=1, description="size limit of the cache, in MB of 10^6 bytes")


def config_path() -> Path:
    """Where the configuration is sought; on Linux, ``~/.config/qplug/config.toml``."""
    from platformdirs import user_config_path

    return user_config_path("qplug") / "config.toml"


def user_config() -> UserConfig:
    """The configuration; the defaults if there is no file. Raises ``InputError`` if it cannot be used."""
    path = config_path()
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return UserConfig.model_validate(tomllib.loads(text))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(UserConfig.model_fields)
        where = f"{path}: {'.'.join(map(str, first['loc']))}"
        raise InputError(first["msg"], where=where, fix=f"the keys are: {known}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(f"is not TOML: {error}", where=str(path)) from error
