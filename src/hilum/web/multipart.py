"""Takes parts; gives the bytes of a multipart answer round them. Holds no body.

PS3.18 8.6.1.2, Multipart Payload, on RFC 2387, The MIME Multipart/Related Content-type; and RFC 9110 14.6,
Media Type multipart/byteranges. A part is begun by head(), followed by its body, and the last one by end().
"""

from __future__ import annotations

import secrets


class Multipart:
    """The frame of one answer.

    The boundary must stand in no body. A random one does; so does a digest of what is sent, which makes the
    answer the same every time and so lets a client ask for a range of it.
    """

    def __init__(self, media_type: str, *, boundary: str = "") -> None:
        self._boundary = boundary or secrets.token_hex(20)
        self._begun = False
        kind = f'related; type="{media_type}"' if media_type else "byteranges"
        self.content_type = f"multipart/{kind}; boundary={self._boundary}"

    def head(self, content_type: str, location: str) -> bytes:
        """What stands before the body of a part of multipart/related."""
        return self._head(content_type, "Content-Location", location)

    def range_head(self, content_type: str, content_range: str) -> bytes:
        """What stands before the body of a part of multipart/byteranges."""
        return self._head(content_type, "Content-Range", content_range)

    def _head(self, content_type: str, name: str, value: str) -> bytes:
        lead = "\r\n" if self._begun else ""
        self._begun = True
        text = f"{lead}--{self._boundary}\r\nContent-Type: {content_type}\r\n{name}: {value}\r\n\r\n"
        return text.encode("latin-1", "replace")

    def end(self) -> bytes:
        return f"\r\n--{self._boundary}--\r\n".encode()


def with_syntax(media_type: str, syntax: str) -> str:
    """A media type with its transfer syntax: PS3.18 8.7.3.5.2, Transfer Syntax Parameter."""
    return f"{media_type}; transfer-syntax={syntax}"
