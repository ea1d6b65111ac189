"""Law: a stream of events is the same however its bytes are split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from openbook.chat.wire import events
from openbook.chat.wire.events import Events
from openbook.errors import RemoteError

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n: a comment\r\n\r\ndata: two\r\ndata:  and more\r\n\r\nevent: x\rid: 7\rretry: 5\r"
    b"data:three\r\rdata\n\n\n\nnodata: 1\n\ndata: caf\xc3\xa9 \xf0\x9f\x99\x82\r\n\ndata: bad \xff\n\r\ndata: [DONE]"
)
WHOLE = ["one", "two\n and more", "three", "", "café 🙂", "bad �", "[DONE]"]


def read(pieces: Sequence[bytes], make: Callable[[], Events] = Events) -> list[str]:
    reader = make()
    return [data for piece in pieces for data in reader.feed(piece)] + reader.finish()


def differing(make: Callable[[], Events]) -> list[int]:
    """Places at which splitting the stream in two changes it."""
    places = range(len(STREAM) + 1)
    return [at for at in places if read([STREAM[:at], STREAM[at:]], make) != WHOLE]


class TestLaw:
    def test_every_split_in_two(self) -> None:
        assert read([STREAM]) == WHOLE
        assert differing(Events) == []

    def test_byte_by_byte_and_with_nothing_between(self) -> None:
        assert read([part for i in range(len(STREAM)) for part in (b"", STREAM[i : i + 1])]) == WHOLE

    def test_a_seeded_fault_is_found(self) -> None:
        class Forgetful(Events):
            """Takes the CR and the LF of one line end for two, where they come apart."""

            def feed(self, piece: bytes) -> list[str]:
                self._returned = False
                return super().feed(piece)

        assert differing(Forgetful)


class TestBounds:
    @pytest.mark.parametrize("piece", [b"x" * 100, b"data: " + b"x" * 90 + b"\n", b"data:" + b"x" * 9 + b"\n"])
    def test_what_does_not_end_is_refused(self, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """An endless line, and an endless event of short lines."""
        monkeypatch.setattr(events, "LARGEST", 1000)
        with pytest.raises(RemoteError, match="larger than 1000 bytes"):
            read([piece] * 200)

    def test_comments_are_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "LARGEST", 100)
        reader = Events()
        assert all(reader.feed(b": keep-alive\n\n") == [] for _ in range(1000))
        assert reader.feed(b"data: x\n\n") == ["x"]
