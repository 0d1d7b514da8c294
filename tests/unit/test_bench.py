"""The benchmark's arithmetic: shapes, ratios within rounds, what is compared and reported."""

from __future__ import annotations

import json

import pytest

from bench.comparisons import rows_of
from bench.report import Results, Section, markdown
from bench.rounds import Table, rotated
from bench.sample import Sample, Spread, best, rate_ratio, summarize, time_ratio
from bench.shapes import MIB, MODELS, Shape, matrix

WORKING_SET = 128 * MIB


def sample(total_ns: int, keys: int = 1, p50_ns: float = 1.0) -> Sample:
    return Sample(1, keys * 4096, keys, total_ns, p50_ns, p50_ns)


def test_every_shape_fits_the_working_set_and_walks_it() -> None:
    shapes = matrix(WORKING_SET)
    assert [shape.batch for shape in shapes] == [1, 128, 1, 128, 1, 128, 1, 64, 1, 16]
    for shape in shapes:
        assert shape.count * shape.size == WORKING_SET
        assert shape.keys <= shape.count
        rounds = -(-shape.count // shape.keys) + 1
        seen = {
            (shape.start(number) + i) % shape.count
            for number in range(rounds)
            for i in range(shape.keys)
        }
        assert len(seen) >= 0.99 * shape.count  # a round begins one behind the last one's end
        assert len({shape.shift(number) for number in range(7)}) == 7


def test_page_sizes_are_those_of_the_models() -> None:
    pages = {model.name: model.page_bytes for model in MODELS}
    assert pages["Llama-3-70B, all layers"] == 20 * MIB
    assert pages["Qwen3-235B-A22B, all layers"] == 64 * 94 * 2 * 4 * 128 * 2
    assert pages["DeepSeek-V3 MLA, all layers"] == 64 * 61 * 576 * 2
    assert all(page % 256 == 0 for page in pages.values())  # what the limits' copies need


def test_ratios_are_taken_within_rounds() -> None:
    ours = [sample(100), sample(400), sample(100)]
    theirs = [sample(200), sample(200), sample(300)]
    assert rate_ratio(ours, theirs) == Spread(2.0, 0.5, 3.0)
    assert time_ratio([sample(1, p50_ns=6.0)], [sample(1, p50_ns=2.0)]) == Spread(3.0, 3.0, 3.0)
    assert [one.total_ns for one in best(ours, theirs)] == [100, 200, 100]


def test_a_summary_has_sum_median_and_99th_percentile() -> None:
    times = list(range(1, 201))
    assert summarize(times) == {"calls": 200, "total_ns": 20100, "p50_ns": 100.5, "p99_ns": 199}


def test_only_what_took_part_to_the_end_is_compared() -> None:
    table = Table(Shape.of(MIB, 1, WORKING_SET))
    for number in range(3):
        table.add("kvstore-shm", "get", sample(100))
        table.add("limits", "copy get plain", sample(80))
        table.add("limits", "copy get nt", sample(50))
        if number == 0:
            table.add("redis", "get", sample(300))  # it failed afterwards
    rows = rows_of([table])
    assert [row.title for row in rows] == ["kvstore-shm get_into / memcpy"]
    assert rows[0].ratio == Spread(0.5, 0.5, 0.5)


def test_a_report_has_every_section_and_its_numbers() -> None:
    results = Results({"date": "2026-01-01"}, {"rounds": 1})
    results.sections.append(Section("Title", ["a", "b"], [["1", "2"]], ["note"], {"raw": [3]}))
    page = markdown(results)
    assert "## Title" in page and "| 1 | 2 |" in page and "* note" in page
    assert json.loads(json.dumps(results.to_json()))["sections"][0]["raw"] == {"raw": [3]}


@pytest.mark.parametrize("number", range(5))
def test_another_contender_begins_each_round(number: int) -> None:
    names = ["a", "b", "c"]
    order = rotated(names, number)
    assert sorted(order) == names and order[0] == names[number % 3]
