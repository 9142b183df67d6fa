"""A language model that grades answers, behind an OpenAI-compatible endpoint.

    POST {url}/chat/completions     {"model", "messages", "temperature", "max_tokens"}

Replies are cached in files named by the SHA-256 of their request, so that a repeated request costs
nothing. The API key is read from the environment variable OPENAI_API_KEY and is sent only to the
endpoint: redirects are refused, and HTTP without TLS is limited to this machine by default.
"""

import hashlib
import http.client
import ipaddress
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.storage import write_whole

KEY_VARIABLE = "OPENAI_API_KEY"
# HTTP statuses that are retried: rate limits and temporary failures of servers and proxies.
_TEMPORARY_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_MAX_REPLY_BYTES = 2**22

Message = Mapping[str, str]


class Grades(NamedTuple):
    """Grades of a judge for all answers.

    Attributes:
        name: The name of the grades file, as in the official code and `--score_only`.
        content: The content of that file.
        metrics: Scores computed from the grades.
    """

    name: str
    content: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """A reply of the judge.

    Attributes:
        model: The model's name in the reply, which may be more specific than the requested one.
        is_new: True if the reply is from a request, False if it is from the cache.
    """

    text: str
    model: str
    is_new: bool


class Judge:
    """Asks a chat model, one request at a time."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache_dir: Path,
        allow_http: bool = False,
        timeout_s: float = 120.0,
        max_attempts: int = 6,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Creates a judge at `url`, such as https://api.openai.com/v1.

        Args:
            model: The name of the model at the endpoint.
            cache_dir: Folder of the cached replies.
            allow_http: Allows HTTP without TLS to other machines, which exposes the answers and the
                key to anyone on the way.
            timeout_s: Timeout of each attempt, in seconds.
            max_attempts: Maximum number of attempts per request, if they fail temporarily.
            sleep: Waits a number of seconds between attempts.

        Raises:
            ValueError: An argument is invalid; the message says how to fix it.
        """
        parts = urllib.parse.urlsplit(url)
        is_local = _is_loopback(parts.hostname or "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"--judge_url={url}: expected https://HOST/v1, or http://localhost:PORT/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "--judge_url: must not contain a user name, password, query or fragment; the key "
                f"is read from {KEY_VARIABLE}"
            )
        if parts.scheme == "http" and not is_local and not allow_http:
            raise ValueError(
                f"--judge_url={url}: without TLS, answers and key would be sent unencrypted; use "
                "https://, or allow it with --judge_allow_http"
            )
        if not model:
            raise ValueError("--judge_model: needed with --judge_url; give the judge's name")
        if max_attempts < 1 or timeout_s <= 0:
            raise ValueError(
                f"judge: max_attempts={max_attempts}, timeout_s={timeout_s}; expected at least one "
                "attempt and a positive timeout"
            )
        self.model = model
        self.num_requests = 0
        self._url = url.rstrip("/") + "/chat/completions"
        self._cache_dir = cache_dir
        self._timeout_s, self._max_attempts, self._sleep = timeout_s, max_attempts, sleep
        # Requests to this machine bypass any proxy.
        proxies = urllib.request.ProxyHandler({} if is_local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirect())

    def ask(
        self, messages: Sequence[Message], *, temperature: float, max_tokens: int, run: int = 0
    ) -> Reply:
        """Returns the reply of the judge to the messages.

        Args:
            run: Distinguishes repetitions of a request, which each get their own reply.

        Raises:
            ValueError: The request failed, or the reply is not a chat completion.
        """
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        about = {"url": self._url, "run": run, "request": body}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        path = self._cache_dir / f"{digest}.json"
        if (kept := _cached(path)) is not None:
            return kept
        text, model = _parse_completion(self._post(json.dumps(body).encode()))
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        entry = {**about, "model": model, "text": text}
        write_whole(path, json.dumps(entry, ensure_ascii=False, indent=1) + "\n")
        return Reply(text, model, is_new=True)

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, body, headers, method="POST")
        wait = _FIRST_WAIT_S
        for attempt in range(1, self._max_attempts + 1):
            self.num_requests += 1
            try:
                with self._opener.open(request, timeout=self._timeout_s) as response:
                    content = response.read(_MAX_REPLY_BYTES + 1)
                if len(content) > _MAX_REPLY_BYTES:
                    raise ValueError(f"{self._url}: a reply of more than {_MAX_REPLY_BYTES} bytes")
                return content
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"HTTP {error.code} {_excerpt(error)}"
                    pause = max(wait, _retry_after(error.headers.get("Retry-After")))
                if error.code not in _TEMPORARY_STATUSES:
                    hint = f"; {KEY_VARIABLE} must hold its key" if error.code in (401, 403) else ""
                    raise ValueError(f"{self._url}: {reason}{hint}") from error
            except (urllib.error.URLError, TimeoutError, OSError, http.client.HTTPException) as e:
                reason, pause = f"{type(e).__name__} {e}", wait
            if attempt < self._max_attempts:
                logging.getLogger(__name__).warning(
                    "%s: %s; retrying in %.0f s", self._url, reason, pause
                )
                self._sleep(min(pause, _LONGEST_WAIT_S))
                wait = min(2 * wait, _LONGEST_WAIT_S)
        raise ValueError(
            f"{self._url}: {self._max_attempts} attempts failed, the last with {reason}; the same "
            "command resumes from here"
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would forward the key."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _cached(path: Path) -> Reply | None:
    """Reads a reply from the cache; None if the file is missing or damaged."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        text, model = entry["text"], entry["model"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Reply(text, model, is_new=False) if isinstance(text, str) else None


def _parse_completion(reply: bytes) -> tuple[str, str]:
    """Returns text and model name of a chat completion; the text is "" if there is none."""
    try:
        fields = json.loads(reply)
        text = fields["choices"][0]["message"]["content"]
        model = str(fields.get("model", ""))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the judge's reply is not a chat completion ({type(error).__name__} {error}): "
            f"{reply[:200]!r}; --judge_url must end before /chat/completions"
        ) from error
    return (text if isinstance(text, str) else ""), model


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _retry_after(value: str | None) -> float:
    """Returns the seconds of a Retry-After header; 0 for a date, as waits double anyway."""
    return float(value) if value is not None and value.isascii() and value.isdecimal() else 0.0


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(300).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        return str(error.reason)
