"""Where a response of HTTP/1.1 begins and ends, as httptools parses it."""

from __future__ import annotations

import httptools

from benchbench.store.requests import ErrorKind


class WireError(Exception):
    """What ended a connection or made its bytes useless, in a sentence for the record. `kind`: PROTOCOL for no HTTP."""

    def __init__(self, detail: str, kind: ErrorKind = ErrorKind.STREAM) -> None:
        super().__init__(detail)
        self.kind = kind


class Framing:
    """Follows one HTTP/1.1 response as far as its end: chunked, by length, or until the connection closes.

    `follow` raises `WireError` when the bytes are not HTTP. Attributes: `status` (0 before the
    head), `keep_alive`, `chunked`, `until_close`, `done`.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.keep_alive = True
        self.chunked = self._sized = False
        self.until_close = self.done = False

    # httptools' callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        self.chunked |= name.lower() == b"transfer-encoding" and b"chunked" in value.lower()
        self._sized |= name.lower() == b"content-length"

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self.status:  # neither a word beforehand (100) nor what stands behind the response
            self.status, self.keep_alive = status, self._parser.should_keep_alive()
            self.until_close = not (self.chunked or self._sized or status in {204, 304})

    def on_message_complete(self) -> None:
        self.done = self.status > 0

    def follow(self, data: bytes) -> bool:
        """Take the next read; True when the response is complete."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.status:
                detail = f"not an HTTP response ({error}): it begins {data[:60]!r}"
                raise WireError(detail, ErrorKind.PROTOCOL) from None
            if not self.done:
                raise WireError(f"broken HTTP framing: {error}", ErrorKind.PROTOCOL) from None
        return self.done
