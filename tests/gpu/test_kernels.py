"""Checksums and pages by kernels: what arrives on the GPU is proven there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import MissReason, PagePool, Status
from kvstore.gpu import kernels as kernel_files
from tests.gpu.damage import damage
from tests.gpu.fake_cuda import OUT_OF_MEMORY, FakeCuda, provide_kernels
from tests.support.payloads import proof
from tests.support.processes import wait_for

SIZE = 100_003
INVALID_IMAGE = 200
with_kernels = pytest.mark.parametrize("kernels", ["kernels"], indirect=True)


@pytest.fixture
def data(store: kvstore.Store) -> bytes:
    """The object "a"."""
    there = proof("a", SIZE)
    store.put("a", there)
    return there


def test_stats_say_who_verifies(
    store: kvstore.Store, cuda: FakeCuda, data: bytes, kernels: bool
) -> None:
    assert store.stats()["gpus"] == []
    assert store.get_into("a", cuda.array(SIZE)) == SIZE
    (gpu,) = store.stats()["gpus"]
    assert gpu["device"] == 0
    if kernels:
        assert gpu == {"device": 0, "checksums": "gpu", "why": ""}
        assert cuda.count("checksum_kernels") == 1
    else:
        assert gpu["checksums"] == "host"
        assert gpu["why"].startswith(("CuPy cannot be imported", "NVRTC"))
        assert cuda.count("calls:cuLaunchKernel") == 0


def test_generation_alone_launches_nothing(
    store: kvstore.Store, cuda: FakeCuda, data: bytes
) -> None:
    assert store.get_into("a", cuda.array(SIZE), verify="generation") == SIZE
    assert cuda.count("calls:cuLaunchKernel") == 0


@with_kernels
def test_bytes_that_a_copy_damaged_are_a_miss(
    store: kvstore.Store, cuda: FakeCuda, data: bytes
) -> None:
    """The block is right, what arrived is not: only a sum of what arrived tells."""
    out = cuda.array(SIZE)
    cuda.flip()
    cuda.pause()
    transfer = store.get_into("a", out, stream=cuda.stream())
    assert transfer.queued == [SIZE]
    cuda.pause(False)
    assert transfer.result(10_000) == [Status.ChecksumMismatch]
    assert transfer.reasons == [MissReason.Checksum]
    assert out.content() != data
    stats = store.stats()
    assert (stats["hits"], stats["wrong_checksums"], stats["misses"]["checksum"]) == (0, 1, 1)
    assert stats["keys_read"] == 1


@with_kernels
def test_a_call_that_waits_reads_damaged_bytes_again(
    store: kvstore.Store, cuda: FakeCuda, data: bytes
) -> None:
    keys = [f"k{i}" for i in range(8)]
    there = [proof(key, SIZE) for key in keys]
    store.batch_put(keys, there)
    outs = [cuda.array(SIZE) for _ in keys]
    cuda.flip(after=3)
    assert store.batch_get_into(keys, outs) == [SIZE] * 8
    assert [out.content() for out in outs] == there
    stats = store.stats()
    assert (stats["hits"], stats["wrong_checksums"]) == (8, 1)


@with_kernels
def test_a_put_that_a_copy_damaged_is_never_read(store: kvstore.Store, cuda: FakeCuda) -> None:
    """Its checksum is that of the memory of the GPU."""
    source = cuda.array(SIZE).write(proof("b", SIZE))
    cuda.flip()
    assert store.put("b", source) is Status.Ok
    assert store.get("b") is None
    assert store.get_into("b", cuda.array(SIZE)) is None
    assert store.stats()["wrong_checksums"] > 0


def test_a_damaged_row_costs_no_other(store: kvstore.Store, cuda: FakeCuda) -> None:
    keys = [f"k{i}" for i in range(40)]
    there = [proof(key, 20_000 + i) for i, key in enumerate(keys)]
    store.batch_put(keys, there)
    damage(there[7])
    outs = [cuda.array(len(one)) for one in there]
    sizes = store.batch_get_into(keys, outs, stream=cuda.stream()).result(10_000)
    wanted: list[int] = [len(one) for one in there]
    wanted[7] = Status.ChecksumMismatch
    assert sizes == wanted
    for row, out in enumerate(outs):
        assert row == 7 or out.content() == there[row]


@with_kernels
@pytest.mark.parametrize("missing", ["launch", "mapping", "image", "functions"])
def test_without_a_launch_the_host_verifies(
    cuda: FakeCuda, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "functions":
        kernel_files.keep(kernel_files.kept_at(9, 9, 13000), b"fake-cubin kvstore_checksum")
    with kvstore.open(segment_size="64mb") as store:
        there = proof("a", SIZE)
        store.put("a", there)
        damaged = proof("b", SIZE)
        store.put("b", damaged)
        damage(damaged)
        if missing == "image":
            cuda.fail("cuModuleLoadData", INVALID_IMAGE)
        cuda.set_mapping(missing != "mapping")
        outs = [cuda.array(SIZE) for _ in range(2)]
        if missing == "launch":
            cuda.fail("cuLaunchKernel", OUT_OF_MEMORY)
        found = store.batch_get_into(["a", "b"], outs)
        assert found == [SIZE, Status.ChecksumMismatch]
        assert outs[0].content() == there
        (gpu,) = store.stats()["gpus"]
        assert gpu["checksums"] == ("gpu" if missing in ("launch", "mapping") else "host")
        assert cuda.count("checksum_kernels") == 0


@with_kernels
def test_nobody_waits_for_the_kernels_memory(store: kvstore.Store, cuda: FakeCuda) -> None:
    """Transfers beyond what the tables hold are verified on the host."""
    store.put("a", proof("a", 4096))
    stream = cuda.stream()
    cuda.pause()
    outs = [cuda.array(4096) for _ in range(300)]
    transfers = [store.get_into("a", out, stream=stream) for out in outs]
    cuda.pause(False)
    assert [transfer.result(20_000) for transfer in transfers] == [[4096]] * 300
    assert all(out.content() == proof("a", 4096) for out in outs)
    assert 200 < cuda.count("checksum_kernels") < 300


class Pool:
    """A pool of pages whose pieces the kernel moves."""

    PAGES, LAYERS, TOKENS, TOKEN_BYTES = 12, 3, 4, 64

    def __init__(self, cuda: FakeCuda, layout: Any, parts: int = 2, token_bytes: int = 64) -> None:
        count = parts * (self.LAYERS if layout == "layer_first" else 1)
        size = self.PAGES * self.LAYERS * self.TOKENS * token_bytes * parts
        self.array = cuda.array(size)
        buffers = [self.array.pointer + i * (size // count) for i in range(count)]
        self.pool = PagePool(
            layout, buffers, self.LAYERS, self.PAGES, self.TOKENS, token_bytes, parts
        )


def page_keys() -> list[str]:
    return [f"page{i}" for i in range(Pool.PAGES)]


@with_kernels
@pytest.mark.parametrize("parts", [2, 1], ids=["mha", "mla"])
@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_pages_by_one_launch(store: kvstore.Store, cuda: FakeCuda, layout: str, parts: int) -> None:
    """Every layout, against what copies make of it; a page in the middle has been damaged."""
    there = Pool(cuda, layout, parts, 256)
    there.array.write(proof("pool", there.array.size))
    keys, ids = page_keys(), list(reversed(range(Pool.PAGES)))
    stream = cuda.stream()
    assert all(store.batch_put_from_pages(keys, there.pool, ids, stream=stream))
    is_small = layout == "page_first" or parts * Pool.LAYERS * Pool.PAGES >= 64
    by_kernel = layout != "page_first_direct" and is_small
    assert (cuda.count("page_kernels") > 0) is by_kernel
    pointers, sizes = there.pool.pieces(ids)
    for key, places, lengths in zip(keys, pointers, sizes, strict=True):
        wanted = b"".join(map(cuda.read, places, lengths))
        assert store.get(key) == wanted
    here = Pool(cuda, layout, parts, 256)
    fifth = store.get(keys[5])
    assert fifth is not None
    damage(fifth)
    found = store.batch_get_into_pages(keys, here.pool, ids, stream=stream).result(10_000)
    size = there.pool.page_bytes
    assert found == [Status.ChecksumMismatch if row == 5 else size for row in range(len(keys))]
    for row, (places, lengths) in enumerate(zip(*here.pool.pieces(ids), strict=True)):
        if row != 5:
            assert b"".join(map(cuda.read, places, lengths)) == store.get(keys[row])


@with_kernels
def test_pieces_that_are_no_whole_vectors_are_copied(store: kvstore.Store, cuda: FakeCuda) -> None:
    there = Pool(cuda, "page_first", 2, 24)
    there.array.write(proof("pool", there.array.size))
    keys, ids = page_keys(), range(Pool.PAGES)
    assert all(store.batch_put_from_pages(keys, there.pool, ids))
    here = Pool(cuda, "page_first", 2, 24)
    assert store.batch_get_into_pages(keys, here.pool, ids) == [there.pool.page_bytes] * len(keys)
    assert here.array.content() == there.array.content()
    assert cuda.count("page_kernels") == 0


@with_kernels
def test_pages_of_which_some_are_missing_or_of_another_size(
    store: kvstore.Store, cuda: FakeCuda
) -> None:
    there = Pool(cuda, "page_first")
    there.array.write(proof("pool", there.array.size))
    keys, ids = page_keys(), list(range(Pool.PAGES))
    assert all(store.batch_put_from_pages(keys[:10], there.pool, ids[:10]))
    store.put("short", b"1" * 1000)
    store.put("long", b"1" * (there.pool.page_bytes + 1))
    here = Pool(cuda, "page_first")
    asked = [*keys[:9], "nobody", "short", "long"]
    size = there.pool.page_bytes
    found = store.batch_get_into_pages(asked, here.pool, ids)
    assert found == [size] * 9 + [Status.NotFound, 1000, Status.BufferTooSmall]
    for page in range(9):
        for places, lengths in [[one[page] for one in here.pool.pieces(ids)]]:
            assert b"".join(map(cuda.read, places, lengths)) == store.get(keys[page])


@with_kernels
def test_a_page_kernel_that_is_not_launched_is_an_error(
    store: kvstore.Store, cuda: FakeCuda
) -> None:
    there = Pool(cuda, "page_first")
    keys, ids = page_keys(), range(Pool.PAGES)
    cuda.fail("cuLaunchKernel", OUT_OF_MEMORY)
    put = store.batch_put_from_pages(keys, there.pool, ids)
    assert Status.NoSpace in put
    assert store.batch_exists(keys) == [status is Status.Ok for status in put]
    store.batch_put_from_pages(keys, there.pool, ids)
    cuda.fail("cuLaunchKernel", OUT_OF_MEMORY)
    with pytest.raises(kvstore.NoSpaceError, match="cuLaunchKernel"):
        store.batch_get_into_pages(keys, there.pool, ids, stream=cuda.stream())


@with_kernels
def test_pages_held_until_the_kernel_has_run(store: kvstore.Store, cuda: FakeCuda) -> None:
    """The kernel reads the blocks themselves: they are given to nobody else before."""
    there = Pool(cuda, "page_first")
    there.array.write(proof("pool", there.array.size))
    keys, ids = page_keys(), list(range(Pool.PAGES))
    assert all(store.batch_put_from_pages(keys, there.pool, ids))
    here = Pool(cuda, "page_first")
    cuda.pause()
    transfer = store.batch_get_into_pages(keys, here.pool, ids, stream=cuda.stream())
    assert store.remove(keys[0]) is Status.Ok
    for i in range(80):
        assert store.put(f"other/{i}", proof(f"other/{i}", 1 << 20)) is Status.Ok
    cuda.pause(False)
    found = transfer.result(10_000)
    assert found == [Status.NotFound] + [there.pool.page_bytes] * (len(keys) - 1)
    assert here.array.content() == there.array.content()


def test_many_pieces_ask_the_driver_once(store: kvstore.Store, cuda: FakeCuda) -> None:
    """Where each of hundreds of pieces lies is known from the first of its allocation."""
    there = Pool(cuda, "page_first")
    assert all(store.batch_put_from_pages(page_keys(), there.pool, range(Pool.PAGES)))
    assert cuda.count("calls:cuMemGetAddressRange") <= 4


@pytest.mark.parametrize("wrong", [{"page_stride": 100}, {"pages": 1 << 60}, {"buffers": ["1"]}])
def test_pools_that_cannot_be(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "layout": "page_first_direct",
        "buffers": [1 << 20],
        "layers": 2,
        "pages": 4,
        "page_tokens": 1,
        "token_bytes": 64,
        "parts": 1,
    }
    with pytest.raises(kvstore.InvalidArgumentError, match=next(iter(wrong))):
        PagePool(**{**right, **wrong})


def test_a_pool_with_gaps_between_its_pages(store: kvstore.Store, cuda: FakeCuda) -> None:
    size, stride = 256, 1024
    array = cuda.array(64 * stride).write(proof("pool", 64 * stride))
    pool = PagePool("layer_first", [array.pointer + 512], 1, 63, 1, size, 1, stride)
    keys = [f"k{i}" for i in range(63)]
    assert all(store.batch_put_from_pages(keys, pool, range(63)))
    content = array.content()
    for i, key in enumerate(keys):
        assert store.get(key) == content[512 + i * stride :][:size]


# --- what is kept on disk ---


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_files, "compiled", lambda major, minor: b"new")
    return kernel_files.kept_at(9, 0, 13000)


def test_compiled_once_for_each_device_and_driver(cache: Path) -> None:
    assert kernel_files.image(9, 0, 13000, False) == (b"new", "")
    assert cache.stat().st_mode & 0o777 == 0o600
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    kernel_files.keep(cache, b"kept")
    assert kernel_files.image(9, 0, 13000, False) == (b"kept", "")
    assert kernel_files.image(9, 0, 12080, False) == (b"new", "")
    assert kernel_files.image(10, 0, 13000, False) == (b"new", "")
    assert kernel_files.image(9, 0, 13000, True) == (b"new", "")
    assert kernel_files.image(9, 0, 13000, False) == (b"new", "")
    assert len(list(cache.parent.iterdir())) == 3


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "writable", "link", "fifo", "folder"])
def test_a_kept_file_that_is_not_ours_is_not_loaded(cache: Path, how: str) -> None:
    kernel_files.keep(cache, b"kept" * 100)
    whole = cache.read_bytes()
    if how == "cut":
        cache.write_bytes(whole[:-1])
    elif how == "flipped":
        cache.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif how == "empty":
        cache.write_bytes(b"")
    elif how == "writable":
        cache.chmod(0o622)
    else:
        cache.unlink()
        if how == "link":
            (cache.parent / "other").write_bytes(whole)
            cache.symlink_to("other")
        elif how == "fifo":
            os.mkfifo(cache)
        else:
            cache.mkdir()
    assert kernel_files.image(9, 0, 13000, False) == (b"new", "")


def test_a_disk_that_cannot_be_written_costs_only_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert kernel_files.image(9, 0, 13000, False) == (b"new", "")


def test_what_stops_the_compiler_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(major: int, minor: int) -> bytes:
        raise OSError("libnvrtc.so.13: cannot open shared object file")

    monkeypatch.setattr(kernel_files, "compiled", broken)
    assert kernel_files.image(9, 0, 13000, False) == (
        b"",
        "libnvrtc.so.13: cannot open shared object file",
    )


def test_nvrtc_compiles_the_kernels(tmp_path: Path) -> None:
    """Needs CuPy and NVRTC, or nvcc, but no GPU."""
    nvcc = shutil.which("nvcc")
    out = tmp_path / "kernels.cubin"
    if importlib.util.find_spec("cupy") is None and nvcc is None:
        pytest.skip("neither CuPy nor nvcc is installed")
    for major, minor in ((7, 5), (8, 0), (9, 0)):
        if importlib.util.find_spec("cupy") is not None:
            out.write_bytes(kernel_files.compiled(major, minor))
        else:
            command = [str(nvcc), f"-arch=sm_{major}{minor}", "-Werror", "all-warnings", "-cubin"]
            subprocess.run([*command, "-o", out, kernel_files.SOURCE], check=True)
        image = out.read_bytes()
        assert image[:4] == b"\x7fELF"
        for name in (b"kvstore_checksum", b"kvstore_pages"):
            assert name in image


def test_provided_kernels_are_what_is_loaded(cuda: FakeCuda, kernels: bool) -> None:
    """The kept file is read anew by each store."""
    with kvstore.open(segment_size="64mb") as store:
        store.put("a", b"1" * 100)
        store.get_into("a", cuda.array(100))
        assert (store.stats()["gpus"][0]["checksums"] == "gpu") is kernels
        assert cuda.count("modules") == kernels
    wait_for(lambda: cuda.count("modules") == 0, "the module is unloaded with the store")
    provide_kernels()
    with kvstore.open(segment_size="64mb") as store:
        store.put("a", b"1" * 100)
        store.get_into("a", cuda.array(100))
        assert store.stats()["gpus"][0]["checksums"] == "gpu"
