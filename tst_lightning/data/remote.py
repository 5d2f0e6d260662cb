"""Shards in an S3 bucket: LitData fetches the chunks, this file the small ones that describe them.

Credentials, region and endpoint come from where boto3 looks (environment, ~/.aws, instance role), never from the YAML.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tst_lightning.errors import ConfigError, RunError

# LitData's own default tries a thousand times: for hours, where a bucket doesn't answer.
_TIMEOUTS: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"max_attempts": 5, "mode": "standard"},
}


def is_remote(path: str) -> bool:
    """Whether a path of shards is an address; only S3's are known.

    Raises:
        ConfigError: an address of another kind.
    """
    if path.startswith("s3://"):
        return True
    if "://" in path:
        raise ConfigError(f"shards at '{path}': only local folders and s3:// are supported; copy them to one of these")
    return False


def storage_options() -> dict[str, Any]:
    """Of LitData's S3 client: how long to wait, how often to try."""
    return {"config": Config(**_TIMEOUTS)}


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """One line for what a bucket answers."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NoSuchBucket"):
            raise ConfigError(
                f"there is no '{where}': copy a whole folder of `tst prepare` there, or mend data.shards"
            ) from error
        raise RunError(f"'{where}' can't be read: {error}; mend access, then give the same command again") from error
    except (BotoCoreError, Boto3Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"'{where}' can't be read: {reason}; mend credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...) or endpoint"
            " (AWS_ENDPOINT_URL), then give the same command again"
        ) from error


def fetch(url: str, names: Iterable[str], folder: Path) -> None:
    """Copies files from a bucket.

    By boto3, not by LitData's downloader: that starts threads which reading processes, forked later, could not use.

    Args:
        url: ``s3://BUCKET/PREFIX``.
        names: of the files, below it.
        folder: to put them in, under the same names.

    Raises:
        ConfigError: one isn't there.
        RunError: the bucket can't be reached, or refuses.
    """
    place = urlparse(url)
    for name in names:
        with _explained(f"{url.rstrip('/')}/{name}"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            key = f"{place.path.strip('/')}/{name}".lstrip("/")
            boto3.client("s3", **storage_options()).download_file(place.netloc, key, str(target))


def sizes(url: str) -> dict[str, int]:
    """Name -> bytes of all that lies below an address.

    Args:
        url: ``s3://BUCKET/PREFIX``.

    Raises:
        ConfigError: there is no such bucket.
        RunError: the bucket can't be reached, or refuses.
    """
    place = urlparse(url)
    prefix = f"{place.path.strip('/')}/".lstrip("/")
    with _explained(url):
        pages = boto3.client("s3", **storage_options()).get_paginator("list_objects_v2")
        found = [
            entry for page in pages.paginate(Bucket=place.netloc, Prefix=prefix) for entry in page.get("Contents", [])
        ]
        return {entry["Key"].removeprefix(prefix): entry["Size"] for entry in found}
