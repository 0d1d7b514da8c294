"""Request traces: the public Mooncake format, and a generated multi-turn workload."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import InvalidArgumentError

TOKENS_PER_BLOCK = 512
"""Tokens behind one hash id (Source: the Mooncake trace, FAST'25)."""

_MAX_BLOCKS = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request: its prompt as block ids; equal ids are equal blocks with equal prefixes."""

    timestamp_ms: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def _parse_line(line: str, where: str) -> Request:
    try:
        row = json.loads(line)
        ids = tuple(row["hash_ids"])
        request = Request(
            int(row["timestamp"]), int(row["input_length"]), int(row["output_length"]), ids
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{where}: not a trace line ({error!r}); expected a JSON object with "
            "timestamp, input_length, output_length and hash_ids"
        ) from None
    if len(ids) > _MAX_BLOCKS or not all(type(i) is int and 0 <= i < 1 << 63 for i in ids):
        raise InvalidArgumentError(
            f"{where}: hash_ids must be at most {_MAX_BLOCKS} integers from 0 to 2^63"
        )
    return request


def read_trace(path: Path) -> list[Request]:
    """Read a trace in the Mooncake format (JSON lines).

    Args:
        path: The file; empty lines are skipped.

    Returns:
        The requests in the file's order.

    Raises:
        InvalidArgumentError: The file cannot be read, or a line is not a request.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            requests = [
                _parse_line(line, f"{path}:{number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read the trace {path}: {error}") from None
    if not requests:
        raise InvalidArgumentError(f"the trace {path} contains no requests")
    return requests


def generate(seed: int, conversations: int = 120, turns: int = 8) -> list[Request]:
    """Generate multi-turn chats that share system prompts, interleaved like real ones.

    Args:
        seed: Makes the workload repeatable.
        conversations: Number of chats.
        turns: Requests in each chat; every one repeats the chat so far and adds 1 to 6 blocks.

    Returns:
        The requests in order of time.
    """
    draw = random.Random(seed)
    next_id = 0

    def new_blocks(count: int) -> list[int]:
        nonlocal next_id
        next_id += count
        return list(range(next_id - count, next_id))

    system_prompts = [new_blocks(draw.randint(2, 8)) for _ in range(4)]
    chats = [list(draw.choice(system_prompts)) for _ in range(conversations)]

    def rounds() -> Iterator[int]:
        for _ in range(turns):
            yield from draw.sample(range(conversations), conversations)

    requests = []
    for number, chat in enumerate(rounds()):
        chats[chat] += new_blocks(draw.randint(1, 6))
        blocks = tuple(chats[chat])
        requests.append(Request(number * 10, len(blocks) * TOKENS_PER_BLOCK, 128, blocks))
    return requests
