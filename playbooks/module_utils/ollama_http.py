"""The few requests that modules make, with nothing but the standard library, past any proxy for loopback."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(base_url, method, path, body=None, timeout_s=10.0):
    """The JSON answer of the engine on this host (None for an empty one). Raises OSError (HTTPError included)."""
    with stream(base_url, method, path, body, timeout_s) as answer:
        text = answer.read()
    return json.loads(text) if text.strip() else None


def stream(base_url, method, path, body=None, timeout_s=60.0):
    """The open answer, to be read line by line."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data else {}
    return _DIRECT.open(urllib.request.Request(base_url + path, data, headers, method=method), timeout=timeout_s)


def error_text(error):
    """What the server said, else what the library says."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            return str(json.loads(error.read())["error"])
        except (ValueError, KeyError, TypeError, OSError):
            return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error)


def models(base_url):
    """Installed models: name -> {digest, size_bytes}."""
    listed = call(base_url, "GET", "/api/tags").get("models") or []
    return {entry["name"]: {"digest": entry["digest"], "size_bytes": entry["size"]} for entry in listed}
