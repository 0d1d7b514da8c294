"""`kvstore size`: bytes of a model's KV pages, and what to plan for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kvstore.cli.output import print_fields, print_json, print_table, reports_errors, warn
from kvstore.cli.target import json_option
from kvstore.errors import InvalidArgumentError
from kvstore.planning.model import ModelShape, read_config, shape_of
from kvstore.planning.sizing import (
    ENGINES,
    FILL,
    NVME_FILL,
    Pages,
    Plan,
    pages_of,
    plan_pages,
    plan_segment,
    session_pages,
)
from kvstore.sizes import format_size, parse_size

_MAX_SESSIONS = 1_000_000_000
_MAX_TOKENS = 1_000_000_000


def _size(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        size = parse_size(int(value) if value.isdigit() else value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 0 < size < 1 << 60:
        raise click.BadParameter("must be above 0 and below 2^60 bytes")
    return size


def _planned(
    pages: Pages, sessions: int | None, tokens: int | None, segment: int | None
) -> Plan | None:
    if segment is not None:
        return plan_segment(pages, segment)
    if sessions is None or tokens is None:
        return None
    count = sessions * session_pages(pages, tokens)
    if not count:
        raise InvalidArgumentError(
            f"--tokens {tokens} fills no page of {pages.page_tokens} tokens: nothing is stored"
        )
    return plan_pages(pages, count)


def _snippet(plan: Plan, nvme: bool) -> dict[str, Any]:
    snippet: dict[str, Any] = {"segment_size": plan.segment_bytes}
    if nvme:
        snippet |= {"nvme_dir": "/var/lib/kvstore/nvme", "nvme_size": plan.nvme_bytes}
    return snippet


def _formulas(pages: Pages, plan: Plan) -> dict[str, str]:
    return {
        "segment": f"{plan.pages:,} pages x {pages.block_bytes:,} B / {FILL} that pages fill",
        "index": "1/16 of the segment, which has an entry for every 3,277 B; twice in a restart",
        "nvme": f"{plan.pages:,} pages x {pages.record_bytes:,} B / {NVME_FILL} in use",
    }


def _document(
    shape: ModelShape, pages: Pages, plan: Plan | None, tokens: int | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": {**asdict(shape), "layers": shape.layers, "notes": list(shape.notes)},
        "engine": pages.engine,
        "tp": pages.tp,
        "page_tokens": pages.page_tokens,
        "token_bytes": pages.token_bytes,
        "token_formula": pages.token_formula,
        "page_bytes": pages.page_bytes,
        "page_objects": pages.object_count,
        "copies": pages.copies,
        "objects": [asdict(one) for one in pages.objects],
    }
    if plan is not None:
        document["plan"] = {**asdict(plan), "formulas": _formulas(pages, plan)}
        if tokens is not None:
            each = session_pages(pages, tokens)
            document["plan"]["sessions"] = plan.pages // each if each else 0
        document["node_config"] = _snippet(plan, nvme=True)
    return document


def _print(shape: ModelShape, pages: Pages, plan: Plan | None, document: Mapping[str, Any]) -> None:
    kinds = [f"{shape.full_layers} full attention"] if shape.full_layers else []
    if shape.sliding_layers:
        kinds.append(f"{shape.sliding_layers} sliding window of {shape.window}")
    if shape.state_layers:
        kinds.append(f"{shape.state_layers} state")
    heads = f"{shape.kv_heads} KV heads of {shape.head_dim}"
    print_fields(
        {
            "model": shape.name,
            "layers": kinds,
            "cache": f"latent of {shape.latent_dim}" if shape.latent_dim else heads,
            "type": f"{shape.dtype}, {shape.item_bytes} B",
            "bytes/token": f"{pages.token_bytes:,} = {pages.token_formula}",
            "page": f"{pages.page_tokens} tokens, {pages.object_count} objects with {pages.engine}"
            f" and --tp {pages.tp}, {pages.page_bytes:,} B ({format_size(pages.page_bytes)})",
        }
    )
    click.echo()
    print_table(
        ["object", "a page", "bytes", "formula"],
        [[one.what, one.count, one.size_bytes, one.formula] for one in pages.objects],
    )
    if plan is None:
        return
    formulas = document["plan"]["formulas"]
    click.echo()
    fields = {
        "tokens": f"{plan.tokens:,} in {plan.pages:,} pages, {plan.objects:,} objects",
        "data": format_size(plan.data_bytes),
        "segment_size": f"{format_size(plan.segment_bytes)}: {formulas['segment']}",
        "index": f"{format_size(plan.index_bytes)}, {plan.index_entries:,} entries: "
        f"{formulas['index']}",
        "segment_dir": f"{format_size(plan.shm_bytes)} of shared memory: segment + 2 indexes",
        "nvme_size": f"{format_size(plan.nvme_bytes)} for as much: {formulas['nvme']}; and "
        f"{format_size(plan.nvme_memory_bytes)} of the node's memory",
    }
    if "sessions" in document["plan"]:
        fields = {"sessions": f"{document['plan']['sessions']:,}", **fields}
    print_fields(fields)
    click.echo("\nFor one node's configuration (leave the NVMe keys out without a disk):")
    click.echo(json.dumps(document["node_config"], indent=2))


@click.command(
    epilog="Example: kvstore size --model config.json --tp 8 --sessions 500 --tokens 32k"
)
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path),
    help="config.json of a model, as on Hugging Face, or the folder that has it.",
)
@click.option("--engine", type=click.Choice(ENGINES), default="sglang", show_default=True)
@click.option(
    "--tp", type=click.IntRange(1, 4096), default=1, show_default=True, help="Tensor parallelism."
)
@click.option(
    "--page",
    type=click.IntRange(1, 1 << 20),
    default=64,
    show_default=True,
    help="Tokens of a page (SGLang), block (vLLM) or chunk (LMCache).",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(
        ["auto", "bfloat16", "float16", "float32", "fp8", "int8"], case_sensitive=False
    ),
    default="auto",
    show_default=True,
    help="Type of the KV cache; auto is the model's.",
)
@click.option("--sessions", type=click.IntRange(1, _MAX_SESSIONS), help="Sessions to keep.")
@click.option(
    "--tokens", callback=_size, metavar="TOKENS", help="Tokens of each session, such as 32k."
)
@click.option("--segment", callback=_size, metavar="SIZE", help="Or: what fits into such a node.")
@json_option
@reports_errors
def size(
    model: Path,
    engine: str,
    tp: int,
    page: int,
    kv_dtype: str,
    sessions: int | None,
    tokens: int | None,
    segment: int | None,
    as_json: bool,
) -> None:
    """Show the bytes of a model's KV pages, and what to plan for them.

    Give --sessions and --tokens for the memory, index and disk that they need, or --segment for
    what fits. A prefix that sessions share is stored once: --sessions counts it for each of them.
    """
    if segment is not None and sessions is not None:
        raise click.UsageError("--sessions and --segment exclude each other")
    if sessions is not None and tokens is None:
        raise click.UsageError("--sessions needs --tokens, the tokens of each session")
    if tokens is not None and tokens > _MAX_TOKENS:
        raise click.BadParameter(f"--tokens must be at most {_MAX_TOKENS:,}")
    shape = shape_of(read_config(model), kv_dtype.lower())
    pages = pages_of(shape, engine, tp, page)
    plan = _planned(pages, sessions, tokens, segment)
    document = _document(shape, pages, plan, tokens)
    if as_json:
        print_json(document)
    else:
        _print(shape, pages, plan, document)
        for note in shape.notes:
            warn(note)
        if pages.copies > 1:
            warn(
                f"every KV head is stored {pages.copies} times: {engine} has {tp} ranks and "
                f"the model {shape.kv_heads} heads"
            )
