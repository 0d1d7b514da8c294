"""Measures what a shared store gains for chats: hit rate, TTFT, throughput.

`python -m bench.multi_turn` has the shape of the published benchmark of SGLang's HiCache with a
shared store: 150 clients, 10 rounds, 2,048 tokens a turn, 16 requests a second, one token out. The
engine and its device and host caches are a model (bench/chat_model.py); the store is real: a master
and a node in processes of their own, pages written and read through the client library.

Calibrated on the baseline alone, then frozen: the device cache, so that its hit rate is the
published one, and the prefill rate, so that its mean TTFT is. The host cache is twice as large
(HiCache's default). Pages are stored `--scale` times smaller than a model's. Each call's measured
time is charged `--scale` times, divided by `--ranks`: that many ranks move their parts of a page at
the same time, each at the rate measured here. All other numbers are outcomes. Prints a
table, and writes table.md, results.json and, with the [bench] extra, a plot.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import kvstore
from bench.chat_model import Engine, Outcome, Page, Workload, bisect, run
from bench.machine import describe
from tests.support.cluster import Cluster

PUBLISHED = {  # SGLang HiCache with a Mooncake store, 235B model: hit rate, mean TTFT in seconds
    "device": (0.123, 5.91),
    "device + host": (0.4062, 3.77),
    "device + host + store": (0.784, 2.58),
}
HOST_RATIO = 2
KV_BYTES_PER_TOKEN = 94 * 2 * 4 * 128 * 2  # 94 layers, K and V, 4 heads of 128, 2 bytes each


class RealStore:
    """A kvstore cluster as the model's shared level."""

    def __init__(self, store: kvstore.Store, page_bytes: int, charge: float, most: int) -> None:
        self._store, self._page_bytes, self._charge = store, page_bytes, charge
        self._memory = ctypes.create_string_buffer(page_bytes * most)
        self._base = ctypes.addressof(self._memory)
        self.calls: list[dict[str, float]] = []

    def _call(self, pages: Sequence[Page], what: str) -> tuple[list[Any], float]:
        keys = [f"{client}/{place}" for client, place in pages]
        pointers = [self._base + i * self._page_bytes for i in range(len(pages))]
        sizes = [self._page_bytes] * len(pages)
        started = time.perf_counter()
        answers: list[Any]
        if what == "fetch":
            answers = list(self._store.batch_get_into_pointers(keys, pointers, sizes))
        else:
            answers = list(self._store.batch_put_from(keys, pointers, sizes))
        seconds = time.perf_counter() - started
        self.calls.append({what: seconds, "pages": len(pages)})
        return answers, seconds * self._charge

    def fetch(self, pages: Sequence[Page]) -> tuple[int, float]:
        """Read the leading pages, and check whose they are."""
        sizes, seconds = self._call(pages, "fetch")
        found = next((i for i, size in enumerate(sizes) if size < 0), len(sizes))
        for i, (client, place) in enumerate(pages[:found]):
            at = self._base + i * self._page_bytes
            assert ctypes.string_at(at, 16) == _mark(client, place), "wrong bytes"
        return found, seconds

    def store(self, pages: Sequence[Page]) -> float:
        """Write pages, each marked with its own name."""
        for i, (client, place) in enumerate(pages):
            ctypes.memmove(self._base + i * self._page_bytes, _mark(client, place), 16)
        statuses, seconds = self._call(pages, "store")
        good = (kvstore.Status.Ok, kvstore.Status.AlreadyExists)
        assert all(status in good for status in statuses), statuses
        return seconds

    def gigabytes_per_s(self, what: str) -> float:
        """Return the rate over all calls."""
        mine = [call for call in self.calls if what in call]
        return sum(c["pages"] for c in mine) * self._page_bytes / sum(c[what] for c in mine) / 1e9


def _mark(client: int, place: int) -> bytes:
    return client.to_bytes(8, "little") + place.to_bytes(8, "little")


def with_store(
    workload: Workload, engine: Engine, scale: float, ranks: int, transport: str
) -> tuple[Outcome, dict[str, float]]:
    """Run the model over a fresh cluster."""
    page_bytes = int(KV_BYTES_PER_TOKEN * workload.page_tokens / scale)
    pages = workload.clients * workload.rounds * workload.turn_pages
    folder = Path(tempfile.mkdtemp(prefix="kvstore-multi-turn-"))
    cluster = Cluster(folder)
    try:
        cluster.start_node("a", segment_size=int(pages * page_bytes * 1.1) + (64 << 20))
        store = cluster.connect(timeout_ms=30_000, transport=transport)
        most = workload.rounds * workload.turn_pages
        shared = RealStore(store, page_bytes, scale / ranks, most)
        shared.store(
            [(workload.clients, i) for i in range(most)]
        )  # connections and pages are there
        shared.calls.clear()
        outcome = run(workload, engine, shared)
        rates = {what: shared.gigabytes_per_s(what) for what in ("fetch", "store")}
        return outcome, {**rates, "page_bytes": page_bytes}
    finally:
        cluster.close()
        shutil.rmtree(folder)


