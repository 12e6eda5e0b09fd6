"""Finds the path of an image in the reference that Label Studio exports."""

import base64
import re
from urllib.parse import parse_qs, unquote, urlsplit


def original_path(uri: str) -> str:
    """Returns the path of an image from the reference that Label Studio exports.

    - `/data/upload/1/0a1b2c3d-a.jpg`: the file name, see also `remove_upload_prefix`
    - `/data/local-files/?d=folder/a.jpg`: the path below the document root
    - `s3://bucket/folder/a.jpg`, `gs://...`, `https://host/folder/a.jpg?query`: the path below the bucket or host
    - a presigned `/tasks/1/resolve/?fileuri=...`: the path of the file it refers to

    Raises:
      ValueError: if the reference is broken.
    """
    parts = urlsplit(uri.replace("\\", "/"))
    query = parse_qs(parts.query)
    if parts.path.rstrip("/").endswith("/local-files") and "d" in query:
        return query["d"][0]
    if parts.path.startswith("/tasks/") and "fileuri" in query:
        return original_path(base64.b64decode(query["fileuri"][0], validate=True).decode())
    if "/data/upload/" in parts.path:
        return unquote(parts.path.rpartition("/")[2])
    if parts.scheme in ("http", "https"):
        return unquote(parts.path).lstrip("/")
    return parts.path.lstrip("/") if parts.netloc else uri


def remove_upload_prefix(filename: str) -> str:
    """Returns the name that a file had before its upload to Label Studio, which adds 8 hex digits: 0a1b2c3d-a.jpg."""
    return re.sub(r"^[0-9a-f]{8}-(?=.)", "", filename)


def to_upload_name(filename: str) -> str:
    """Returns the name that Label Studio gives to an uploaded file, without the prefix: `a (1).jpg` is `a_1.jpg`."""
    return re.sub(r"[^-\w.]", "", filename.replace(" ", "_"))
