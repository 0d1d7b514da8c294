"""The sizes and batches that are measured, and where the sizes of real KV pages come from."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.sizes import format_size

KIB = 1 << 10
MIB = 1 << 20
BATCH_OF_SIZE = {4 * KIB: 128, 64 * KIB: 128, 256 * KIB: 128, MIB: 64, 4 * MIB: 16}
_MAX_CALLS = 2048  # a round of small single calls walks part of the set; the next one goes on
_BF16_BYTES = 2
_PAGE_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """Objects of one size, `batch` to a call; a round is `calls` calls over `count` objects."""

    size: int
    batch: int
    count: int
    calls: int

    @staticmethod
    def of(size: int, batch: int, working_set: int) -> Shape:
        count = working_set // size
        batch = min(batch, count)
        return Shape(size, batch, count, min(_MAX_CALLS, max(1, count // batch)))

    @property
    def keys(self) -> int:
        """Objects of a round."""
        return self.calls * self.batch

    def start(self, number: int) -> int:
        """First object of round `number`: rounds go on where the last one stopped."""
        # The odd step keeps rounds that cover everything from starting at the same object.
        return (number * (self.keys + 1)) % self.count

    def shift(self, number: int) -> int:
        """How far behind its source a destination lies: half the set and some, never the same."""
        return (self.count // 2 + number) % self.count

    def __str__(self) -> str:
        return f"{format_size(self.size)} x {self.batch}"


def matrix(working_set: int, sizes: list[int] | None = None) -> list[Shape]:
    """Every size, alone and in its batch."""
    return [
        Shape.of(size, batch, working_set)
        for size, batches in BATCH_OF_SIZE.items()
        if sizes is None or size in sizes
        for batch in (1, batches)
    ]


@dataclass(frozen=True)
class Model:
    """A model whose KV page is one object: 64 tokens, bf16, all layers of one rank."""

    name: str
    formula: str
    page_bytes: int


def _grouped(layers: int, kv_heads: int, head_dim: int) -> tuple[str, int]:
    formula = f"2 (k, v) x {layers} layers x {kv_heads} heads x {head_dim} x 64 tokens x 2 B"
    return formula, 2 * layers * kv_heads * head_dim * _PAGE_TOKENS * _BF16_BYTES


def _latent(layers: int, latent: int, rope: int) -> tuple[str, int]:
    formula = f"{layers} layers x ({latent} latent + {rope} rope) x 64 tokens x 2 B"
    return formula, layers * (latent + rope) * _PAGE_TOKENS * _BF16_BYTES


MODELS = (
    # Source: the models' published config.json (layers, key-value heads, head size).
    Model("Llama-3-70B, all layers", *_grouped(80, 8, 128)),
    Model("Llama-3-70B, one of 8 ranks", *_grouped(80, 1, 128)),
    Model("Llama-3-70B, one layer", *_grouped(1, 8, 128)),
    Model("Qwen3-235B-A22B, all layers", *_grouped(94, 4, 128)),
    Model("Qwen3-235B-A22B, one layer", *_grouped(1, 4, 128)),
    Model("DeepSeek-V3 MLA, all layers", *_latent(61, 512, 64)),
    Model("DeepSeek-V3 MLA, one layer", *_latent(1, 512, 64)),
)