def calibrated(workload: Workload) -> Engine:
    """The engine that has the published baseline's hit rate and mean TTFT.

    One rate belongs to each size of the device cache; the size is searched. Larger pages than the
    run's make the search short and change little.
    """
    hit_rate, ttft_s = PUBLISHED["device"]
    coarse = replace(workload, page_tokens=8 * workload.page_tokens)

    def rate_for(pages: float) -> float:
        def too_slow(rate: float) -> bool:
            return run(coarse, Engine(rate, int(pages))).mean_ttft_s > ttft_s

        return bisect(10_000.0, 10_000_000.0, too_slow, steps=14)

    def too_few(pages: float) -> bool:
        return run(coarse, Engine(rate_for(pages), int(pages))).hit_rate < hit_rate

    total = coarse.clients * coarse.rounds * coarse.turn_pages
    pages = bisect(total / 400, total, too_few, steps=10)
    return Engine(rate_for(pages), int(pages) * 8)


def measure(
    workload: Workload, scale: float, ranks: int, transport: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run every configuration at the calibrated prefill rate, at half and at twice of it."""
    say("calibrating the model on the baseline")
    base = calibrated(workload)
    rows: list[dict[str, Any]] = []
    for factor in (1.0, 0.5, 2.0):
        rate = base.prefill_tokens_per_s * factor
        for name, published in PUBLISHED.items():
            host = HOST_RATIO * base.device_pages if name != "device" else 0
            engine = Engine(rate, base.device_pages, host)
            say(f"{name}, prefill rate x {factor}")
            if "store" in name:
                outcome, rates = with_store(workload, engine, scale, ranks, transport)
            else:
                outcome, rates = run(workload, engine), {}
            rows.append(
                {
                    "configuration": name,
                    "prefill_factor": factor,
                    "hit_rate": outcome.hit_rate,
                    "mean_ttft_s": outcome.mean_ttft_s,
                    "p90_ttft_s": outcome.p90_ttft_s,
                    "input_tokens_per_s": outcome.input_tokens_per_s,
                    "fetched_tokens": outcome.fetched_tokens,
                    "fetch_s": outcome.fetch_s,
                    "store_gb_per_s": rates,
                    "published": published if factor == 1.0 else None,
                }
            )
    return {
        "workload": asdict(workload),
        "engine": asdict(base),
        "host_ratio": HOST_RATIO,
        "scale": scale,
        "ranks": ranks,
        "transport": transport,
        "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
        "rows": rows,
        "machine": describe(),
    }


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown, and what was modelled."""
    lines = [
        "| prefill rate | configuration | hit rate | published | mean TTFT s | published "
        "| P90 TTFT s | input tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        published = row["published"]
        lines.append(
            f"| x {row['prefill_factor']:g} | {row['configuration']} | {row['hit_rate']:.1%} | "
            f"{f'{published[0]:.1%}' if published else ''} | {row['mean_ttft_s']:.2f} | "
            f"{f'{published[1]:.2f}' if published else ''} | {row['p90_ttft_s']:.2f} | "
            f"{row['input_tokens_per_s']:,.0f} |"
        )
    engine, work = found["engine"], found["workload"]
    rates = next(row["store_gb_per_s"] for row in found["rows"] if row["store_gb_per_s"])
    lines += [
        "",
        f"{work['clients']} clients, {work['rounds']} rounds, {work['turn_tokens']} tokens a turn, "
        f"{work['requests_per_s']:g} requests a second, pages of {work['page_tokens']} tokens.",
        f"Modelled: the engine (calibrated on the first row and frozen: "
        f"{engine['prefill_tokens_per_s']:,.0f} tokens a second, {engine['device_pages']:,} device "
        f"pages; host cache x {found['host_ratio']}). Real: the store, over "
        f"`{found['transport']}`, pages of {rates['page_bytes']:,.0f} bytes (a model's divided by "
        f"{found['scale']:g}), read at {rates['fetch']:.1f} and written at {rates['store']:.1f} "
        f"GB/s here; times are charged x {found['scale']:g} / "
        f"{found['ranks']} ranks.",
    ]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> bool:
    """Plot hit rate and TTFT beside the published ones; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in found["rows"] if row["prefill_factor"] == 1.0]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (title, measured, published) in zip(
        axes,
        (
            ("hit rate, %", [100 * row["hit_rate"] for row in rows], 0),
            ("mean time to first token, s", [row["mean_ttft_s"] for row in rows], 1),
        ),
        strict=True,
    ):
        known = [row["published"][published] * (100 if published == 0 else 1) for row in rows]
        places = range(len(rows))
        panel.bar([p - 0.2 for p in places], known, 0.4, label="published", color="#b0b0b0")
        panel.bar([p + 0.2 for p in places], measured, 0.4, label="here", color="#4878a8")
        panel.set_xticks(list(places), [row["configuration"] for row in rows], fontsize=8)
        panel.set_title(title, fontsize=10)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--scale", type=float, default=500, help="divides the bytes of a page")
    parser.add_argument("--ranks", type=int, default=8, help="ranks that share the bytes of a page")
    parser.add_argument("--transport", choices=("auto", "tcp"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("build/bench/multi-turn"))
    parser.add_argument("--json", action="store_true", help="print results.json, not the table")
    given = parser.parse_args(arguments)
    workload = Workload(clients=given.clients, rounds=given.rounds)
    quiet = given.json
    found = measure(
        workload,
        given.scale,
        given.ranks,
        given.transport,
        lambda line: None if quiet else print(line),
    )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "table.md").write_text(table(found))
    with suppress(OSError):
        draw(found, given.out / "multi-turn.png")
    print(json.dumps(found, indent=2) if given.json else "\n" + table(found))


if __name__ == "__main__":
    main()
